#!/usr/bin/env python3
"""What a pod does before it is stopped: tell the driver, if it has one, and wait until the shards in work are done.

    finish.py SECONDS

Kubernetes sends SIGTERM to a container's first process alone. Ray, which that is, does not pass it on to a job's driver
and ends the actors at once. So this comes before, as `preStop`: in the head's pod, where the driver runs, it sends the
signal and waits; in a worker's pod it waits for the actors, which end with the driver. Without either it ends at once.
"""

import contextlib
import sys
import time

import psutil

DRIVER, ACTOR = "gatehouse", "ray::ExtractActor"


def working() -> list[psutil.Process]:
    """Drivers, and actors by the title that Ray gives their processes."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            title = (process.cmdline() or [""])[0]
            if process.status() != psutil.STATUS_ZOMBIE and (
                process.name() == DRIVER or title.startswith(ACTOR)
            ):
                found.append(process)
    return found


def main(seconds: float) -> None:
    until = time.monotonic() + seconds
    for process in working():
        with contextlib.suppress(psutil.Error):
            if process.name() == DRIVER:
                process.terminate()
    while working() and time.monotonic() < until:
        time.sleep(0.5)


if __name__ == "__main__":
    main(float(sys.argv[1]))
