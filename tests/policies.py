"""The IAM policies of infra/policies, filled in for a bucket of the test server, and identities with just those."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.s3_server import Identity

FOLDER = Path(__file__).parents[1] / "infra" / "policies"
BUCKET = "tests"
"""Of the test server, see `tests.conftest.s3`."""
SHARDS, STORE = "policy-shards", "policy-store/birds"
"""Folders in the bucket."""

_FILLED_IN = {
    "SHARDS-BUCKET": BUCKET,
    "SHARDS-FOLDER": SHARDS,
    "STORE-BUCKET": BUCKET,
    "STORE-FOLDER": STORE,
}
WRITER = ("read-shards", "write-store")
"""What a job needs."""


def statements(*names: str) -> list[dict[str, Any]]:
    """Of several policies, filled in."""
    found = []
    for name in names:
        text = (FOLDER / f"{name}.json").read_text()
        for placeholder, value in _FILLED_IN.items():
            text = text.replace(placeholder, value)
        found += json.loads(text)["Statement"]
    return found


def without(number: int) -> str:
    """Name of the identity that has all of a writer's statements but one."""
    one = statements(*WRITER)[number]
    return f"no-{number}-{one['Sid']}"


def identities() -> list[Identity]:
    """A writer, one who also collects garbage, a reader, and for each statement of a writer's one who lacks it."""
    full = statements(*WRITER)
    lacking = [
        Identity(without(number), policy=_policy(full[:number] + full[number + 1 :]))
        for number in range(len(full))
    ]
    return [
        Identity("store-writer", policy=_policy(full)),
        Identity("store-keeper", policy=_policy(statements("write-store", "collect-garbage"))),
        Identity("store-reader", policy=_policy(statements("read-store"))),
        *lacking,
    ]


def _policy(found: list[dict[str, Any]]) -> str:
    """Statements of several files may have the same Sid; in one document they may not."""
    own = [statement | {"Sid": f"{statement['Sid']}{place}"} for place, statement in enumerate(found)]
    return json.dumps({"Version": "2012-10-17", "Statement": own})
