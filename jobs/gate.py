"""The GATE job: spec -> drawn images -> candidates measured on Ray -> selection and report.

`gatehouse gate SPEC.yaml` and `python -m jobs.gate SPEC.yaml` are the same.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.beginnings import absolute_sources, log_to_console
from jobs.endings import DONE, FAILED
from pipeline import identity, sources, storage
from pipeline.gate import img2img, similarity
from pipeline.gate.analysis import Analysis, analyse
from pipeline.gate.candidates import candidates_of, check, group, plain
from pipeline.gate.colours import colours
from pipeline.gate.decisions import agreement
from pipeline.gate.judging import Judgement, judge
from pipeline.gate.measuring import Findings, measure
from pipeline.gate.report import Report, render
from pipeline.gate.sampling import Drawn, captioned, draw
from pipeline.gate.selecting import choose, forward, mean_diversity
from pipeline.gate.workers import RayWorkers, SerialWorkers, Workers
from pipeline.schedule import JobFailed
from pipeline.shards import list_shards
from schemas import __version__
from schemas.gate import PLAIN, REPORT, SELECTION, Candidate, GateSpec, Selection
from schemas.specfile import dump

Pictures = dict[str, NDArray[np.uint8]]
"""By candidate, RGB [images, H, W, 3]."""


def run(spec: GateSpec, *, dry_run: bool = False, serial: bool = False) -> int:
    """Run the job, and return its exit code.

    Args:
        spec: checked.
        dry_run: print the candidates and the drawn images, and measure nothing.
        serial: in this process, without Ray.

    Raises:
        ValueError: whatever of spec, weights or shards makes the job impossible.
    """
    console = Console()
    log_to_console()
    shards = list_shards(spec.input)
    candidates = candidates_of(spec, captions=captioned(spec, shards))
    spec = _absolute(spec.model_copy(update={"candidates": candidates}))
    candidates = list(spec.candidates or ())
    folder = sources.locate(spec.backbone)
    check(spec, [plain(), *candidates], folder)
    if spec.img2img is not None:
        img2img.check(folder)
    drawn = draw(spec, shards)
    if dry_run:
        _show_plan(console, spec, drawn)
        return DONE
    storage.check_puts(spec.out)
    workers: Workers = SerialWorkers() if serial else RayWorkers(spec.cluster)
    try:
        selection, page = _gate(console, spec, candidates, folder, drawn, workers)
    except JobFailed as error:
        console.print(str(error), soft_wrap=True, markup=False)
        return FAILED
    finally:
        workers.close()
    fs, root = storage.open_fs(spec.out)
    storage.put(fs, f"{root}/{SELECTION}", selection.to_bytes())
    storage.put(fs, f"{root}/{REPORT}", page.encode())
    _show(console, selection)
    for name in (SELECTION, REPORT):
        console.print(f"{spec.out}/{name}", markup=False, highlight=False, soft_wrap=True)
    return DONE


def _gate(
    console: Console,
    spec: GateSpec,
    candidates: Sequence[Candidate],
    folder: Path,
    drawn: Drawn,
    workers: Workers,
) -> tuple[Selection, str]:
    """Measure, decide, combine, choose."""
    console.print(f"measuring {len(candidates)} candidates on {len(drawn)} images", highlight=False)
    findings = _measured(spec, [plain(), *candidates], drawn, workers)
    analysis = analyse(spec, findings)
    gains = {
        name: one.mean(0)
        for name, one in analysis.gains(spec.reading, [one.name for one in candidates]).items()
    }

    def measured(trials: Sequence[Candidate]) -> Mapping[str, NDArray[np.float64]]:
        console.print(f"combining: {', '.join(one.name for one in trials)}", highlight=False)
        findings.update(_measured(spec, trials, drawn, workers))
        found = analysis.gains(spec.reading, [one.name for one in trials])
        return {name: one.mean(0) for name, one in found.items()}

    combined = forward(candidates, gains, measured, confidence=spec.confidence)
    inputs, repainted = _repainted(console, spec, candidates, drawn, workers)
    parts = {one.name: [one.name] for one in candidates} | combined.parts
    judgement = judge(analysis, parts, _closer(spec, inputs, repainted))
    known = {one.name: one for one in [plain(), *candidates, *combined.candidates]}
    chosen = _chosen(analysis, judgement)
    selection = Selection(
        gatehouse=__version__,
        backbone=identity.backbone_fingerprint(folder),
        reading=spec.reading,
        confidence=spec.confidence,
        plain_cost=findings[PLAIN].cost,
        judged=judgement.judged,
        groups=[group(spec, known[name]) for name in chosen],
        images=[f"{shard}/{key}" for shard, key in drawn.ids],
        usable=int(analysis.usable.sum()),
        repainted=0 if inputs is None else len(inputs),
        spec=spec.model_dump(mode="json"),
    )
    return selection, render(_report(analysis, drawn, selection, judgement, chosen, inputs, repainted))


def _measured(
    spec: GateSpec, candidates: Sequence[Candidate], drawn: Drawn, workers: Workers
) -> dict[str, Findings]:
    found = workers.map(measure, [(spec, candidate) for candidate in candidates], drawn)
    return {candidate.name: one for candidate, one in zip(candidates, found, strict=True)}


def _chosen(analysis: Analysis, judgement: Judgement) -> list[str]:
    """Names of the feature groups to extract."""
    spec, findings = analysis.spec, analysis.findings
    suppresses = {one.name: one.verdict == "suppresses" for one in judgement.judged}
    maps = {
        name: {tap: findings[name].maps[tap] for tap in analysis.taps}
        for name, helps in suppresses.items()
        if helps
    }
    diversity = {
        frozenset(pair): mean_diversity(maps[pair[0]], maps[pair[1]]) for pair in combinations(maps, 2)
    }
    return choose(
        list(suppresses),
        suppresses,
        {one.name: one.score[spec.reading].mean for one in judgement.judged},
        {name: analysis.cost(name) for name in suppresses},
        diversity,
        budget=spec.budget,
        most=spec.most_groups,
    )


def _repainted(
    console: Console, spec: GateSpec, candidates: Sequence[Candidate], drawn: Drawn, workers: Workers
) -> tuple[NDArray[np.uint8] | None, Pictures]:
    """Inputs, and Img2Img without and with every candidate that it has a meaning for."""
    if spec.img2img is None:
        return None, {}
    able = [one for one in candidates if img2img.left_out(one) is None]
    console.print(f"repainting with {len(able)} candidates", highlight=False)
    made = workers.map(img2img.repaint, [(spec, one) for one in (plain(), *able)], drawn)
    pixels = img2img.batch_of(spec, drawn).pixels
    pictures = {one.name: found for one, found in zip((plain(), *able), made, strict=True)}
    return np.ascontiguousarray(np.moveaxis(pixels, 1, -1)), {
        name: found for name, found in pictures.items() if found is not None
    }


def _closer(
    spec: GateSpec, inputs: NDArray[np.uint8] | None, repainted: Pictures
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """How much more alike its input a picture is with each candidate than without, by measure, [images]."""
    if spec.img2img is None or inputs is None or len(inputs) < 2:
        return {}
    source, revision = spec.img2img.image_encoder, spec.img2img.image_encoder_revision
    encoder = None
    if source is not None:
        encoder = similarity.load_encoder(sources.component(source, revision, subject="image_encoder"))
    others = {name: outputs for name, outputs in repainted.items() if name != PLAIN}
    return similarity.closer(inputs, repainted[PLAIN], others, encoder)


def _report(
    analysis: Analysis,
    drawn: Drawn,
    selection: Selection,
    judgement: Judgement,
    chosen: Sequence[str],
    inputs: NDArray[np.uint8] | None,
    repainted: Pictures,
) -> Report:
    compared = None
    if repainted:
        singles = [one for one in judgement.judged if len(one.candidates) == 1]
        compared = agreement([one.closer for one in singles], [one.verdict for one in singles])
    sheet = [] if inputs is None else [("input", list(inputs))]
    sheet += [("without" if name == PLAIN else name, list(found)) for name, found in repainted.items()]
    return Report(
        selection=selection,
        curves=judgement.curves,
        by_tap=judgement.by_tap,
        sheet=sheet,
        pca=colours(analysis, drawn, chosen),
        agreement=compared,
        spec_yaml=dump(analysis.spec),
        notes=_notes(analysis, drawn),
    )


def _notes(analysis: Analysis, drawn: Drawn) -> list[str]:
    notes = list(drawn.notes)
    if lacking := int((~analysis.usable).sum()):
        notes.append(f"{lacking} of {len(analysis.usable)} images have no edges at some tap, and no Score")
    if silent := [tap for tap in analysis.findings[PLAIN].norms if tap not in analysis.taps]:
        notes.append(f"{', '.join(silent)} have no Score: they are no maps of channels with several cells")
    for candidate in analysis.spec.candidates or ():
        if reason := img2img.left_out(candidate):
            notes.append(f"{candidate.name} was not repainted: {reason}")
    return notes


def _show_plan(console: Console, spec: GateSpec, drawn: Drawn) -> None:
    table = Table("candidate", "prompt", "techniques")
    for one in spec.candidates or ():
        told = ", ".join(technique.type for technique in one.techniques)
        table.add_row(one.name, escape(one.prompt or spec.prompt), told)
    console.print(table)
    times = ", ".join(map(str, spec.all_times))
    console.print(f"{len(drawn)} images, t = {times}; judged at t = {spec.t}", highlight=False)
    for note in drawn.notes:
        console.print(note, markup=False, soft_wrap=True)


def _show(console: Console, selection: Selection) -> None:
    table = Table("candidate", "verdict", "gain", "interval", "closer", "cost, passes")
    for one in selection.judged:
        gain = one.gain[selection.reading]
        closer = "-" if one.closer is None else "yes" if one.closer else "no"
        cost = f"{one.cost / selection.plain_cost:.2f}"
        table.add_row(
            one.name, one.verdict, f"{gain.mean:+.3f}", f"{gain.low:+.3f} to {gain.high:+.3f}", closer, cost
        )
    console.print(table)
    names = ", ".join(str(one["name"]) for one in selection.groups)
    console.print(f"to extract: {names}", highlight=False)


def _absolute(spec: GateSpec) -> GateSpec:
    """Local paths made absolute, since tasks work in other folders."""
    candidates = [
        one.model_copy(update={"techniques": [absolute_sources(technique) for technique in one.techniques]})
        for one in spec.candidates or ()
    ]
    captions = spec.input.captions and storage.absolute(spec.input.captions)
    return spec.model_copy(
        update={
            "out": storage.absolute(spec.out),
            "backbone": absolute_sources(spec.backbone),
            "candidates": candidates,
            "input": spec.input.model_copy(update={"captions": captions}),
        }
    )


if __name__ == "__main__":
    from jobs.cli import main

    sys.argv.insert(1, "gate")
    main()
