"""The dashboard asks only for metrics that there are, with labels that they have."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pipeline.metrics import METRICS

DASHBOARD = Path(__file__).parents[2] / "infra" / "grafana" / "gatehouse.json"
_RAYS_LABELS = {"SessionName", "WorkerId", "NodeAddress"}


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def queries() -> dict[str, str]:
    """Queries by panel and letter."""
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in dashboard()["panels"]
        for target in panel["targets"]
    }


def test_every_metric_is_shown_and_none_is_made_up() -> None:
    """Guards against a metric that was renamed in the code alone."""
    asked = set(re.findall(r"\b(?:ray_)?gatehouse_\w+", " ".join(queries().values())))
    assert asked == {metric.exported for metric in METRICS.values()}


def test_labels_are_those_that_metrics_have() -> None:
    for title, query in queries().items():
        names = {metric.exported: metric.label for metric in METRICS.values() if metric.exported in query}
        own = {label for label in names.values() if label}
        grouped = {label for labels in re.findall(r"by \((\w+)\)", query) for label in [labels]}
        chosen = set(re.findall(r"(\w+)(?:=~|!=|=)\"", query))
        assert grouped | chosen <= own | _RAYS_LABELS, title


def test_panels_do_not_overlap_and_say_what_they_show() -> None:
    taken: dict[tuple[int, int], str] = {}
    ids = [panel["id"] for panel in dashboard()["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        assert panel["description"] and place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]
