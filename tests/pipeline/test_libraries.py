from __future__ import annotations

from pipeline.libraries import libraries


def test_libraries_that_touch_a_value() -> None:
    assert {"python", "torch", "diffusers", "transformers", "numpy", "pillow", "opencv"} <= libraries().keys()
