"""A driver at work: it enters, gives signs of life in a thread of its own, and leaves."""

from __future__ import annotations

import logging
import os
import shlex
import socket
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from pipeline.lease_board import Board
from pipeline.leases import Driver
from schemas.lease import Heartbeat, Mode

logger = logging.getLogger("gatehouse")


@contextmanager
def driving(url: str, mode: Mode, ttl_s: float) -> Iterator[Driver]:
    """A driver that lives until the context ends, or its process does.

    Args:
        url: of the store, which may not be there yet.
        mode: alone, or beside others.
        ttl_s: seconds after which others take it for dead.

    Raises:
        Held: by a driver beside which this one may not work.
        StorageError: a right is missing.
    """
    driver = Driver(Board(url), _introduction(mode, ttl_s))
    stop = threading.Event()
    try:
        driver.enter()
        threading.Thread(target=_beat_on, args=(driver, stop), name="heartbeat", daemon=True).start()
        yield driver
    finally:
        stop.set()
        driver.end()


def _beat_on(driver: Driver, stop: threading.Event) -> None:
    while not stop.wait(driver.me.ttl_s / 3):
        try:
            driver.beat()
        except Exception as error:  # whatever it is, the next try may succeed, and silence is safe
            logger.warning("no sign of life could be given: %s", error)


def _introduction(mode: Mode, ttl_s: float) -> Heartbeat:
    program, *arguments = sys.argv or ["gatehouse"]
    return Heartbeat(
        driver=uuid.uuid4().hex,
        mode=mode,
        host=socket.gethostname(),
        pid=os.getpid(),
        command=shlex.join([os.path.basename(program), *arguments])[:500],
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        ttl_s=ttl_s,
    )
