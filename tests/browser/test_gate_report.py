"""GATE's report as a browser shows it: laptop and phone, light and dark, never wider than the window."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.gate.report import Report, render
from schemas.gate import Selection
from tests.pipeline.gate import made_up_report

_CHROMIUM = shutil.which("chromium")
_QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
_SCHEMES = {"dark": 0, "light": 1}  # Blink's numbers
# In a frame, as a window cannot be as narrow as a phone. Its document has the origin of this page, whose script may
# therefore measure it; it runs none itself.
_FRAME = """<!DOCTYPE html><html><head><meta charset="utf-8"></head><body style="margin: 0; overflow: hidden">
<iframe width="{width}" height="{height}" style="border: 0" srcdoc="{page}"></iframe>
<script>onload = () => {{
  const page = document.querySelector("iframe").contentDocument.documentElement;
  document.body.dataset.widths = page.scrollWidth + " " + page.clientWidth;
}}</script></body></html>"""

pytestmark = pytest.mark.skipif(
    _CHROMIUM is None, reason="there is no program `chromium`, which shows the page"
)


@pytest.mark.parametrize("scheme", list(_SCHEMES))
@pytest.mark.parametrize("size", [(1366, 900), (390, 844)], ids=["laptop", "phone"])
def test_the_page_fits(tmp_path: Path, size: tuple[int, int], scheme: str) -> None:
    shown, overflow = opened(render(made_up_report.report()), tmp_path, size, scheme)
    assert overflow == 0
    assert shown.shape == (size[1], size[0], 3)
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 50  # letters, lines and marks: not blank
    assert (np.median(shown) > 128) == (scheme == "light")


def test_long_names_do_not_widen_it(tmp_path: Path) -> None:
    """A name has at most 64 characters, with nowhere to break."""
    _, overflow = opened(render(long(made_up_report.report())), tmp_path, (390, 844), "light")
    assert overflow == 0


def long(report: Report) -> Report:
    """With all names as long as they may be, and a long prompt and source without spaces."""
    names = {one.name: one.name[0] * 60 + f"{place:04}" for place, one in enumerate(report.selection.judged)}
    judged = [one.model_copy(update={"name": names[one.name]}) for one in report.selection.judged]
    changes = {"prompt": "x" * 300, "techniques": [{"type": "lora", "source": "y" * 99}]}
    groups = [{**group, **changes, "name": names[group["name"]]} for group in report.selection.groups]
    fields = report.selection.model_dump() | {
        "judged": [one.model_dump() for one in judged],
        "groups": groups,
    }
    return Report(
        selection=Selection.model_validate(fields),
        curves={names.get(name, name): by_t for name, by_t in report.curves.items()},
        by_tap={names[name]: found for name, found in report.by_tap.items()},
        sheet=[(names.get(name, name), pictures) for name, pictures in report.sheet],
        pca=[(names.get(name, name), pictures) for name, pictures in report.pca],
        agreement=report.agreement,
        spec_yaml="z" * 500,
        notes=["n" * 500],
    )


def opened(page: str, folder: Path, size: tuple[int, int], scheme: str) -> tuple[np.ndarray, int]:
    """The window's pixels [H, W, 3], and by how many pixels the page is wider than it."""
    width, height = size
    frame, shot = folder / "frame.html", folder / "shot.png"
    frame.write_text(_FRAME.format(width=width, height=height, page=html.escape(page)))
    assert _CHROMIUM is not None
    done = subprocess.run(
        [
            _CHROMIUM,
            *_QUIET,
            f"--user-data-dir={folder / 'profile'}",
            f"--blink-settings=preferredColorScheme={_SCHEMES[scheme]}",
            f"--window-size={width},{height}",
            f"--screenshot={shot}",
            "--dump-dom",
            frame.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search(r'data-widths="(\d+) (\d+)"', done.stdout)
    assert found and shot.exists(), done.stderr[-2000:]
    return np.asarray(Image.open(shot).convert("RGB")), int(found[1]) - int(found[2])
