"""Does suppressing content shift pay? `python -m jobs.benefit`: the whole pipeline on embedded scenes, and one table.

    GATE             which techniques suppress the shift on these scenes
    extraction       features with every technique, plain ones at several t, GATE's selection; of an untrained
                     network too
    heads            label-scarce segmentation (13 classes) and correspondence (the same cut-out in another scene)
    table            mean and standard deviation over splits, the difference from the plain feature, the paper's
                     counterpart
    correlation      over techniques and taps: does GATE's Score predict what the head gains?

Scenes are of cut-outs that the backbone was never trained on. Heads of segmentation are tested on other scenes than
they are trained on, but most cut-outs are in both; those of correspondence on other cut-outs. The embedded LoRAs are of
another domain, drawings. What is done already is not done again. About an hour on two cores; `--quick` takes minutes,
and its numbers mean nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import torch
import typer

from jobs import extract
from jobs import gate as gate_job
from pipeline import families, sources
from pipeline.benefit import correlation, table
from pipeline.benefit.correlation import correlations
from pipeline.benefit.heads import KINDS, Kind, Study, measured
from pipeline.benefit.rows import PLAIN, TECHNIQUES, Row, groups, rows, single_taps
from pipeline.benefit.scene_pairs import lines, read_scenes, scene_pairs, split_pairs
from pipeline.benefit.untrained import write_untrained
from pipeline.differences import told
from pipeline.gate.analysis import analyse
from pipeline.gate.candidates import plain
from pipeline.gate.measuring import measure
from pipeline.gate.readings import READINGS
from pipeline.gate.sampling import draw
from pipeline.gate.workers import RayWorkers
from pipeline.reader import FeatureStore
from pipeline.shards import list_shards
from schemas.gate import SELECTION, GateSpec
from schemas.spec import Backbone, Cluster, ExtractSpec, Input

_SIZE: Final = [128, 128]
_TEST_CUTOUTS: Final = 0.5
_CONVOLVED: Final = ("raw pixels", "untrained backbone", "plain", "the paper's recipe", "GATE's selection")
"""Rows that the trained correspondence head is measured on as well; the others take the nearest neighbour alone."""
_SINGLE_SPLITS: Final = 3
"""Of heads on one technique and tap."""
Document = dict[str, Any]


def main(
    out: Annotated[Path, typer.Option(help="Folder for everything.")] = Path("benefit"),
    shards: Annotated[str, typer.Option(help="Scenes of held-out cut-outs.")] = "embedded",
    splits: Annotated[int, typer.Option(min=2, help="How many.")] = 5,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few steps and splits: to see that it runs.")
    ] = False,
) -> None:
    """Measure, print the tables, and write them to OUT/benefit.json and OUT/benefit.md."""
    first = list_shards(Input(shards=shards))[0]
    study = Study(
        out=out.absolute(),
        root="embedded" if shards == "embedded" else first.url.removesuffix(first.id),
        splits=2 if quick else splits,
        train=60,
        test=8 if quick else 120,
        steps=20 if quick else 250,
        members=2 if quick else 5,
        images=8 if quick else 32,
    )
    _claim(study)
    gate_spec = _gate(study, shards)
    selected = json.loads((study.out / "gate" / SELECTION).read_text())["groups"]
    _extract(study, shards, selected)
    _write_pairs(study)
    found = _measure(study, rows([group["name"] for group in selected]), gate_spec)
    (study.out / "benefit.json").write_text(json.dumps(found, indent=1) + "\n")
    text = f"{table.markdown(found['lines'])}\n{correlation.markdown(found['correlation'])}\n"
    (study.out / "benefit.md").write_text(text)
    print(text)


def _claim(study: Study) -> None:
    """Make the folder this study's; another's numbers must not be taken for its own."""
    study.out.mkdir(parents=True, exist_ok=True)
    file, wanted = study.out / "study.json", {**asdict(study), "out": str(study.out)}
    if file.exists() and (shown := told(json.loads(file.read_text()), wanted, "folder")):
        raise typer.BadParameter(f"{study.out} holds another study:\n{shown}\nGive --out another folder.")
    file.write_text(json.dumps(wanted, indent=1) + "\n")


def _gate(study: Study, shards: str) -> GateSpec:
    """GATE's selection in OUT/gate, with the spec that it was made by."""
    document: Document = {"version": 1, "out": str(study.out / "gate"), "input": {"shards": shards}}
    document |= {"image_size": _SIZE, "images": study.images}
    spec = GateSpec.model_validate(document)
    if not (study.out / "gate" / SELECTION).exists() and gate_job.run(spec):
        raise typer.Exit(1)
    selection = json.loads((study.out / "gate" / SELECTION).read_text())
    return GateSpec.model_validate(selection["spec"])


def _extract(study: Study, shards: str, selected: Sequence[Document]) -> None:
    """Stores of all groups, and of the plain one with an untrained network."""
    own = groups()
    known = {group["name"] for group in own}
    wanted = own + [group for group in selected if group["name"] not in known]
    backbone = sources.locate(Backbone(source="embedded"))
    if not (study.out / "untrained-backbone" / "model_index.json").exists():
        loaded = families.load(backbone, dtype=torch.float32, device="cpu")
        write_untrained(loaded, study.out / "untrained-backbone")
    for name, source, some in (
        ("features", "embedded", wanted),
        ("untrained", str(study.out / "untrained-backbone"), wanted[:1]),
    ):
        document = {"version": 1, "store": str(study.out / name), "input": {"shards": shards}}
        document |= {"image_size": _SIZE, "backbone": {"source": source}, "groups": some}
        if code := extract.run(ExtractSpec.model_validate(document)):
            raise typer.Exit(code)


def _write_pairs(study: Study) -> None:
    index = FeatureStore(str(study.out / "features")).good([PLAIN])
    samples = list(zip(index["shard"].to_pylist(), index["key"].to_pylist(), strict=True))
    pairs = scene_pairs(read_scenes(study.root, samples), seed=0)
    (study.out / "pairs").mkdir(exist_ok=True)
    for split in range(study.splits):
        for part, some in zip(("train", "test"), split_pairs(pairs, split, _TEST_CUTOUTS), strict=True):
            study.pairs(part, split).write_bytes(lines(some))


def _measure(study: Study, wanted: Sequence[Row], gate_spec: GateSpec) -> Document:
    """Every row with every head, and every technique and tap by itself."""
    taps = list(dict.fromkeys(name.partition("/")[2] for name in FeatureStore(study.store(wanted[0])).taps))
    tasks: list[tuple[Study, Kind, Row, list[str] | None]] = [
        (study, kind, row, None)
        for kind in KINDS
        for row in wanted
        if kind != "correspondence, conv" or row.name in _CONVOLVED
    ]
    of_rows = len(tasks)
    fewer = replace(study, splits=min(study.splits, _SINGLE_SPLITS))
    singles = [(Row(group, (group,)), tap) for group, tap in single_taps(TECHNIQUES, taps)]
    tasks += [(fewer, kind, row, [tap]) for kind in KINDS[:2] for row, tap in singles]
    workers = RayWorkers(Cluster(device="cpu"))
    try:
        found = workers.map(measured, tasks, None)
        gains = _score_gains(gate_spec, workers)
    finally:
        workers.close()
    values: dict[Kind, dict[str, list[float]]] = {}
    for (_, kind, row, _), one in zip(tasks[:of_rows], found, strict=False):
        values.setdefault(kind, {})[row.name] = one
    by_tap: dict[Kind, dict[tuple[str, str], float]] = {kind: {} for kind in KINDS[:2]}
    for (_, kind, row, of_tap), one in zip(tasks[of_rows:], found[of_rows:], strict=True):
        by_tap[kind][row.name, (of_tap or [""])[0]] = float(np.mean(one))
    return {"lines": table.lines(wanted, values), "correlation": correlations(by_tap, gains)}


def _score_gains(spec: GateSpec, workers: RayWorkers) -> dict[str, dict[tuple[str, str], float]]:
    """By reading: how much each technique's Score is above the plain feature's, by (technique, tap)."""
    candidates = [plain(), *(one for one in spec.candidates or () if one.name in TECHNIQUES)]
    drawn = draw(spec, list_shards(spec.input))
    found = workers.map(measure, [(spec, candidate) for candidate in candidates], drawn)
    analysis = analyse(spec, dict(zip([one.name for one in candidates], found, strict=True)))
    names = [one.name for one in candidates[1:]]
    return {
        reading: {
            (name, tap): float(gain)
            for name, gains in analysis.gains(reading, names).items()
            for tap, gain in zip(analysis.taps, gains.mean(1), strict=True)
        }
        for reading in READINGS
    }


if __name__ == "__main__":
    typer.run(main)
