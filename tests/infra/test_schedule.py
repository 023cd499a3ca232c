"""The scripts for cron and Slurm, run for real, with a `gatehouse` in the path that only says what it was asked."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from jobs import endings, verify

FOLDER = Path(__file__).parents[2] / "infra" / "schedule"
SPEC, STORE = "s3://b/spec.yaml", "s3://b/store"
EXTRACT, VERIFY = f"extract {SPEC}", f"verify --fast {STORE}"


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def run(folder: Path, *command: str, extract: int = 0, check: int = 0) -> tuple[int, list[str], str]:
    """Exit code, what `gatehouse` and `scontrol` were asked, and what was printed, where its commands end so."""
    program(
        folder, "gatehouse", f'echo "$@" >>"{folder}/log"; [ $1 = extract ] && exit {extract}; exit {check}'
    )
    program(folder, "srun", 'shift; exec "$@"')
    program(folder, "scontrol", f'echo "scontrol $@" >>"{folder}/log"')
    env = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "HOME": str(folder)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)
    log = folder / "log"
    return done.returncode, log.read_text().splitlines() if log.exists() else [], done.stdout + done.stderr


@pytest.mark.parametrize(
    ("extract", "check", "code", "asked"),
    [
        (endings.DONE, verify.SOUND, 0, [EXTRACT, VERIFY]),
        (endings.DONE, verify.FAULTY, 1, [EXTRACT, VERIFY]),
        (endings.SET_ASIDE, verify.SOUND, endings.SET_ASIDE, [EXTRACT, VERIFY]),
        (endings.TOO_MANY_BAD, verify.SOUND, endings.TOO_MANY_BAD, [EXTRACT, VERIFY]),
        (endings.HELD, verify.SOUND, 0, [EXTRACT]),
        (endings.STOPPED, verify.SOUND, endings.STOPPED, [EXTRACT]),
        (2, verify.SOUND, 2, [EXTRACT]),
        (137, verify.SOUND, 137, [EXTRACT]),
    ],
)
def test_a_night(extract: int, check: int, code: int, asked: list[str], tmp_path: Path) -> None:
    found = run(tmp_path, str(FOLDER / "nightly.sh"), SPEC, STORE, extract=extract, check=check)
    assert found[:2] == (code, asked)


def test_a_night_without_a_store(tmp_path: Path) -> None:
    """The store would be an empty name, and the spec's job had run already."""
    assert run(tmp_path, str(FOLDER / "nightly.sh"), SPEC)[:2] == (2, [])


@pytest.mark.parametrize(
    ("extract", "code", "asked"),
    [
        (endings.DONE, 0, [f"{EXTRACT} --share", VERIFY]),
        (endings.STOPPED, 0, [f"{EXTRACT} --share", "scontrol requeue 7"]),
        (endings.FAILED, 1, [f"{EXTRACT} --share"]),
    ],
)
def test_a_job_of_slurm(extract: int, code: int, asked: list[str], tmp_path: Path) -> None:
    """Stopped at the end of its time, it is queued again; `#SBATCH` lines are comments to everyone but Slurm."""
    found = run(tmp_path, "bash", str(FOLDER / "slurm.sh"), SPEC, STORE, extract=extract)
    assert found[:2] == (code, asked)


@pytest.mark.parametrize(("extract", "mailed"), [(endings.DONE, ""), (endings.FAILED, "went wrong\n")])
def test_a_line_of_cron(extract: int, mailed: str, tmp_path: Path) -> None:
    """A good night prints nothing, so no mail is sent; of another one the end of the log is."""
    lines = [line for line in (FOLDER / "crontab").read_text().splitlines() if line and line[0].isdigit()]
    (line,) = lines
    *when, command = line.split(None, 5)
    assert len(when) == 5 and "%" not in command, "a percent sign ends a command of cron's"
    (tmp_path / "credentials.env").touch()
    night = command.split(" && ")[-1].split()[0]
    program(tmp_path, "nightly.sh", f'echo "went wrong"; exit {extract}')
    code, _, printed = run(tmp_path, "sh", "-c", command.replace(night, str(tmp_path / "nightly.sh")))
    assert night.endswith("infra/schedule/nightly.sh") and (code, printed) == (0, mailed)
