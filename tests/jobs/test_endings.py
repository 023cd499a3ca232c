"""One signal asks a job to stop, the second insists."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from rich.console import Console

from jobs.endings import stop_on_signal


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_stops_and_the_second_ends(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    stopping = threading.Event()
    with stop_on_signal(stopping, 20.0, Console()):
        assert not stopping.is_set()
        os.kill(os.getpid(), number)
        assert stopping.wait(5)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
    assert f"{number.name}: finishing the shards in work, for up to 20 s" in capsys.readouterr().out
