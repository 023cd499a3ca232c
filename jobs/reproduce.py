"""One of the paper's experiments, from a public data set's folder to a table beside the paper's figures.

    shards with labels -> two LoRAs -> (GATE) -> features -> heads without and with GATE -> table.md, table.json

Each step is the job of its name, run by a spec that lies in the work folder; what is done already is left, so the same
command goes on after a crash. `gatehouse reproduce NAME` and `python -m jobs.reproduce NAME` are the same.
"""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs import extract, gate, train_head, train_lora
from jobs.beginnings import log_to_console
from jobs.endings import DONE, SET_ASIDE, STOPPED
from jobs.report import size
from jobs.shard import shard_dataset
from pipeline import sources, storage
from pipeline.heads.folder import HeadFolder
from pipeline.public import catalogue
from pipeline.reproduce import specs
from pipeline.reproduce.cost import cost
from pipeline.reproduce.experiment import Experiment
from pipeline.reproduce.experiments import EXPERIMENTS
from pipeline.reproduce.folder import WorkFolder
from pipeline.reproduce.groups import BASELINE, convolutional
from pipeline.reproduce.options import Options
from pipeline.reproduce.table import make_table, markdown
from schemas.gate import SELECTION
from schemas.head import HeadSpec, Results
from schemas.model import Model
from schemas.selected import selected
from schemas.spec import ExtractSpec

logger = logging.getLogger("gatehouse")
M = TypeVar("M", bound=Model)

_CURES = {
    SET_ASIDE: "`gatehouse extract` with --retry-failed does again what failed; then give this command again",
    STOPPED: "the same command goes on from here",
}


class _Ended(Exception):
    """A job did not come to its end."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass
class _Work:
    """What is done where."""

    experiment: Experiment
    options: Options
    folder: WorkFolder
    console: Console
    serial: bool
    changed: list[str] = field(default_factory=list)
    """Names of specs that are not as they are made."""

    @property
    def about(self) -> tuple[Experiment, Options, str]:
        """What specs are made of."""
        return self.experiment, self.options, str(self.folder.path)

    def do(self, name: str, command: str, made: M, job: Callable[[M], int]) -> M:
        """Run a job by its spec in the work folder; that spec.

        Raises:
            _Ended: its exit code is not 0.
        """
        path = self.folder.spec_path(name)
        self.console.rule(f"{command} {path}")
        spec = self.folder.spec(name, made, command)
        if spec != made:
            self.changed.append(name)
        if (code := job(spec)) != DONE:
            cure = _CURES.get(code, "mend what it says, then give the same command again")
            logger.error("`gatehouse %s %s` ended with code %d; %s", command, path, code, cure)
            raise _Ended(code)
        return spec


def run(options: Options, data: str, work: str, *, dry_run: bool = False, serial: bool = False) -> int:
    """Run the experiment, or go on with it, and return the exit code of the job that ended it.

    Args:
        options: checked.
        data: folder or URL of the public data set, as published.
        work: local folder for all that is made; the nodes of a cluster must see it under the same path.
        dry_run: print what would be done and what it takes; write nothing.
        serial: in this process, without Ray.

    Raises:
        ValueError: whatever of options, data or work folder makes the experiment impossible.
        OSError: storage failed.
    """
    console = Console()
    log_to_console()
    now = _Work(EXPERIMENTS[options.name], _absolute(options), WorkFolder(work), console, serial)
    now.folder.check(now.options)
    if dry_run:
        _show_plan(now, data)
        return DONE
    _check(specs.extract_spec(*now.about))
    now.folder.claim(now.options)
    try:
        _shards(now, data)
        extracted = _features(now)
        _show(now, extracted, _heads(now, extracted))
    except _Ended as ended:
        return ended.code
    return DONE


def _absolute(options: Options) -> Options:
    """Local paths made absolute, since specs are read from anywhere."""
    found = {name: getattr(options, name) for name in ("backbone", "controlnet")}
    local = {name: str(Path(path).absolute()) for name, path in found.items() if path and Path(path).exists()}
    store = options.store and storage.absolute(options.store)
    return options.model_copy(update={**local, "store": store})


def _check(spec: ExtractSpec) -> None:
    """Find what would end the extraction before hours of training LoRAs for it; fetches the weights."""
    cost(spec, sources.locate(spec.backbone))
    for group in spec.groups:
        for one in group.techniques:
            if one.type == "controlnet":
                sources.component(one.source, one.revision, subject="controlnet")


def _shards(now: _Work, data: str) -> None:
    """The data set as shards with labels; made under another name, so that a part is never taken for the whole."""
    folder = now.folder.shards
    now.console.rule(f"shard --dataset {now.experiment.name}")
    if now.folder.dataset is not None:
        now.console.print(
            f"nothing to do: shards are at {folder}; --data is not read again",
            soft_wrap=True,
            highlight=False,
        )
        return
    part = folder.with_name("shards.part")
    shutil.rmtree(part, ignore_errors=True)
    shard_dataset(now.experiment.name, [data], str(part), specs.SHARD_SIZE)
    part.rename(folder)


def _features(now: _Work) -> ExtractSpec:
    """LoRAs, GATE's selection where it is asked for, and the store."""
    now.do("lora", "train-lora", specs.lora_spec(*now.about), train_lora.run)
    groups = None
    if now.options.gate:
        selection = now.folder.path / "gate" / SELECTION
        if not selection.exists():
            made = specs.gate_spec(*now.about)
            now.do("gate", "gate", made, lambda spec: gate.run(spec, serial=now.serial))
        groups = selected(str(selection))[0]
    extracted = specs.extract_spec(*now.about, groups)
    return now.do("extract", "extract", extracted, lambda spec: extract.run(spec, serial=now.serial))


def _heads(now: _Work, extracted: ExtractSpec) -> dict[str, Results]:
    """What heads found, by name."""
    found = {}
    for name, made in specs.head_specs(*now.about, extracted).items():
        spec = now.do(f"head-{name}", "train-head", made, train_head.run)
        results = HeadFolder(spec.head).results()
        assert results is not None
        found[name] = results
    return found


def _show(now: _Work, extracted: ExtractSpec, found: Mapping[str, Results]) -> None:
    """Write the table, and print it."""
    groups = [group["name"] for group in convolutional(extracted.groups) if group["name"] != BASELINE]
    table = make_table(now.experiment, now.options, found, groups, now.changed)
    text = markdown(table)
    now.folder.write("table.json", table.to_bytes().decode())
    now.folder.write("table.md", text)
    now.console.rule(str(now.folder.path / "table.md"))
    now.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _show_plan(now: _Work, data: str) -> None:
    """What `--dry-run` prints; reads the labels of the data set, and the backbone's configs."""
    lora, extracted = specs.lora_spec(*now.about), specs.extract_spec(*now.about)
    takes, images = cost(extracted, sources.configs(extracted.backbone)), _images(now, data)
    table = Table("step", "spec", "what", title=now.experiment.title)
    table.add_row("shard", "", ", ".join(f"{count:,} {split}" for split, count in images.items()) + " images")
    table.add_row(
        "train-lora", "lora", f"{lora.images} images, {lora.steps:,} steps of {lora.backbone.batch_size}"
    )
    if now.options.gate:
        gated = specs.gate_spec(*now.about)
        table.add_row("gate", "gate", f"{len(gated.candidates or ())} candidates on {gated.images} images")
    rows = sum(images.values())
    amounts = (
        f"{takes.passes} passes and {size(takes.row_bytes)} an image, {size(takes.row_bytes * rows)} in all"
    )
    most = "at most " if now.options.gate else ""
    table.add_row("extract", "extract", f"{most}{len(extracted.groups)} groups: {most}{amounts}")
    for name, head in specs.head_specs(*now.about, extracted).items():
        table.add_row("train-head", f"head-{name}", _told(head))
    now.console.print(table)
    groups = Table("group", "prompt", "techniques")
    for group in extracted.groups:
        groups.add_row(group.name, escape(group.prompt), ", ".join(one.type for one in group.techniques))
    now.console.print(groups)
    now.console.print(f"specs: {now.folder.spec_path('*')}", markup=False, highlight=False, soft_wrap=True)


def _told(head: HeadSpec) -> str:
    groups, task = head.features.groups or [], head.task
    return f"{', '.join([*groups, *head.features.attention])}: {task.steps:,} steps of {task.batch_size}"


def _images(now: _Work, data: str) -> dict[str, int]:
    """That features are extracted of, by split."""
    written = now.folder.dataset
    if written is not None:
        counts = {split: one.samples for split, one in written.splits.items()}
    else:
        splits = catalogue.find(now.experiment.name, data).splits
        counts = {split: len(images) for split, images in splits.items()}
    most = specs.SHARD_SIZE if now.options.quick else None
    return {
        split: min(counts[split], most or counts[split])
        for split in (now.experiment.train, now.experiment.test)
    }


if __name__ == "__main__":
    from jobs.cli import main

    sys.argv.insert(1, "reproduce")
    main()
