"""The table: ours beside the paper's, and all that is otherwise."""

from __future__ import annotations

from pipeline.reproduce.deviations import COMMON
from pipeline.reproduce.experiments import EXPERIMENTS
from pipeline.reproduce.options import Options
from pipeline.reproduce.table import Table, make_table, markdown
from schemas.head import Results, SplitResult


def results(mean: float, deviation: float, splits: int, *metrics: str) -> Results:
    one = SplitResult(split=0, metrics={}, rows={}, steps=1, best_step=1, seconds={})
    found = {metric: [mean, deviation] for metric in metrics}
    return Results(head="h", task="t", metrics=found, skipped={}, splits=[one] * splits)


def test_ours_beside_the_papers() -> None:
    found = {"baseline": results(0.651, 0.0123, 5, "mIoU"), "gate": results(0.702, 0.02, 5, "mIoU")}
    text = markdown(make_table(EXPERIMENTS["horse21"], Options(name="horse21"), found, ["prompt"], []))
    assert "|  | without GATE | the paper's (DDPM-segmentation) | GATE | the paper's |" in text
    assert "| mIoU | 65.1 ± 1.2 | 65.0 ± 0.8 | 70.2 ± 2.0 | 67.2 ± 1.1 |" in text
    assert "quick" not in text and "This run" not in text
    assert all(f"- {line}\n" in text for line in (*COMMON, *EXPERIMENTS["horse21"].deviations))


def test_several_heads_and_one_split() -> None:
    """A metric that the paper has not stands alone, and one split has no deviation."""
    kinds = [f"PCK@0.1 {kind}" for kind in ("img", "bbox")]
    metrics = [*kinds, *(f"{kind}, mean over pairs" for kind in kinds)]
    found = {
        f"{kind}-{head}": results(value, 0, 1, *metrics)
        for kind, value in (("baseline", 0.5), ("gate", 0.625))
        for head in ("nn", "conv")
    }
    text = markdown(make_table(EXPERIMENTS["spair71k"], Options(name="spair71k"), found, [], []))
    assert "|  | without GATE | the paper's | GATE | the paper's |" in text
    assert "| PCK@0.1 bbox, conv head | 50.00 | 65.74 | 62.50 | 69.10 |" in text
    assert "| PCK@0.1 img, mean over pairs, nn head | 50.00 | - | 62.50 | - |" in text


def test_what_is_not_the_papers_experiment_is_told() -> None:
    options = Options(
        name="horse21",
        backbone="embedded",
        controlnet="embedded/controlnet-canny",
        dtype="float32",
        image_size=[64, 128],
        gate=True,
        quick=True,
    )
    found = {"baseline": results(0.5, 0, 2, "mIoU"), "gate": results(0.5, 0, 2, "mIoU")}
    table = make_table(EXPERIMENTS["horse21"], options, found, ["lora-a", "prompt"], ["lora"])
    text = markdown(table)
    assert "**A quick run" in text
    for told in (
        "backbone is embedded",
        "ControlNet is emb",
        "64 x 128 px",
        "float32",
        "(--gate): lora-a, prompt.",
    ):
        assert told in text
    assert "- specs/lora.yaml is not as this release makes it." in text
    assert Table.model_validate_json(table.to_bytes()) == table
