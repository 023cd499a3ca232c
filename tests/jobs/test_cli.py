"""The command line hands over what it was given, and turns users' errors into messages and exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from schemas.captions import CaptionSpec
from schemas.spec import ExtractSpec

SPEC = """\
version: 1
store: s
input: {shards: "*.tar"}
image_size: [64, 64]
groups: [{name: plain, taps: legacy, t: 50}]
"""


class Job(ModuleType):
    """Stands for a job's module: keeps what it was called with; answers with an exit code or an error."""

    def __init__(self, answer: int | Exception) -> None:
        super().__init__("job")
        self.answer = answer
        self.arguments: tuple[Any, ...] = ()
        self.options: dict[str, Any] = {}

    def run(self, *arguments: Any, **options: Any) -> int:
        self.arguments, self.options = arguments, options
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    shard = run


def put(monkeypatch: pytest.MonkeyPatch, name: str, answer: int | Exception = 0) -> Job:
    job = Job(answer)
    monkeypatch.setitem(sys.modules, f"jobs.{name}", job)
    return job


@pytest.fixture
def spec(tmp_path: Path) -> str:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    return str(path)


COMMANDS = [
    "extract",
    "caption",
    "train-lora",
    "presets",
    "taps",
    "shard",
    "inspect",
    "status",
    "verify",
    "gc",
]
EMBEDDED = ["embedded scenes", "embedded train", "embedded evaluate"]


@pytest.mark.parametrize("command", [*COMMANDS, *EMBEDDED])
def test_every_command_has_help(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"], prog_name="gatehouse")
    assert result.exit_code == 0
    assert f"gatehouse {command}" in result.output


def test_help_and_a_wrong_spec_load_neither_torch_nor_ray(tmp_path: Path) -> None:
    """Their import takes seconds; a typo in a spec should not wait for them."""
    code = (
        "import sys\nfrom jobs.cli import main\ntry:\n    main(sys.argv[1:])\n"
        "finally:\n    print(sorted({'torch', 'ray', 'zarr', 'diffusers'} & set(sys.modules)))"
    )
    spec = str(tmp_path / "none.yaml")
    for arguments in (["--help"], ["extract", spec], ["caption", spec], ["train-lora", spec], ["presets"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
        )
        assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_extract_hands_over_everything(monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    job = put(monkeypatch, "extract", 3)
    options = [
        "--set",
        "seed=4",
        "--set",
        "store=t",
        "--limit",
        "5",
        "--dry-run",
        "--retry-failed",
        "--serial",
        "--share",
        "--trace",
        "t.json",
    ]
    result = CliRunner().invoke(
        app, ["extract", spec, *options, "--retry-reason", "io", "--retry-reason", "x"]
    )
    assert result.exit_code == 3  # the job's own
    (handed,) = job.arguments
    assert isinstance(handed, ExtractSpec)
    assert (handed.seed, handed.store) == (4, "t")
    assert job.options == {
        "limit": 5,
        "dry_run": True,
        "retry_failed": True,
        "retry_reasons": ("io", "x"),
        "serial": True,
        "share": True,
        "trace": "t.json",
    }


def test_embedded_hands_over_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[Any, ...]] = []
    job = ModuleType("jobs.embedded")

    def make_scenes(out: str, **options: Any) -> int:
        called.append((out, options))
        return 0

    def train_stage(stage: str, work: str, **options: Any) -> int:
        called.append((stage, work, options))
        return 5

    vars(job).update(make_scenes=make_scenes, train_stage=train_stage, recipe_of=lambda name: f"the {name}")
    monkeypatch.setitem(sys.modules, "jobs.embedded", job)
    evaluate = put(monkeypatch, "evaluate_embedded", 0)
    scenes = [
        "scenes",
        "--out",
        "o",
        "--stamps",
        "s",
        "--seen",
        "3",
        "--held-out",
        "2",
        "--drawn",
        "4",
        "--per-shard",
        "1",
    ]
    runner = CliRunner()
    assert runner.invoke(app, ["embedded", *scenes]).exit_code == 0
    train = ["train", "vae", "--work", "w", "--minutes", "9", "--recipe", "gpu"]
    assert runner.invoke(app, ["embedded", *train]).exit_code == 5
    options = ["--shards", "x", "--out", "o", "--loras", "l", "--only", "a", "--only", "b", "--quick"]
    assert runner.invoke(app, ["embedded", "evaluate", *options]).exit_code == 0
    assert called == [
        ("o", {"stamps": "s", "seen": 3, "held_out": 2, "drawn": 4, "per_shard": 1}),
        ("vae", "w", {"minutes": 9.0, "recipe": "the gpu"}),
    ]
    assert evaluate.options == {
        "backbone": "embedded",
        "controlnet": None,
        "loras": "l",
        "shards": "x",
        "target": None,
        "out": "o",
        "only": ["a", "b"],
        "quick": True,
    }


def test_extract_defaults(monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    job = put(monkeypatch, "extract")
    assert CliRunner().invoke(app, ["extract", spec]).exit_code == 0
    assert job.options == {
        "limit": None,
        "dry_run": False,
        "retry_failed": False,
        "retry_reasons": (),
        "serial": False,
        "share": False,
        "trace": None,
    }


def test_caption_hands_over_everything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "captions.yaml"
    path.write_text("version: 1\ncaptions: c\ninput: {shards: '*.tar'}\nmodel: {source: m}\n")
    job = put(monkeypatch, "caption", 3)
    options = ["--set", "prompt=a photo of", "--limit", "5", "--dry-run", "--serial"]
    assert CliRunner().invoke(app, ["caption", str(path), *options]).exit_code == 3
    (handed,) = job.arguments
    assert isinstance(handed, CaptionSpec)
    assert (handed.prompt, handed.captions) == ("a photo of", "c")
    assert job.options == {"limit": 5, "dry_run": True, "serial": True}
    result = CliRunner().invoke(app, ["caption", str(path), "--set", "modl=1"])
    assert result.exit_code == 2 and "modl: unknown key; allowed: model" in result.stderr


@pytest.mark.parametrize(
    ("line", "arguments", "options"),
    [
        ("presets", (None,), {}),
        ("presets dift", ("dift",), {}),
        ("shard a.jpg b --out o --shard-size 9", (["a.jpg", "b"], "o", 9), {}),
        ("inspect s --out p.png --rows 2", ("s",), {"out": "p.png", "rows": 2}),
        ("verify s --fast", ("s",), {"fast": True}),
        ("gc s --dry-run --abandoned", ("s",), {"dry_run": True, "abandoned": True}),
    ],
)
def test_other_commands_hand_over_everything(
    monkeypatch: pytest.MonkeyPatch, line: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    job = put(monkeypatch, line.split()[0])
    result = CliRunner().invoke(app, line.split())
    assert result.exit_code == 0, result.output
    assert (job.arguments, job.options) == (arguments, options)


@pytest.mark.parametrize("command", ["inspect", "verify", "gc"])
def test_exit_codes_of_jobs_reach_the_shell(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    put(monkeypatch, command, 1)
    assert CliRunner().invoke(app, [command, "s"]).exit_code == 1


def test_an_unknown_key_is_a_message_with_exit_code_2(spec: str) -> None:
    Path(spec).write_text(SPEC + "sede: 1\n")
    result = CliRunner().invoke(app, ["extract", spec, "--set", "outputt=1"])
    assert result.exit_code == 2
    first, second = result.stderr.splitlines()
    assert first.startswith(f"{spec}:6:1: sede: unknown key; allowed: seed, version, ")
    assert second.startswith("--set outputt: unknown key; allowed: output, version, ")
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("store s: wrong"), 2),
        (FileNotFoundError("store s: wrong"), 1),
        (PermissionError("store s: wrong"), 1),
    ],
)
def test_users_errors_are_messages(monkeypatch: pytest.MonkeyPatch, error: Exception, code: int) -> None:
    put(monkeypatch, "verify", error)
    result = CliRunner().invoke(app, ["verify", "s"])
    assert (result.exit_code, result.stderr) == (code, "store s: wrong\n")


@pytest.mark.parametrize("arguments", [["--debug", "verify", "s"], ["verify", "s"]])
def test_our_own_errors_and_debug_show_tracebacks(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    error = ValueError("wrong") if arguments[0] == "--debug" else AssertionError("ours")
    put(monkeypatch, "verify", error)
    assert CliRunner().invoke(app, arguments).exception is error


@pytest.mark.parametrize(
    "line", ["extract", "extract a b", "extract a --nope", "extract a --limit 0", "nope"]
)
def test_wrong_usage_is_exit_code_2(line: str) -> None:
    assert CliRunner().invoke(app, line.split()).exit_code == 2
