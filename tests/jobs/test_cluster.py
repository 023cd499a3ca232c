"""`gatehouse cluster check`: the shipped file beside a job, as a user would."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs import cluster
from jobs.cli import app
from schemas.cluster_file import FILL_IN

SHIPPED = Path(__file__).parents[2] / "ray_cluster.yaml"
SPEC = """
version: 1
store: {folder}/store
input: {{shards: embedded}}
image_size: [128, 128]
groups: [{{name: plain, prompt: a photo, t: 50, taps: legacy}}]
cluster: {{device: cuda, actors: 8}}
"""


@pytest.fixture
def filled(tmp_path: Path) -> str:
    path = tmp_path / "cluster.yaml"
    path.write_text(SHIPPED.read_text().replace(FILL_IN, "mine"))
    return str(path)


def check(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["cluster", "check", *arguments], env={"COLUMNS": "160"})
    return result.exit_code, result.output


def test_the_file_alone(filled: str) -> None:
    code, output = check(filled)
    assert code == cluster.SOUND and output.endswith("cluster check: sound\n")
    code, output = check(str(SHIPPED))
    assert code == cluster.WRONG and "problem: " in output and "metadata.image: found 'FILL-IN'" in output


def test_beside_a_job(filled: str, tmp_path: Path) -> None:
    """8 GPUs at 10 images a second each do a million images in 3 h 28 min, at 0.5 for a machine and hour for 13.89."""
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC.format(folder=tmp_path))
    wishes = ["--spec", str(spec), "--images", "1000000", "--rate", "10", "--price", "0.5"]
    code, output = check(filled, *wishes)
    assert code == cluster.SOUND, output
    for words in ("1,000,000", "8, a GPU each", "about 3 h 28 min", "about 13.89", "as given"):
        assert words in output
    assert re.search(r"network in +│ about [\d.]+ GiB of shards", output), "it is scaled"
    assert not (tmp_path / "store").exists(), "it only looks"
    spec.write_text(SPEC.format(folder=tmp_path).replace("actors: 8", "actors: 80"))
    code, output = check(filled, *wishes)
    assert code == cluster.WRONG and "cluster.actors is 80, the machines have room for 8" in output


def test_machines_that_ray_looks_up(filled: str, tmp_path: Path) -> None:
    """What the file does not say is no reason to refuse it."""
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC.format(folder=tmp_path))
    file = Path(filled)
    file.write_text(file.read_text().replace("{CPU: 4, GPU: 1, memory: 12884901888}", "{}"))
    code, output = check(filled, "--spec", str(spec))
    assert code == cluster.SOUND and "not said" in output, output


def test_a_wrong_spec(filled: str, tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC.format(folder=tmp_path).replace("legacy", "no-such-tap"))
    code, output = check(filled, "--spec", str(spec))
    assert code == 2 and "no-such-tap" in output
