"""`gatehouse taps` on folders that hold configs alone."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs import taps
from jobs.cli import app
from schemas.spec import Backbone
from tests import full_size


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("taps") / "sd15"
    return full_size.write(folder, "StableDiffusionPipeline", full_size.SD_15)


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return full_size.write(tmp_path_factory.mktemp("taps") / "flux", "FluxPipeline", full_size.FLUX)


def printed(
    capsys: pytest.CaptureFixture[str],
    folder: Path | str,
    *,
    size: str | None = None,
    match: str | None = None,
) -> list[str]:
    assert taps.run(Backbone(source=str(folder)), image_size=size, match=match) == taps.DONE
    return capsys.readouterr().out.splitlines()


def rows(lines: list[str]) -> dict[str, list[str]]:
    """Tap -> the other columns."""
    cells = [line.split() for line in lines]
    return {one[0]: [one[1], " ".join(one[2:-1]), one[-1]] for one in cells if one and one[-1].endswith("%")}


def test_full_size_sd15(sd15: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without weights: all 197 taps and `attn`, at the size of training; figures from the published network."""
    started = time.monotonic()
    lines = printed(capsys, sd15)
    assert time.monotonic() - started < 10
    assert lines[0] == f"{sd15}: UNet2DConditionModel, 198 taps"
    assert lines[1] == "images 512 high and 512 wide, latents 4x64x64, 77 tokens of text"
    assert lines[2].startswith("a pass takes 803.")
    found = rows(lines)
    assert len(found) == 198 and [*found][:1] + [*found][-1:] == ["unet-in", "attn"]
    assert found["unet-in"] == ["4x64x64", "32.0 KiB", "0.0%"]
    assert found["up-level1-upsampler-out"] == ["1280x32x32", "2.5 MiB", "54.6%"]
    assert found["up-level1-repeat0-vit-block0-cross-map"][0] == "8x256x77"
    assert found["attn"][:2] == ["154x64x64", "1.2 MiB"]
    assert found["unet-out"][2] == "100.0%"
    assert all(len(line) <= 80 for line in lines if line.split() and line.split()[0] in found)
    assert next(
        line for line in lines if line.startswith("set legacy (10.6 MiB, 100.0%)")
    )  # 3,520 channels in all
    assert next(
        line for line in lines if line.startswith("set middle (2.5 MiB, 54.6%): up-level1-upsampler-out")
    )
    assert (
        "attn: cross-attention of 6 layers in one picture; its stages, strides and tokens can be set" in lines
    )


def test_size_and_match(sd15: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(printed(capsys, sd15, size="256x512", match="up-*sampler-out"))
    assert {tap: row[0] for tap, row in found.items()} == {
        "up-level0-upsampler-out": "1280x8x16",
        "up-level1-upsampler-out": "1280x16x32",
        "up-level2-upsampler-out": "640x32x64",
    }
    lines = printed(capsys, sd15, size="256", match="cross-map")
    assert lines[0].endswith("16 of 198 taps") and len(rows(lines)) == 16


def test_what_is_refused_whole_is_marked(flux: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A transformer, whose config says no size; its maps of 4,096 tokens are too large, pooled ones are not."""
    lines = printed(capsys, flux)
    found = rows(lines)
    assert lines[1].startswith("images 1024 high and 1024 wide, latents 16x128x128, 512 tokens")
    assert found["vit-block56-self-map"][:2] == ["24x4096x4096", "768.0 MiB*"]
    assert found["vit-block56-cross-map"][:2] == ["24x4096x512", "96.0 MiB"]
    assert found["vit-block28-norm"][0] == "3072x64x64" and 45 < float(found["vit-block28-norm"][2][:-1]) < 60
    assert "* more than 1.0 GiB in float32, and refused: take it pooled" in lines
    assert not any(line.startswith("set legacy") for line in lines)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image-size", "64x"], "--image-size is '64x'; give N or HxW in pixels"),
        (["--image-size", "0"], "--image-size is '0'"),
        (["--image-size", "100"], "both sides must be multiples of 8"),
        (
            ["--match", "self-maps"],
            "no tap of 'embedded' matches 'self-maps'; leave out --match to see all 198",
        ),
    ],
)
def test_wrong_arguments(options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["taps", "embedded", *options])
    assert result.exit_code == 2
    assert message in result.stderr


def test_wrong_backbones(tmp_path: Path) -> None:
    for source, message in (
        ("no/such", "is no folder here, so it is a hub id"),
        (str(tmp_path), "model_index.json"),
    ):
        result = CliRunner().invoke(app, ["taps", source])
        assert result.exit_code == 2 and message in result.stderr


def test_the_command() -> None:
    result = CliRunner().invoke(app, ["taps", "embedded", "--match", "mid-vit-out", "--image-size", "64"])
    assert result.exit_code == 0 and "mid-vit-out" in result.stdout
