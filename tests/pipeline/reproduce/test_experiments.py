"""The recipes: every public data set has one, and none promises what it cannot keep."""

from __future__ import annotations

from typing import get_args

import pytest

from pipeline import presets
from pipeline.reproduce.experiments import EXPERIMENTS
from schemas.dataset import PublicName


def test_every_public_data_set_has_one() -> None:
    assert set(EXPERIMENTS) == set(get_args(PublicName))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_they_agree_with_their_presets(name: str) -> None:
    """A group that was renamed in a preset would keep a prompt that is not its data set's."""
    experiment = EXPERIMENTS[name]
    groups = {group.name for group in presets.read(experiment.preset).spec.groups}
    assert set(experiment.prompts) | experiment.left_out <= groups
    assert not set(experiment.prompts) & experiment.left_out


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_lines_are_of_heads(name: str) -> None:
    """And the paper's figures are the right way round: it gains by GATE everywhere."""
    experiment = EXPERIMENTS[name]
    assert {one.head for one in experiment.comparisons} == set(experiment.heads)
    told = [one for one in experiment.comparisons if one.without and one.gate]
    assert told and all(one.without.mean < one.gate.mean < 100 for one in told if one.without and one.gate)
