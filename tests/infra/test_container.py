"""The container's recipe, as far as it can be judged without a builder; `make lint` has hadolint look at it too."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def instructions() -> list[tuple[str, str]]:
    """(keyword, arguments) of the Dockerfile, continuation lines joined."""
    lines = [
        line for line in (ROOT / "infra/Dockerfile").read_text().splitlines() if not line.startswith("#")
    ]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(words[0], words[1]) for line in joined.splitlines() if (words := line.split(None, 1))]


FOUND = instructions()


def of(keyword: str) -> list[str]:
    return [arguments for found, arguments in FOUND if found == keyword]


def test_all_that_is_installed_is_pinned() -> None:
    """But for Debian's own packages, whose old versions vanish, and our code, which brings nothing along."""
    installs = [part for run in of("RUN") for part in run.split("&&") if "pip install" in part]
    assert len(installs) == 3
    for install in installs:
        assert "--constraint /opt/gatehouse/infra/constraints.txt" in install or "--no-deps" in install
        assert "--no-cache-dir" in install
    assert re.fullmatch(r"BASE=python:3\.11-slim-\w+", of("ARG")[0]), "the constraints are for this Python"
    pinned = (ROOT / "infra/constraints.txt").read_text()
    assert all(f"\n{name}==" in pinned for name in ("torch", "boto3", "setuptools", "ray"))


def test_it_is_not_root_and_has_a_health_check() -> None:
    assert of("USER") == ["1000:1000"], "a number, by which Kubernetes sees that it is not root"
    rest = [keyword for keyword, _ in FOUND[FOUND.index(("USER", "1000:1000")) :]]
    assert "RUN" not in rest and "COPY" not in rest and len(of("HEALTHCHECK")) == 1
    assert not of("ENTRYPOINT"), "Ray's cluster launcher starts the image with `bash`"


def test_what_changes_often_comes_last() -> None:
    """So that a release is one small layer: torch, then the other packages, then the code."""
    order = [
        place
        for place, (_, arguments) in enumerate(FOUND)
        if re.search(r"constraints.txt torch$|boto3|--editable", arguments)
    ]
    code = [place for place, one in enumerate(FOUND) if one[0] == "COPY" and "/opt/gatehouse/jobs" in one[1]]
    assert len(order) == 3 and order[1] < code[0] < order[2]


def test_what_is_copied_is_there_and_sent_to_the_builder() -> None:
    """A path that .dockerignore leaves out fails the build; a package that is not copied, the container."""
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {source for arguments in of("COPY") for source in shlex.split(arguments)[:-1]}
    assert copied == kept
    assert all((ROOT / source).exists() for source in copied)
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"][
        "include"
    ]
    assert {name.rstrip("*") for name in packages} < copied
