"""What other processes log of their steps, told here as they go."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.heads.folder import split_name
from pipeline.training.loop import LOG

_LOOK_EVERY_S = 2.0
STOP = "stop"
"""File in the work folder that tells the processes to stop."""
Tell = Callable[[int, int, dict[str, float]], None]
"""Takes a split's number, the steps done, and what was logged."""


@contextmanager
def following(work: Path, splits: Sequence[int], tell: Tell, asked: threading.Event) -> Iterator[None]:
    """Tell of the steps that appear in the splits' logs while the context is open, and pass on that it is to stop.

    Args:
        work: folder of checkpoints and logs, which the processes share.
        splits: their numbers.
        tell: called with each new last line of a log.
        asked: where it is set, the processes are told to stop, by a file that they look for.
    """
    stop = work / STOP
    stop.unlink(missing_ok=True)
    ended = threading.Event()
    told = {split: _last(work, split)[0] for split in splits}

    def look() -> None:
        if asked.is_set() and work.exists():
            stop.touch()
        for split in splits:
            step, logged = _last(work, split)
            if step > told[split]:
                told[split] = step
                tell(split, step, logged)

    def keep_looking() -> None:
        while not ended.wait(_LOOK_EVERY_S):
            look()

    thread = threading.Thread(target=keep_looking, name="follow", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        look()
        stop.unlink(missing_ok=True)


def _last(work: Path, split: int) -> tuple[int, dict[str, float]]:
    """The newest whole line of a split's log: steps done, and what was logged; 0 steps where there is none."""
    path = work / split_name(split) / LOG
    lines = path.read_text().splitlines()[-2:] if path.exists() else []
    for line in reversed(lines):
        try:
            logged = json.loads(line)
        except ValueError:
            continue  # being written now
        return int(logged["step"]), logged
    return 0, {}
