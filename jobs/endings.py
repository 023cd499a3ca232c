"""How jobs end: their exit codes, and what a signal does."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

DONE, FAILED, SET_ASIDE, TOO_MANY_BAD, STOPPED, HELD = 0, 1, 3, 4, 5, 6
"""Exit codes; 2 is a spec or store that was refused before work started, 6 a job that another driver works on."""

_ONE_SIGNAL_S = 1.0


@contextmanager
def interrupted_by_term() -> Iterator[None]:
    """SIGTERM raises what SIGINT does, for work that has nothing to finish.

    Raises:
        KeyboardInterrupt: at either.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def stop_on_signal(stopping: threading.Event, grace_s: float, console: Console) -> Iterator[None]:
    """On SIGINT or SIGTERM set `stopping`, so that shards in work finish; a second signal ends at once.

    Raises:
        KeyboardInterrupt: at the second signal.
    """
    what = f"the shards in work, for up to {grace_s:.0f} s; again to stop at once. Nothing stored is lost: the same"
    with on_signal(stopping, f"{what} command goes on from here", console):
        yield


@contextmanager
def on_signal(stopping: threading.Event, finishing: str, console: Console) -> Iterator[None]:
    """On SIGINT or SIGTERM set `stopping` and say what is being finished; a second signal ends at once.

    Two within a second are one: a supervisor that signals all processes of a job, and a script that passes it on.

    Raises:
        KeyboardInterrupt: at the second signal.
    """
    first: float | None = None

    def stop(number: int, _: Any) -> None:
        nonlocal first
        if first is not None and time.monotonic() - first < _ONE_SIGNAL_S:
            return
        if stopping.is_set():
            raise KeyboardInterrupt
        first = time.monotonic()
        stopping.set()
        console.print(f"{signal.Signals(number).name}: finishing {finishing}", soft_wrap=True)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
