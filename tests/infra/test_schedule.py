"""The scripts for cron and Slurm, run for real, with a `gatehouse` in the path that only says what it was asked."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from jobs import endings, verify
from tests.faults.harness import wait_until

FOLDER = Path(__file__).parents[2] / "infra" / "schedule"
SPEC, STORE = "s3://b/spec.yaml", "s3://b/store"
EXTRACT, VERIFY = f"extract {SPEC} --set store={STORE}", f"verify --fast {STORE}"
NIGHTLY = (str(FOLDER / "nightly.sh"), SPEC, STORE)


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
    done = subprocess.run(command, env=environment(folder), capture_output=True, text=True, timeout=30)
    return done.returncode, asked_in(folder), done.stdout + done.stderr


def environment(folder: Path) -> dict[str, str]:
    path = f"{folder}:{os.environ['PATH']}"
    return os.environ | {"PATH": path, "SLURM_JOB_ID": "7", "HOME": str(folder)}


def asked_in(folder: Path) -> list[str]:
    log = folder / "log"
    return log.read_text().splitlines() if log.exists() else []


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
    found = run(tmp_path, *NIGHTLY, extract=extract, check=check)
    assert found[:2] == (code, asked)


def test_a_night_without_a_store(tmp_path: Path) -> None:
    """The store would be an empty name, and the spec's job had run already."""
    assert run(tmp_path, *NIGHTLY[:2])[:2] == (2, [])


FINISHES = f"""echo "$@" >>"$HOME/log"
trap 'echo TERM >>"$HOME/log"; sleep 0.5; exit {endings.STOPPED}' TERM
while :; do sleep 0.1; done"""
"""A driver that takes half a second to end when it is told to."""


@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["it", "its group"])
def test_a_night_that_is_stopped(send: Callable[[int, int], None], tmp_path: Path) -> None:
    """The driver hears it once, since a second signal would end it at once, and is waited for, not left behind."""
    program(tmp_path, "gatehouse", FINISHES)
    with subprocess.Popen(NIGHTLY, env=environment(tmp_path), start_new_session=True) as night:
        wait_until(lambda: bool(asked_in(tmp_path)), "the driver to start")
        send(night.pid, signal.SIGTERM)
        assert night.wait(timeout=30) == endings.STOPPED
    assert asked_in(tmp_path) == [EXTRACT, "TERM"]


def test_a_job_of_rays_that_is_stopped(tmp_path: Path) -> None:
    """Ray sends the signal to every process of a job: the script must not pass it on."""
    program(tmp_path, "gatehouse", FINISHES)
    env = environment(tmp_path) | {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}
    with subprocess.Popen(NIGHTLY, env=env, start_new_session=True) as night:
        wait_until(lambda: bool(asked_in(tmp_path)), "the driver to start")
        os.killpg(night.pid, signal.SIGTERM)
        wait_until(lambda: not _alive(night.pid), "all of them to end")
    assert asked_in(tmp_path) == [EXTRACT, "TERM"]


def _alive(group: int) -> bool:
    """Whether a process group has members that have not ended."""
    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                return True
    return False


def test_a_driver_that_hangs(tmp_path: Path) -> None:
    """It gives the store up when the night is over, or no later night would do anything, and none would say so."""
    script = tmp_path / "nightly.sh"
    script.write_text((FOLDER / "nightly.sh").read_text().replace("22h", "1s").replace("10m", "1s"))
    program(tmp_path, "gatehouse", """echo "$@" >>"$HOME/log"; trap "" TERM; exec sleep 60""")
    done = subprocess.run(["sh", str(script), SPEC, STORE], env=environment(tmp_path), timeout=30)
    assert (done.returncode, asked_in(tmp_path)) == (128 + signal.SIGKILL, [EXTRACT])


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


def line_of_cron(folder: Path) -> str:
    """The command, with a nightly.sh in `folder`."""
    lines = [line for line in (FOLDER / "crontab").read_text().splitlines() if line and line[0].isdigit()]
    (line,) = lines
    *when, command = line.split(None, 5)
    assert len(when) == 5 and "%" not in command, "a percent sign ends a command of cron's"
    (folder / "credentials.env").touch()
    mine, places = re.subn(r"\S+/infra/schedule/nightly\.sh", str(folder / "nightly.sh"), command)
    assert places == 1
    return mine


@pytest.mark.parametrize(("extract", "mailed"), [(endings.DONE, ""), (endings.FAILED, "went wrong\n")])
def test_a_line_of_cron(extract: int, mailed: str, tmp_path: Path) -> None:
    """A good night prints nothing, so no mail is sent; of another one the end of the log is."""
    program(tmp_path, "nightly.sh", f'echo "went wrong"; exit {extract}')
    code, _, printed = run(tmp_path, "sh", "-c", line_of_cron(tmp_path))
    assert (code, printed) == (0, mailed)


def test_a_night_beside_the_one_before(tmp_path: Path) -> None:
    """It leaves the log alone, which the other still writes, and says nothing."""
    program(tmp_path, "nightly.sh", 'echo first; while [ ! -e "$HOME/end" ]; do sleep 0.1; done; echo last')
    command, log = line_of_cron(tmp_path), tmp_path / "night.log"
    with subprocess.Popen(["sh", "-c", command], env=environment(tmp_path)) as before:
        wait_until(lambda: log.exists() and log.read_text() == "first\n", "the first night to begin")
        program(tmp_path, "nightly.sh", "echo second")
        code, _, printed = run(tmp_path, "sh", "-c", command)
        assert (code, printed, log.read_text()) == (0, "", "first\n")
        (tmp_path / "end").touch()
        assert before.wait(timeout=30) == 0
    assert log.read_text() == "first\nlast\n"
