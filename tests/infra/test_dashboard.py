"""The dashboard asks only for metrics that there are, with labels that they have."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

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


@pytest.mark.skipif(shutil.which("promtool") is None, reason="apt-get install prometheus")
def test_only_what_happened_in_the_time_shown_is_counted(tmp_path: Path) -> None:
    """Guards against counting earlier runs on a cluster that stays: Ray shows the counters of dead actors for ever.

    The last minute of five: an actor that had ended, one that worked on, one that was new, one that went.
    """
    images, bad = "ray_gatehouse_images_total", "ray_gatehouse_bad_samples_total"
    series = {
        f'{images}{{SessionName="s",WorkerId="before"}}': "480x300",
        f'{images}{{SessionName="s",WorkerId="on"}}': "100+1x300",
        f'{images}{{SessionName="s",WorkerId="new"}}': "_x270 48+1x29",
        f'{images}{{SessionName="s",WorkerId="gone"}}': "100+1x260",
        f'{bad}{{SessionName="s",WorkerId="before",reason="no-image"}}': "5x300",
        f'{bad}{{SessionName="s",WorkerId="new",reason="no-caption"}}': "_x270 3x29",
    }
    shown = {
        "Images in the time shown A": [{"labels": "{}", "value": 60 + 77 + 20}],
        "Share of bad samples A": [{"labels": "{}", "value": 3 / 157}],
        "Bad samples by reason A": [{"labels": '{reason="no-caption"}', "value": 3}],
        "Actors replaced, by reason A": [],
    }
    asked = {title: queries()[title].replace("$session", ".+").replace("$__range", "60s") for title in shown}
    tests = [
        {
            "interval": "1s",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "promql_expr_test": [
                {"expr": query, "eval_time": "300s", "exp_samples": shown[title]}
                for title, query in asked.items()
            ],
        }
    ]
    (tmp_path / "tests.yml").write_text(json.dumps({"tests": tests}))  # JSON is YAML
    done = subprocess.run(
        ["promtool", "test", "rules", str(tmp_path / "tests.yml")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


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
