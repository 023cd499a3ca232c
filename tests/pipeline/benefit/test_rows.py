"""What the study compares."""

from __future__ import annotations

from pipeline.benefit.rows import PLAIN, RECIPE, TECHNIQUES, groups, rows, single_taps
from schemas.groups import Group


def test_every_row_reads_groups_that_are_extracted() -> None:
    extracted = {Group.model_validate(group).name for group in groups()}
    for row in rows(["caption"]):
        assert row.source == "raw" or set(row.groups) <= extracted, row


def test_rows_have_folders_of_their_own() -> None:
    keys = [row.key for row in rows(["caption", "controlnet"])]
    assert len(set(keys)) == len(keys)


def test_the_recipe_is_compared_with_as_many_plain_features() -> None:
    """More features help by themselves: without this row, that would be taken for the techniques' doing."""
    by_name = {row.name: row for row in rows(["plain"])}
    assert len(by_name["plain at 4 t"].groups) == len(RECIPE)
    assert not by_name["the paper's recipe, g1 = g2 = 0"].regularised


def test_a_selection_of_one_group_has_nothing_to_regularise() -> None:
    def unregularised(selected: list[str]) -> bool:
        return any(row.name.startswith("GATE's selection, g1") for row in rows(selected))

    assert unregularised(["plain", "caption"]) and not unregularised(["plain"])


def test_single_taps_begin_with_what_they_are_compared_with() -> None:
    found = single_taps(TECHNIQUES, ["a", "b"])
    assert found[:2] == [(PLAIN, "a"), (PLAIN, "b")]
    assert len(found) == 2 * (1 + len(TECHNIQUES))
