"""The benchmarks at a tiny size: the shape of what they report, never how fast anything is."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer import Typer
from typer.testing import CliRunner

from jobs import bench
from jobs.benchmarks import bytes as sizes
from jobs.benchmarks import extract, loader, report
from jobs.benchmarks.figures import Figure, Line, Measurement, in_turns
from jobs.benchmarks.read import NpyFiles
from jobs.benchmarks.workbench import PLAIN, QUICK, Workbench
from pipeline.features import GroupTap
from pipeline.meter import STAGES
from tests.tars import jpeg, make_tar

TINY = dataclasses.replace(QUICK, features=8, rows=12, reads=4, big_rows=2, vectors=300, actors=())


class Small(Workbench):
    """With one shard of eight pictures, whatever is asked for."""

    def shards(self, images: int) -> str:
        path = self.folder / "small.tar"
        if not path.exists():
            samples = [(f"{number}.jpg", jpeg(128, 128, seed=number)) for number in range(8)]
            make_tar(path, samples)
        return str(path)


@pytest.fixture(scope="module")
def workbench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    yield Small(tmp_path_factory.mktemp("bench"), None, TINY)


def check(found: dict[str, Any]) -> None:
    """Every ratio is that of the figures beside it."""
    assert found["lines"]
    for line in found["lines"]:
        for side in (line["ours"], line["baseline"]):
            assert 0 < side["min"] <= side["median"] <= side["max"] and side["what"]
        assert line["ratio"] == pytest.approx(line["ours"]["median"] / line["baseline"]["median"])
        assert line["better"] in ("higher", "lower") and line["unit"] and line["repetitions"] >= 1


@pytest.mark.parametrize("name", ["write", "read", "loader"])
def test_storage_measurements(workbench: Workbench, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`read` itself checks that both sides give the same values. Guards against measurements that broke unseen."""
    monkeypatch.setattr(loader, "_WORKERS", (0,))  # processes take seconds to start
    measured = importlib.import_module(f"jobs.benchmarks.{name}").measure(workbench)
    result = report.to_json(report.machine(), "tiny", {name: measured})
    check(json.loads(json.dumps(result))["measurements"][name])
    assert all(line.what.startswith("local") for line in measured.lines), "no S3 was named"


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a result file without what a reader needs to compare it with another."""
    monkeypatch.setattr(bench, "QUICK", TINY)
    monkeypatch.setattr(bench, "Workbench", Small)
    out = tmp_path / "bench.json"
    names = ["passes", "bytes", "pooled"]
    arguments = ["--quick", "--markdown", "--out", str(out), "--folder", str(tmp_path)]
    answer = _run([*arguments, *(word for name in names for word in ("--only", name))])
    assert answer.exit_code == 0, answer.output
    result = json.loads(out.read_text())
    assert result["version"] == 1 and result["scale"] == "quick" and list(result["measurements"]) == names
    assert {"device", "cpus", "load_before", "python", "libraries"} <= set(result["machine"])
    for found in result["measurements"].values():
        check(found)
        assert f"| {found['lines'][0]['what']} |".removeprefix("| ") in answer.output
    assert [line["ratio"] for line in result["measurements"]["passes"]["lines"]] == [1, 1]
    assert list(tmp_path.iterdir()) == [out], "the folder is left as it was"


def test_a_name_that_is_no_measurement() -> None:
    answer = _run(["--only", "speed"])
    assert answer.exit_code == 2
    assert "'speed' is no measurement; there are extract, passes, bytes" in " ".join(answer.output.split())


def test_the_worker_beside_the_bare_loop(workbench: Workbench) -> None:
    """Guards against a job whose outcome is not looked at: a shard that failed would be fast."""
    found = Measurement()
    extract._in_worker(workbench, found, "worker", [PLAIN])
    check({"lines": [line.to_json() for line in found.lines]})
    seconds = found.facts["worker"]["seconds_per_image"]
    stages = {f"job {stage}_s" for stage in STAGES}
    assert {"job wall_s", "job cpu_s", "bare wall_s"} | stages <= set(seconds)


def test_steady_leaves_out_start_and_end() -> None:
    """10 s of loading, 100 images at 5 a second, 10 s of the last upload: 5 a second."""
    trace = [
        (float(at), {"images": min(100.0, max(0.0, 5.0 * (at - 10))), "read_s": at / 2}) for at in range(41)
    ]
    found = extract.steady(trace, 100)
    assert found["images_per_s"] == pytest.approx(5)
    assert found["read_s"] == pytest.approx(0.1)


def test_steady_refuses_a_job_that_is_too_short() -> None:
    with pytest.raises(ValueError, match="16 images took too little time"):
        extract.steady([(0.0, {}), (1.0, {"images": 8.0}), (2.0, {"images": 16.0})], 16)


def test_turns() -> None:
    """A B A B: what disturbs the machine for a while must not fall on one side only."""
    calls: list[str] = []

    def call(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    values = in_turns(2, a=lambda: call("a"), b=lambda: call("b"))
    assert calls == ["a", "b", "a", "b"] and values == {"a": [1, 3], "b": [2, 4]}


def test_a_ratio_is_of_medians() -> None:
    line = Line("x", "MB/s", "higher", Figure("a", [1, 9, 3]), Figure("b", [2, 2, 40]))
    assert line.ratio == 1.5
    assert line.to_json()["ours"] == {"what": "a", "median": 3, "min": 1, "max": 9}


def test_the_reference_is_upsampled_to_the_largest() -> None:
    """Two images, 3 + 2 channels at 4 x 6: guards against a baseline that stores more than the reference."""
    features = [np.zeros((2, 3, 4, 6), np.float16), np.zeros((2, 2, 2, 3), np.float16)]
    header = 128
    assert len(sizes.reference_npy(features)) == 2 * (header + 2 * 5 * 4 * 6)
    assert len(sizes.native_npy(features)) == 2 * (header + 2 * (3 * 4 * 6 + 2 * 2 * 3))


def test_npy_files_give_what_was_written(tmp_path: Path) -> None:
    """Guards against a baseline that is fast because it reads something else."""
    generator = np.random.default_rng(0)
    shapes = {"a": (3, 2, 2), "b": (1, 4, 4)}
    features: dict[GroupTap, NDArray[np.generic]] = {
        ("g", tap): generator.normal(size=(2, *shape)) for tap, shape in shapes.items()
    }
    files = NpyFiles(str(tmp_path / "files"), features)
    files.write(3)  # the third is the first again
    found = files.read([2, 1])
    for (_, tap), values in features.items():
        np.testing.assert_array_equal(found[f"g/{tap}"], values[[0, 1]])


def _run(arguments: list[str]) -> Any:
    app = Typer()
    app.command()(bench.main)
    return CliRunner().invoke(app, arguments)
