"""Words for what is wrong with a spec: where, which key, what was found, what is allowed.

Pydantic finds the errors. What is allowed is read from the model's JSON schema, so that a message can never
disagree with the model. Pydantic reports one error for each branch of a union; only those of the branch that the
user meant, by the kind of value given, are kept. A union of mappings that one key tells apart (`type`) has the branch
that this key names.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic_core import ErrorDetails

Path = tuple[str | int, ...]
Schema = dict[str, Any]
Problem = tuple[tuple[int, int], str]
"""(line, column), both from 1, by which problems are sorted, and the message."""

LAST = (2**31, 0)
"""The place of a problem that is not in the file."""

_WORDS = {
    "boolean": "true or false",
    "integer": "an integer",
    "number": "a number",
    "string": "a string",
    "array": "a list",
    "object": "a mapping",
    "null": "null",
}
_KINDS = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
_BOUNDS = {
    "minimum": ">=",
    "exclusiveMinimum": ">",
    "maximum": "<=",
    "exclusiveMaximum": "<",
    "pattern": "matching",
}
_WRONG_TAG = ("union_tag_invalid", "union_tag_not_found")


@dataclass(frozen=True)
class Source:
    """Where the values of a spec came from: a file's node tree, with the keys that overrides set on top."""

    name: str
    root: yaml.Node
    overrides: list[Path]

    def place(self, path: Path, *, missing: bool = False, of_key: bool = False) -> Problem:
        """Position and words (`spec.yaml:12:5` or `--set KEY`) of a value, or of its key.

        A missing value has the place of the mapping that lacks it.
        """
        key = value = self.root
        found = True
        for part in map(str, path):
            children = _children(value)
            if part not in children:
                found = False
                break
            key, value = children[part]
        strings = tuple(map(str, path))
        # A value comes from an override of itself or of what holds it; if the file lacks it, of a part of it.
        setters = [k for k in self.overrides if strings[: len(k)] == k]
        if not found and not missing:
            setters += [k for k in self.overrides if k[: len(strings)] == strings]
        if setters:
            return LAST, f"--set {dotted(setters[-1])}"
        position = position_of(key if of_key else value)
        return position, f"{self.name}:{position[0]}:{position[1]}"

    def problem(self, path: Path, text: str, *, missing: bool = False, of_key: bool = False) -> Problem:
        """A line that says where, which key, and what is wrong with it."""
        position, where = self.place(path, missing=missing, of_key=of_key)
        key = dotted(path)
        prefix = f"{where}: " if not key or where == f"--set {key}" else f"{where}: {key}: "
        return position, prefix + text


def word(error: ErrorDetails, model: Schema, data: Any, source: Source) -> Problem | None:
    """One pydantic error in words; None when it speaks of a union's branch that the user did not mean.

    `model` is the JSON schema of the whole model, `data` what was validated.
    """
    kind = error["type"]
    path, owner, schema, value, meant = _descend(error["loc"], model, data)
    if not meant and kind.endswith("_type"):
        return None
    definitions = model.get("$defs", {})
    if kind in _WRONG_TAG:
        return _wrong_tag(path, schema, value, source)
    unknown = kind in ("extra_forbidden", "invalid_key")
    if unknown:
        text = f"unknown key; allowed: {', '.join(_nearest_first(path[-1], owner.get('properties', {})))}"
    elif kind == "missing":
        text = f"missing; allowed: {describe(schema, definitions)}"
    elif kind == "value_error":
        text = str(error["ctx"]["error"])
    elif path == ("version",):
        text = f"found {show(value)}; this release reads version {describe(schema, definitions)}"
    else:
        text = f"found {show(value)}; allowed: {describe(schema, definitions, value)}"
    return source.problem(path, text, missing=kind == "missing", of_key=unknown)


def _wrong_tag(path: Path, schema: Schema, value: Any, source: Source) -> Problem:
    """The key by which the mappings of a union differ is missing, or names none of them."""
    tag, tags = schema["discriminator"]["propertyName"], schema["discriminator"]["mapping"]
    missing = tag not in value
    found = "missing" if missing else f"found {show(value[tag])}"
    allowed = " or ".join(tags if missing else _nearest_first(value[tag], tags))
    return source.problem((*path, tag), f"{found}; allowed: {allowed}", missing=missing)


def describe(schema: Schema, definitions: Schema, found: Any = None) -> str:
    """What a JSON schema allows, in words; of several constants, the one nearest to `found` first."""
    schema = _resolve(schema, definitions)
    if "discriminator" in schema:
        tags = " or ".join(schema["discriminator"]["mapping"])
        return f"a mapping with {schema['discriminator']['propertyName']}: {tags}"
    if "anyOf" in schema:
        return " or ".join(describe(branch, definitions, found) for branch in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return " or ".join(_nearest_first(found, schema.get("enum") or [schema["const"]]))
    words = _WORDS.get(schema.get("type", ""), "any value")
    if "properties" in schema:
        words += f" with the keys {', '.join(schema['properties'])}"
    least, most = schema.get("minItems", 0), schema.get("maxItems")
    if most is not None:
        words += f" of {most}" if least == most else f" of {least} to {most}"
    elif least:
        words += f" of at least {least}"
    if schema.get("items"):
        words += f", each {describe(schema['items'], definitions)}"
    bounds = [f"{sign} {schema[bound]}" for bound, sign in _BOUNDS.items() if bound in schema]
    return f"{words} {' and '.join(bounds)}" if bounds else words


def show(value: Any) -> str:
    """A value from a YAML file, short, with its kind."""
    if isinstance(value, dict):
        return f"a mapping with the keys {', '.join(map(str, value))}" if value else "an empty mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value) if isinstance(value, str) else str(value)
    text = text if len(text) <= 80 else text[:77] + "..."
    return f"{text} ({_WORDS.get(_kind(value), 'a ' + _kind(value))})"


def position_of(node: yaml.Node) -> tuple[int, int]:
    """Line and column of a node's start, both from 1."""
    return node.start_mark.line + 1, node.start_mark.column + 1


def dotted(path: Iterable[str | int]) -> str:
    """`groups.0.prompt`."""
    return ".".join(map(str, path))


def _descend(location: Path, model: Schema, data: Any) -> tuple[Path, Schema, Schema, Any, bool]:
    """Follow pydantic's location of an error, whose parts are keys, list indices and tags of a union's branches.

    Returns the path without tags, the schema of the mapping or list that holds the value, the value's schema, the
    value, and False when the location ends at a branch of a union although another branch fits the value's kind.
    """
    definitions = model.get("$defs", {})
    path: Path = ()
    rest = list(location)
    owner = schema = model
    while True:
        schema = _resolve(schema, definitions)
        # Pydantic gives `X | None` no tag.
        branches = [_resolve(b, definitions) for b in schema.get("anyOf", []) if b.get("type") != "null"]
        if branches:
            fitting = [b for b in branches if b.get("type") in _kinds_for(data)]
            tag = rest.pop(0) if len(branches) > 1 and rest else None
            if not rest:
                return path, owner, schema, data, tag is None or not fitting
            schema = fitting[0] if fitting else {}
        elif not rest:
            return path, owner, schema, data, True
        elif "discriminator" in schema:
            schema = {"$ref": schema["discriminator"]["mapping"][rest.pop(0)]}
        else:
            part = rest.pop(0)
            path, owner = (*path, part), schema
            schema = schema.get("properties", {}).get(part) or schema.get("items", {})
            inside = isinstance(data, list) or (isinstance(data, dict) and part in data)
            data = data[part] if inside else None


def _children(node: yaml.Node) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    """(key node, value node) by key; a list's items are their own keys."""
    if isinstance(node, yaml.MappingNode):
        return {str(key.value): (key, value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return {str(index): (item, item) for index, item in enumerate(node.value)}
    return {}


def _resolve(schema: Schema, definitions: Schema) -> Schema:
    reference = schema.get("$ref")
    return definitions[reference.rsplit("/", 1)[-1]] if reference else schema


def _kind(value: Any) -> str:
    return "null" if value is None else _KINDS.get(type(value), type(value).__name__)


def _kinds_for(value: Any) -> set[str]:
    kind = _kind(value)
    return {kind, "number"} if kind == "integer" else {kind}


def _nearest_first(found: Any, options: Iterable[Any]) -> list[str]:
    names = list(map(str, options))
    nearest = difflib.get_close_matches(str(found), names, n=1, cutoff=0.5)
    return nearest + [name for name in names if name not in nearest]
