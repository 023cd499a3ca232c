"""Every row of the probe is of the features that it names, and goals compare what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import families
from pipeline.embedded_figures import probe_figures, probes
from pipeline.embedded_figures.features import extract, legacy_taps
from pipeline.embedded_figures.latents import encoded
from pipeline.embedded_figures.probes import ALL_TAPS, RAW, UNTRAINED, Protocol, Scores, t_row
from pipeline.linear_probe import Training
from schemas.groups import Group
from tests.backbones import tiny
from tests.controls import write_controlnet
from tests.evaluation_scenes import scene

SCENES = [scene(number, classes=[1 + number % 2]) for number in range(6)]
PROTOCOL = Protocol(4, 2, 2, Training(side=8, steps=20, batch=64))


@pytest.fixture(scope="module")
def backbone() -> Any:
    return families.load(tiny("sd2-v"), dtype=torch.float32, device="cpu")


def test_rows(backbone: Any, tmp_path: Path) -> None:
    """Noise on each tap, techniques on the best."""
    control = Path(write_controlnet(tmp_path / "control", tiny("sd2-v")))
    latents = encoded(backbone, SCENES)
    found = probes.scores(backbone, SCENES, latents, control, PROTOCOL)
    taps = legacy_taps(backbone.folder)
    steered = [t_row(t, name) for t in (50, 200) for name in ("caption", probes.CONTROLNET, probes.BOTH)]
    rows = [
        RAW,
        UNTRAINED,
        *map(t_row, (0, 50, 100, 200, 400)),
        *steered,
        probes.TWO_SEEDS,
        probes.TWO_GROUPS,
    ]
    assert list(found) == rows
    assert list(found[t_row(100)]) == list(found[UNTRAINED]) == [*taps, ALL_TAPS]
    assert list(found[steered[0]]) == [probes.best_tap(found), ALL_TAPS]
    for by_tap in found.values():
        assert all(
            values.shape == (2,) and (values >= 0).all() and (values <= 100).all()
            for values in by_tap.values()
        )
    again = probes.scores(backbone, SCENES, latents, control, PROTOCOL)
    for row, by_tap in found.items():
        for tap, values in by_tap.items():
            np.testing.assert_array_equal(values, again[row][tap])


def test_seeds_take_draws_in_turn(backbone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against passes that nobody reads: with two draws for three seeds, each row is computed twice."""
    seen: list[Any] = []

    def keep(*arguments: Any) -> Any:
        seen.extend(arguments[2])
        return extract(*arguments)

    monkeypatch.setattr(probes, "extract", keep)
    latents, protocol = encoded(backbone, SCENES), Protocol(4, 3, 2, Training(side=8, steps=2, batch=16))
    found = probes.scores(backbone, SCENES, latents, None, protocol)
    assert len(seen) == 2 * len(dict(probes.groups_of(0, None)))
    assert {group["seed"] for group in seen} == {0, 1, 1000, 1001}
    assert all(len(values) == 3 for by_tap in found.values() for values in by_tap.values())


def test_without_a_controlnet(backbone: Any) -> None:
    rows = [row for row, _ in probes.groups_of(0, None)]
    assert t_row(50, "caption") in rows and not any(probes.CONTROLNET in row for row in rows)


def test_groups_are_what_rows_say() -> None:
    """All of a seed have its noise, but for the second draw; and each is a group that a spec takes."""
    groups = dict(probes.groups_of(3, Path("control")))
    made = {
        row: Group.model_validate({"taps": "legacy", "prompt": "a photo", **fields})
        for row, fields in groups.items()
    }
    assert len({group.name for group in made.values()}) == len(made)
    assert {row for row, group in made.items() if group.seed != 3} == {"t = 50 again, with other noise"}
    assert made[t_row(0)].timestep == 0 and made[t_row(0)].techniques[0].type == "no-noise"
    both = made[t_row(200, probes.BOTH)]
    assert (
        both.t == 200
        and both.prompt == "{caption}"
        and [one.type for one in both.techniques] == ["controlnet"]
    )
    assert made[t_row(50, "caption")].techniques == [] and made[t_row(50)].prompt == "a photo"


def test_another_network_sees_what_the_engines_sees(backbone: Any) -> None:
    """With the trained network in the untrained one's place, its features are the engine's own."""
    engine = extract(backbone.folder, SCENES, [{"name": "plain", "t": 50}], "float16")
    found = probes.features_of(backbone.network, backbone, SCENES, encoded(backbone, SCENES), seed=0)
    assert list(found) == legacy_taps(backbone.folder)
    for tap, values in found.items():
        np.testing.assert_allclose(values, engine[f"plain/{tap}"], rtol=0.01, atol=0.01)


def test_untrained_weights_follow_the_seed(backbone: Any) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (probes.untrained(backbone, seed).conv_in.weight for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected), "others' random numbers are left alone"
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first, backbone.network.conv_in.weight)


def test_raw_features() -> None:
    """A cell has its 64 pixels of three colours, and where it lies."""
    (maps,) = probes.raw_features(SCENES[:2]).values()
    assert maps.shape == (2, 3 * 64 + 2, 8, 8)
    cell = SCENES[1].pixels[16:24, 40:48].transpose(2, 0, 1) / 255
    np.testing.assert_allclose(maps[1, :192, 2, 5], cell.ravel(), rtol=1e-6)
    np.testing.assert_allclose(maps[1, 192:, 2, 5], [2 / 7, 5 / 7], rtol=1e-6)


def test_taps_are_joined_at_the_finest_resolution() -> None:
    """Channels of all taps of all groups, and of one tap only its own."""
    rng = np.random.default_rng(0)
    first, second = ({"coarse": rng.random((1, 2, 2, 2)), "fine": rng.random((1, 3, 4, 4))} for _ in range(2))
    joined = probes.joined([first, second], ALL_TAPS)
    assert joined.shape == (1, 10, 4, 4)
    torch.testing.assert_close(joined[:, 7:], torch.from_numpy(second["fine"]).float())
    torch.testing.assert_close(joined[0, :2, 0, 0], torch.from_numpy(first["coarse"][0, :, 0, 0]).float())
    assert probes.joined([first, second], "coarse").shape == (1, 4, 2, 2)


def made_up(**changes: float) -> Scores:
    """Scores of three seeds that reach every goal; `changes` add points to rows on all taps."""
    by_seed = np.array([-1.0, 0.0, 1.0])
    means = {
        t_row(0): 32.0,
        t_row(50): 30.0,
        t_row(100): 28.0,
        t_row(200): 26.0,
        t_row(400): 24.0,
        t_row(50, "caption"): 31.0,
        t_row(50, probes.CONTROLNET): 31.0,
        t_row(200, "caption"): 27.0,
        probes.TWO_SEEDS: 30.5,
        probes.TWO_GROUPS: 33.0,
    }
    found: Scores = {
        RAW: {RAW: 12 + by_seed / 10},
        UNTRAINED: {"a": 13 + by_seed, "b": 14 + by_seed, ALL_TAPS: 29 + by_seed},
    }
    for row, mean in means.items():
        value = mean + changes.get(row, 0) + by_seed
        found[row] = {"a": value - 5, "b": value, ALL_TAPS: value + 2}
    return found


def goals(scores: Scores) -> dict[str, bool | None]:
    return {one.what: one.reached for one in probe_figures.figures(scores) if one.goal is not None}


def test_every_goal_can_be_reached() -> None:
    """They are about the best single tap, which is neither the first nor all together."""
    found = goals(made_up())
    assert len(found) == 8 and all(found.values())
    assert "linear probe, t = 50, best single tap (b)" in found
    assert "linear probe, best single tap beside the untrained network's (b)" in found


@pytest.mark.parametrize(
    ("row", "change", "missed"),
    [
        (t_row(50, "caption"), -1.5, "linear probe, b: caption, t = 50, minus plain"),
        (t_row(50, probes.CONTROLNET), -1.0, "linear probe, b: ControlNet, t = 50, minus plain"),
        (t_row(100), 3.0, "linear probe, b: steps of t = 0, 50, 100, 200, 400 at which the mean falls"),
        (t_row(400), 6.5, "linear probe, b: t = 50 minus t = 400"),
    ],
)
def test_every_goal_can_be_missed(row: str, change: float, missed: str) -> None:
    """By the row that it is about."""
    assert goals(made_up(**{row: change}))[missed] is False


def test_gains_are_paired_by_seed() -> None:
    """All rows rise and fall with the seed together: the gain of 1 has no spread."""
    figures = {one.what: one.value for one in probe_figures.figures(made_up())}
    gain = figures["linear probe, b: caption, t = 50, minus plain"]
    assert (gain.mean, gain.low, gain.high) == pytest.approx((1, 1, 1))
    assert figures[f"linear probe, b: {probes.TWO_GROUPS}, minus {probes.TWO_SEEDS}"].mean == pytest.approx(
        2.5
    )
