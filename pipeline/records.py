"""What became of an attempt's samples, as the columns of the index."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from pipeline.batches import Assignment, Record
from schemas.layout import BOX, index_schema
from schemas.receipts import Manifest


def index_table(
    manifest: Manifest, records: Sequence[Record], assignment: Assignment, attempt: str
) -> pa.Table:
    """Records as a table of `schemas.layout.index_schema`, in their order."""
    schema = index_schema(manifest.groups, scores=manifest.scored)
    statuses = [record.status for record in records]
    reasons = [
        None if status == "ok" else record.outcome for status, record in zip(statuses, records, strict=True)
    ]
    columns: dict[str, Any] = {
        "row": [record.row for record in records],
        "shard": [assignment.shard.id] * len(records),
        "key": [record.key for record in records],
        "position": [record.position for record in records],
        "round": [assignment.round] * len(records),
        "attempt": [attempt] * len(records),
        "status": statuses,
        "reason": reasons,
        "detail": [record.detail or None for record in records],
        "caption": [record.caption for record in records],
        "height": [record.height for record in records],
        "width": [record.width for record in records],
        "box": [record.box and dict(zip(BOX.names, record.box, strict=True)) for record in records],
        "sha256": [record.sha256 for record in records],
        "groups": list(_outcomes(manifest.groups, records)),
        "scores": [{group: record.scores.get(group) for group in manifest.groups} for record in records],
    }
    return pa.Table.from_arrays([pa.array(columns[one.name], one.type) for one in schema], schema=schema)


def _outcomes(groups: Sequence[str], records: Sequence[Record]) -> Iterator[dict[str, dict[str, str | None]]]:
    """Status and reason of each group; a sample that is bad as a whole is bad in all of them."""
    for record in records:
        reasons = {group: record.reason or record.groups.get(group) for group in groups}
        yield {
            group: {"status": "ok" if reason is None else "failed", "reason": reason}
            for group, reason in reasons.items()
        }
