"""The caption job: spec -> model -> shards on Ray -> captions.

`gatehouse caption SPEC.yaml` and `python -m jobs.caption SPEC.yaml` are the same.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence

import transformers
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.beginnings import absolute_sources, log_to_console, warn_of_other_libraries
from jobs.endings import DONE, FAILED, SET_ASIDE, STOPPED, stop_on_signal
from jobs.report import duration
from pipeline import storage
from pipeline.caption_job import CaptionJob, SerialCaptions
from pipeline.caption_runner import RayCaptions
from pipeline.caption_shards import Preview
from pipeline.captioner import Preparation, locate, make_manifest
from pipeline.captions import Captions, CaptionsError, check_same, open_captions
from pipeline.schedule import JobFailed
from pipeline.shards import Shard, count_samples, list_shards
from schemas.captions import CaptionsManifest, CaptionSpec

logger = logging.getLogger("gatehouse")

_OUTCOMES = {
    DONE: "done",
    FAILED: "failed; what is stored stays, the same command goes on from here",
    SET_ASIDE: "done, but some shards failed; the same command tries them again",
    STOPPED: "stopped; the same command goes on from here",
}
_LINE_EVERY_S = 15.0


def run(spec: CaptionSpec, *, limit: int | None = None, dry_run: bool = False, serial: bool = False) -> int:
    """Run the job, and return its exit code.

    Args:
        spec: checked.
        limit: do only so many images of those that are left, rounded up to whole shards.
        dry_run: print what is left, and the captions and the cost of a first batch; write nothing.
        serial: in this process, without Ray.

    Raises:
        ValueError: whatever of spec, model, folder or shards makes the job impossible.
    """
    console = Console()
    log_to_console()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    spec = spec.model_copy(
        update={"captions": storage.absolute(spec.captions), "model": absolute_sources(spec.model)}
    )
    folder = locate(spec)
    Preparation(folder, spec)  # a model that cannot take the spec's pictures is refused before Ray is started
    shards = list_shards(spec.input)
    manifest = make_manifest(spec, folder)
    left = _what_is_left(spec, manifest, shards, limit)
    if not left:
        console.print(
            f"nothing to do: {len(shards):,} shards have captions at {spec.captions}", soft_wrap=True
        )
        return DONE
    if not dry_run:
        storage.check_writable(spec.captions)
    try:
        return _run(console, spec, manifest, left, len(shards), dry_run=dry_run, serial=serial)
    except JobFailed as error:
        logger.error("%s", error)
        return FAILED
    except KeyboardInterrupt:
        logger.error("%s", _OUTCOMES[STOPPED])
        return STOPPED


def _what_is_left(
    spec: CaptionSpec, manifest: CaptionsManifest, shards: Sequence[Shard], limit: int | None
) -> list[Shard]:
    """Shards without captions, in order; what is there must be of this model and of these shards."""
    captions = Captions(spec.captions)
    left = list(shards)
    try:
        check_same(captions, manifest.identity)
        warn_of_other_libraries(
            captions.manifest.libraries,
            manifest.libraries,
            "the captions were",
            "new ones may differ in a word",
        )
        has = captions.has(shards)
        captions.check_unchanged([shard for shard, there in zip(shards, has, strict=True) if there])
        left = [shard for shard, there in zip(shards, has, strict=True) if not there]
    except CaptionsError as error:
        if not error.missing:
            raise
    if limit is None:
        return left
    kept = []
    for shard in left:
        if limit <= 0:
            break
        kept.append(shard)
        limit -= count_samples(shard, spec.input, limit)
    return kept


def _run(
    console: Console,
    spec: CaptionSpec,
    manifest: CaptionsManifest,
    left: list[Shard],
    shards: int,
    *,
    dry_run: bool,
    serial: bool,
) -> int:
    """Everything that needs workers."""
    runner = (SerialCaptions if serial else RayCaptions)(spec, manifest)
    try:
        if dry_run:
            _show_plan(console, spec, left, shards, runner.preview(left[0]), runner)
            return DONE
        open_captions(spec.captions, manifest)
        job = CaptionJob(left)
        report = _Progress(console, left)
        code = FAILED
        try:
            with stop_on_signal(job.stopping, spec.cluster.stop_grace_s, console):
                runner.run(job, report)
            code = _exit_code(job)
        except KeyboardInterrupt:
            code = STOPPED
        except JobFailed as error:
            logger.error("%s", error)
        _show_summary(console, spec, job, code, report.seconds)
        return code
    finally:
        runner.close()


def _exit_code(job: CaptionJob) -> int:
    if job.schedule.remaining:
        return STOPPED
    if job.schedule.set_aside:
        return SET_ASIDE if job.schedule.done else FAILED
    return DONE


class _Progress:
    """A line every quarter of a minute: how far, how fast, how long still."""

    def __init__(self, console: Console, shards: Sequence[Shard]) -> None:
        self._console = console
        self._shards, self._bytes = len(shards), sum(shard.size for shard in shards)
        self._started = self._last = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    def __call__(self, job: CaptionJob, progress: dict[str, float]) -> None:
        if time.monotonic() - self._last < _LINE_EVERY_S:
            return
        self._last = time.monotonic()
        images, bad = progress.get("images", 0), progress.get("bad", 0)
        done = job.bytes_done / self._bytes if self._bytes else 0.0
        left = duration(self.seconds / done * (1 - done)) if done else "-"
        self._console.print(
            f"caption: {job.schedule.done}/{self._shards} shards  {images:,.0f} images "
            f" {images / self.seconds:.1f}/s  left {left}  bad {bad:,.0f}",
            highlight=False,
        )


def _show_plan(
    console: Console,
    spec: CaptionSpec,
    left: list[Shard],
    shards: int,
    preview: Preview,
    runner: RayCaptions | SerialCaptions,
) -> None:
    first = Table("sample", "caption", title=escape(f"the first batch of {left[0].id}"))
    for record in preview.records:
        told = record.caption or f"bad: {record.reason} ({record.detail})"
        first.add_row(escape(record.key or ""), escape(told))
    console.print(first)
    table = Table(show_header=False)
    table.add_row("captions", spec.captions)
    table.add_row("shards", f"{len(left):,} of {shards:,} are to do")
    table.add_row("model", f"{spec.model.source}, {preview.parameters / 1e6:,.1f} million parameters")
    table.add_row("prompt", "none" if spec.prompt is None else escape(spec.prompt))
    table.add_row("actors", f"{runner.actors} on {runner.device}")
    rate = runner.actors / preview.seconds_per_image
    table.add_row("speed", f"about {rate:.1f} images/s in all, by that batch of {spec.model.batch_size}")
    console.print(table)


def _show_summary(console: Console, spec: CaptionSpec, job: CaptionJob, code: int, seconds: float) -> None:
    console.print(f"caption: {_OUTCOMES[code]}", highlight=False, soft_wrap=True)
    table = Table(show_header=False)
    images = job.counts.total()
    table.add_row("shards", f"{job.schedule.done:,} captioned")
    table.add_row("images", f"{images:,} in {duration(seconds)} ({images / max(seconds, 1e-9):.1f} a second)")
    for reason, count in job.counts.most_common():
        table.add_row("ok" if reason == "ok" else f"bad: {reason}", f"{count:,}")
    for shard in job.schedule.set_aside:
        table.add_row("failed", escape(shard))
    table.add_row("captions", spec.captions)
    console.print(table)


if __name__ == "__main__":
    from jobs.cli import main

    sys.argv.insert(1, "caption")
    main()
