"""Spec files: YAML in, a checked model out, and every problem worded at once (`schemas.problems`).

A problem is one line: where (`spec.yaml:12:5`, line and column, or `--set KEY`), the dotted key, what was found
and what is allowed. Checks that need more than the model (tap names depend on the backbone) come in as `check`. A
selection that an extract spec names as its groups is read too (`schemas.selected`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import fsspec
import yaml
from pydantic import BaseModel, ValidationError

from schemas.problems import LAST, Path, Problem, Source, dotted, position_of, show, word
from schemas.selected import selected
from schemas.spec import ExtractSpec

M = TypeVar("M", bound=BaseModel)


class SpecError(ValueError):
    """A spec that cannot be used; the message has one line for each problem."""


def load(
    path_or_url: str,
    overrides: Sequence[str] = (),
    model: type[M] = ExtractSpec,  # type: ignore[assignment]
    check: Callable[[M], Iterable[tuple[Path, str]]] | None = None,
) -> M:
    """The checked spec in the YAML file at a path or fsspec URL.

    Each override is `KEY=VALUE` as given to `--set`: KEY is dotted (`groups.0.prompt`), VALUE is YAML. Later
    ones win. `check` finds what the model alone cannot know to be wrong, as (path of the value, message). Raises
    SpecError with all problems; when the file is of another version, with that one only.
    """
    data, root, problems = _parse(_read(path_or_url), path_or_url)
    applied: list[Path] = []
    for override in overrides:
        try:
            key, value = _parse_override(override)
            data = _replace(data, key, value)
            applied.append(key)
        except SpecError as error:
            problems.append((LAST, str(error)))
    source = Source(path_or_url, root, applied)
    data, wrong = _with_groups(data, source) if model is ExtractSpec else (data, [])
    problems += wrong
    try:
        spec = model.model_validate(data)
        if check and not problems:
            problems += [source.problem(path, message) for path, message in check(spec)]
    except ValidationError as error:
        # Groups that a selection should have given are not found wrong a second time.
        details = [e for e in error.errors() if not (wrong and e["loc"] == ("groups",))]
        other_version = [e for e in details if e["loc"] == ("version",) and e["type"] == "literal_error"]
        if other_version:
            problems, details = [], other_version
        schema = model.model_json_schema()
        problems += [problem for e in details if (problem := word(e, schema, data, source))]
    if problems:
        raise SpecError("\n".join(dict.fromkeys(text for _, text in sorted(problems))))
    return spec


def read(path_or_url: str) -> tuple[Any, Source, list[Problem]]:
    """Any YAML file: its data, where each value stands in it, and keys that are given twice.

    Raises:
        SpecError: no such file, or no valid YAML.
    """
    data, root, problems = _parse(_read(path_or_url), path_or_url)
    return data, Source(path_or_url, root, []), problems


def dump(spec: BaseModel) -> str:
    """The spec as YAML with all defaults written out; `load` reads it back, but for which selection groups are of."""
    # All beyond ASCII is escaped: as themselves, characters such as U+0085 would be read back as line breaks.
    return yaml.safe_dump(spec.model_dump(exclude={"selection"}), sort_keys=False, allow_unicode=False)


def _with_groups(data: Any, source: Source) -> tuple[Any, list[Problem]]:
    """A spec's data with the groups of the selection that it names, if any, and a record of where they came from."""
    if not isinstance(data, dict):
        return data, []
    if data.get("selection") is not None:
        text = (
            "is filled in when a selection is read; leave it out, and give the selection's path as `groups`"
        )
        return {**data, "selection": None}, [source.problem(("selection",), text, of_key=True)]
    if not isinstance(data.get("groups"), str):
        return data, []
    try:
        groups, found = selected(data["groups"])
    except ValueError as error:
        return data, [source.problem(("groups",), str(error))]
    return {**data, "groups": groups, "selection": found}, []


def _read(path_or_url: str) -> str:
    try:
        with fsspec.open(path_or_url, "rb") as file:
            return bytes(file.read()).decode("utf-8-sig")
    except FileNotFoundError:
        raise SpecError(f"{path_or_url}: there is no such file; give the path or URL of a spec") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{path_or_url}: is no UTF-8 text (byte {error.start}); a spec is YAML") from None
    except Exception as error:  # plugins raise their client library's own types
        raise SpecError(f"{path_or_url}: cannot be read: {error}") from error


def _parse(text: str, name: str) -> tuple[Any, yaml.Node, list[Problem]]:
    """The file's data, its node tree (which knows lines and columns), and keys that are given twice."""
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is not None:
            twice = list(
                _duplicates(root, name)
            )  # first, since construction expands merge keys (`<<`) in place
            return loader.construct_document(root), root, twice
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        because = ", ".join(part for part in (error.context, error.problem) if part)
        raise SpecError(f"{name}{place}: is not valid YAML: {because}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that does not exist
        raise SpecError(f"{name}: is not valid YAML: {' '.join(str(error).split())}") from None
    raise SpecError(f"{name}: is empty; a spec is a YAML mapping")


def _duplicates(root: yaml.Node, name: str) -> Iterator[Problem]:
    """Keys that a mapping has twice: YAML forbids it, the library would silently keep the last."""
    stack: list[tuple[Path, yaml.Node]] = [((), root)]
    seen: set[int] = set()  # an alias gives the same node again, even inside itself
    while stack:
        path, node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            stack += [((*path, index), item) for index, item in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            first: dict[str, yaml.Node] = {}
            for key, value in node.value:
                inside: Path = (*path, str(key.value))
                stack.append((inside, value))
                before = first.setdefault(str(key.value), key)
                if before is not key:
                    (line, column), (first_line, _) = position_of(key), position_of(before)
                    what = f"{dotted(inside)}: given twice, first in line {first_line}; keep one"
                    yield (line, column), f"{name}:{line}:{column}: {what}"


def _parse_override(override: str) -> tuple[Path, Any]:
    key, equals, text = override.partition("=")
    parts = tuple(key.strip().split("."))
    if not equals or not all(parts):
        raise SpecError(f"--set {override}: found no KEY=VALUE; allowed: a dotted key, as in groups.0.seed=1")
    try:
        return parts, yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        because = getattr(error, "problem", error)
        raise SpecError(f"--set {key}: found {text!r}, which is not valid YAML: {because}") from None


def _replace(data: Any, key: Path, value: Any, done: Path = ()) -> Any:
    """A copy of `data` with `value` at `key`: a copy, since a YAML alias lets two places share one object."""
    if not key:
        return value
    part, rest, inside = key[0], key[1:], (*done, key[0])
    complaint = f"--set {dotted((*done, *key))}: {dotted(done)}: found {show(data)}"
    if isinstance(data, list):
        if not (str(part).isdecimal() and int(part) < len(data)):
            allowed = f"0 to {len(data) - 1}" if data else "the whole list at once"
            raise SpecError(f"{complaint}, which has no item {part!r}; allowed: {allowed}")
        return [_replace(old, rest, value, inside) if i == int(part) else old for i, old in enumerate(data)]
    if data is not None and not isinstance(data, dict):
        raise SpecError(f"{complaint}, which has no keys; allowed: --set {dotted(done)}=VALUE")
    old = data or {}
    return {**old, part: _replace(old.get(part), rest, value, inside)}
