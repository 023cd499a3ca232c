"""One signal asks a job to stop, the second insists."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from rich.console import Console

from jobs import endings
from jobs.endings import interrupted_by_term, stop_on_signal


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_stops_and_the_second_ends(
    number: signal.Signals, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endings, "_ONE_SIGNAL_S", 0.05)
    before = signal.getsignal(number)
    stopping = threading.Event()
    with stop_on_signal(stopping, 20.0, Console()):
        assert not stopping.is_set()
        os.kill(os.getpid(), number)
        assert stopping.wait(5)
        os.kill(os.getpid(), number)  # by a script that passes on what its group was told already
        time.sleep(0.05)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
    assert f"{number.name}: finishing the shards in work, for up to 20 s" in capsys.readouterr().out


def test_term_is_an_interrupt_where_nothing_needs_to_be_finished() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), interrupted_by_term():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
