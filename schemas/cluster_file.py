"""The cluster launcher's file, `ray_cluster.yaml`: what its machines offer, and what is wrong with it.

Ray's own schema, which lies in its wheel, says which keys there are. It accepts files that open a cluster to the
world or that never come up, so a few rules are added: values still to be filled in, token authentication, nothing
public, and what Ray itself checks only once machines are paid for.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any

from jsonschema import Draft7Validator
from jsonschema.exceptions import ValidationError

from schemas import specfile
from schemas.problems import Path, Source

FILL_IN = "FILL-IN"
"""Stands in the shipped file where a user's own value belongs."""
_SCHEMA = "autoscaler/ray-schema.json"
_TOKEN_MODE = "RAY_AUTH_MODE=token"
_MODE = re.compile(r"""\bRAY_AUTH_MODE=["']?([^\s"';&]*)""")
_TOKEN_FILE = "~/.ray/auth_token"
_MAX_WORKERS = 2
"""Ray's own, where a file says nothing."""


@dataclass(frozen=True)
class Workers:
    """The worker machines of one kind."""

    name: str
    most: int
    """Machines of this kind at once."""
    cpus: int | None
    gpus: int | None
    """None, as for CPUs, where the file leaves it to Ray to look them up."""
    memory: int | None
    """Bytes that Ray may give out, None where the file does not say."""


@dataclass(frozen=True)
class ClusterFile:
    """What a file says, as far as a job needs to know."""

    workers: list[Workers]
    problems: list[str]
    """One line each: where, which key, what was found and what to do; none in a file that can be used."""


def load(path_or_url: str) -> ClusterFile:
    """Read and check a file.

    Raises:
        SpecError: no such file, or no valid YAML mapping.
    """
    try:
        data, source, problems = specfile.read(path_or_url)
    except specfile.SpecError as error:
        if not isinstance(error.__context__, FileNotFoundError):
            raise
        raise specfile.SpecError(
            f"{path_or_url}: there is no such file; give the path or URL of a cluster file, as ray_cluster.yaml"
        ) from None
    if not isinstance(data, dict):
        raise specfile.SpecError(f"{path_or_url}: is no mapping; give a cluster file, as ray_cluster.yaml")
    wrong = [(tuple(error.absolute_path), _words(error)) for error in _schema().iter_errors(data)]
    found = list(wrong or _rules(data))  # what the rules look at is of the kind that the schema says
    problems += [
        source.problem(path, text, missing=True) for path, text in [*_unfilled(data, source), *found]
    ]
    lines = [text for _, text in sorted(problems)]
    return ClusterFile([] if wrong else _workers(data), lines)


def _schema() -> Draft7Validator:
    """Of the installed Ray, found without importing it, which takes a second."""
    ray = importlib.util.find_spec("ray")
    assert ray is not None and ray.origin is not None, "Ray is one of our dependencies"
    return Draft7Validator(json.loads((File(ray.origin).parent / _SCHEMA).read_text()))


def _words(error: ValidationError) -> str:
    allowed = f"; what it means: {what}" if (what := error.schema.get("description")) else ""
    return f"{error.message} (Ray's schema){allowed}"


def _unfilled(data: Any, source: Source) -> Iterator[tuple[Path, str]]:
    """Values still to be filled in, each once: an alias gives its anchor's place."""
    seen = set()
    for path, text in _texts(data, ()):
        place = source.place(path)
        if FILL_IN in text and place not in seen:
            seen.add(place)
            yield path, f"found {text!r}; fill in your own value"


def _texts(data: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(data, str):
        yield path, data
    elif isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from _texts(value, (*path, key))


def _rules(data: dict[str, Any]) -> Iterator[tuple[Path, str]]:
    """What Ray's schema does not say; `data` is valid by it."""
    kinds = data.get("available_node_types", {})
    if (head := data.get("head_node_type")) not in kinds:
        yield (
            ("head_node_type",),
            f"is {head!r}; name one of available_node_types: {', '.join(kinds) or 'none given'}",
        )
    docker = data.get("docker", {})
    if not docker.get("image"):
        yield (
            ("docker",),
            "has no image, so nodes come without Gatehouse; give one made from infra/Dockerfile",
        )
    modes = {kind: _auth_mode(data, kind) for kind in ("head", "worker")}
    if without := [f"the {kind} has {mode or 'none'}" for kind, mode in modes.items() if mode != "token"]:
        yield (
            ("docker", "run_options"),
            "token authentication is off, so who reaches a port runs code there: of RAY_AUTH_MODE,"
            f" {' and '.join(without)}; add '--env {_TOKEN_MODE}'",
        )
    if _TOKEN_FILE not in data.get("file_mounts", {}):
        yield ("file_mounts",), f"brings the nodes no token; add '{_TOKEN_FILE}: {_TOKEN_FILE}'"
    yield from _public(data)


def _auth_mode(data: dict[str, Any], kind: str) -> str | None:
    """RAY_AUTH_MODE of a `head` or `worker`: as its container has it, unless the command that starts Ray sets it."""
    docker = data.get("docker", {})
    options = [*docker.get("run_options", []), *docker.get(f"{kind}_run_options", [])]
    commands = [one for one in data.get(f"{kind}_start_ray_commands", []) if "ray start" in one]
    before = [one.partition("ray start")[0] for one in commands]
    found = [mode for text in [*options, *before] for mode in _MODE.findall(text)]
    return found[-1] if found else None


def _public(data: dict[str, Any]) -> Iterator[tuple[Path, str]]:
    """What would make a machine reachable from outside."""
    if not data["provider"].get("use_internal_ips"):
        yield (
            ("provider", "use_internal_ips"),
            "is not true, so Ray looks for a subnet that gives public addresses, and talks to machines by those; set it"
            " to true, and name a private subnet",
        )
    for number, command in enumerate(data.get("head_start_ray_commands", [])):
        if "--dashboard-host" in command:
            yield (
                ("head_start_ray_commands", number),
                "opens the dashboard beyond the head itself; leave --dashboard-host out, `ray dashboard FILE` brings"
                " it to you",
            )
    if data["provider"]["type"] != "aws":
        return
    for name, kind in data.get("available_node_types", {}).items():
        path, config = ("available_node_types", name, "node_config"), kind["node_config"]
        if not config.get("SecurityGroupIds"):
            yield (
                path,
                "has no SecurityGroupIds, so Ray makes a group with SSH open to the world; name one that lets in"
                " nothing but itself",
            )
        if any(
            interface.get("AssociatePublicIpAddress") for interface in config.get("NetworkInterfaces", [])
        ):
            yield (
                (*path, "NetworkInterfaces"),
                "give machines public addresses, whatever the subnet says; leave out AssociatePublicIpAddress",
            )


def _workers(data: dict[str, Any]) -> list[Workers]:
    """None where it is not said which kind is the head."""
    kinds, head = data.get("available_node_types", {}), data.get("head_node_type")
    if head not in kinds:
        return []
    most = data.get("max_workers", _MAX_WORKERS)
    looked_up = None if data["provider"]["type"] == "aws" else 0  # of what a file leaves out
    return [
        Workers(
            name,
            min(most, kind.get("max_workers", most)),
            cpus=kind["resources"].get("CPU", looked_up),
            gpus=kind["resources"].get("GPU", looked_up),
            memory=kind["resources"].get("memory"),
        )
        for name, kind in kinds.items()
        if name != head
    ]
