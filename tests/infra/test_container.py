"""The container's recipe, as far as it can be judged without a builder; `make lint` has hadolint look at it too."""

from __future__ import annotations

import importlib.metadata
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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
    text = (ROOT / "infra/constraints.txt").read_text()
    pinned = {canonicalize_name(name) for name in re.findall(r"^([^#\s]+)==", text, re.MULTILINE)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert closure([*project["dependencies"], *extras["test"], *extras["dev"], "setuptools"]) - pinned == {
        "gatehouse"
    }


def closure(requirements: list[str]) -> set[str]:
    """Names of all packages that these bring here, those that only an extra of theirs brings included."""
    found: set[str] = set()
    seen: set[tuple[str, frozenset[str]]] = set()
    left = [(Requirement(one), frozenset({""})) for one in requirements]
    while left:
        one, asked_with = left.pop()
        if one.marker and not any(one.marker.evaluate({"extra": extra}) for extra in asked_with):
            continue
        name, extras = canonicalize_name(one.name), frozenset({"", *one.extras})
        found.add(name)
        if (name, extras) not in seen and name != "gatehouse":
            seen.add((name, extras))
            left += [(Requirement(text), extras) for text in importlib.metadata.requires(name) or []]
    return found


def test_commands_are_found_by_a_login_shell(tmp_path: Path) -> None:
    """Ray's launcher runs `ray start` in one, and Debian's /etc/profile sets PATH anew there."""
    set_here = [path for env in of("ENV") for path in re.findall(r"\bPATH=(\S+)", env)]
    path = (set_here or ["$PATH"])[0].replace("$PATH", "/usr/local/bin:/usr/bin:/bin")
    shell = ["bash", "--login", "-c", "echo $PATH"]
    env = {"PATH": path, "HOME": str(tmp_path)}
    found = subprocess.run(shell, env=env, capture_output=True, text=True, check=True).stdout
    assert path.split(":")[0] in found.strip().split(":")


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
