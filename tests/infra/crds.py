"""KubeRay's definitions as a check of our manifests, stricter than a cluster: unknown keys are refused, not dropped.

Rules in CEL (`x-kubernetes-validations`) are not evaluated: only a cluster does that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

FOLDER = Path(__file__).parents[3] / "shared" / "kuberay"


def problems(manifest: dict[str, Any]) -> list[str]:
    """What KubeRay's definition of a manifest's kind finds wrong with it; skips the test where there is none."""
    path = FOLDER / f"ray.io_{manifest['kind'].lower()}s.yaml"
    if not path.is_file():
        pytest.skip(f"KubeRay's definitions are not at {FOLDER}: the manifests stay unchecked by them")
    version = manifest["apiVersion"].partition("/")[2]
    found = yaml.load(path.read_text(), yaml.CSafeLoader)["spec"]["versions"]
    schema = next(one["schema"]["openAPIV3Schema"] for one in found if one["name"] == version)
    validator = Draft202012Validator(_strict(schema))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]


def _strict(schema: Any) -> Any:
    """The schema, with every object closed whose keys it lists; `metadata` and the like stay open."""
    if isinstance(schema, list):
        return [_strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _strict(value) for key, value in schema.items()}
    lists_keys = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if lists_keys and "additionalProperties" not in schema and not schema.get(_OPEN):
        closed["additionalProperties"] = False
    return closed


_OPEN = "x-kubernetes-preserve-unknown-fields"
