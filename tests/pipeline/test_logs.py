"""Logs: lines for people, JSON for machines, and no secrets in either."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pipeline import logs

Configure = Callable[[bool], None]
SECRET = "wJalrXUtnFEMI/K7MDENG"


@pytest.fixture
def configure() -> Iterator[Configure]:
    """`logs.configure` as in a process where nobody logs yet; pytest does, from when a test is called."""
    root, level = logging.getLogger(), logs.logger.level
    before: list[logging.Handler] = []

    def anew(json_lines: bool) -> None:
        if not before:
            before.extend(root.handlers)
            root.handlers = []
        logs.configure(json_lines=json_lines)

    yield anew
    root.handlers = [*before]
    logs.logger.setLevel(level)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_json_line_names_shard_and_row(configure: Configure, capsys: pytest.CaptureFixture[str]) -> None:
    configure(True)
    about = {"shard": "b.tar", "key": "3", "position": 3, "reason": "undecodable-image", "other": object()}
    logs.logger.debug("bad sample: %s", "line 1\nline 2", extra=about)
    [line] = lines(capsys)
    assert {name: line[name] for name in ("shard", "key", "position", "reason")} == {
        name: about[name] for name in ("shard", "key", "position", "reason")
    }
    assert line["message"] == "bad sample: line 1\nline 2" and line["level"] == "debug"
    assert line["time"].endswith("+00:00") and line["pid"] > 0 and line["host"]
    assert "other" not in line


def test_other_libraries_and_tracebacks_are_json_too(
    configure: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(True)
    configure(True)  # a second job in one process must not log twice
    try:
        raise KeyError("x")
    except KeyError:
        logging.getLogger("botocore").exception("oh")
    [line] = lines(capsys)
    assert line["logger"] == "botocore" and "KeyError: 'x'" in line["error"]


def test_lines_for_people(configure: Configure, capsys: pytest.CaptureFixture[str]) -> None:
    """As they always were, and without a line for every bad sample."""
    configure(False)
    logs.logger.debug("bad sample")
    logs.logger.warning("%s: io-error", "a.tar", extra={"shard": "a.tar"})
    assert capsys.readouterr().err == "gatehouse: a.tar: io-error\n"


@pytest.mark.parametrize("json_lines", [True, False])
def test_secrets_are_blotted_out(
    json_lines: bool,
    configure: Configure,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever a client library puts into its error."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AUTH_TOKEN", "short")
    configure(json_lines)
    error = (
        f"key {SECRET} refused; https://me:{SECRET[:5]}@host/a?X-Amz-Signature=abc123&part=1 shortly,"
        " hf download ?token=hf_12345"
    )
    logs.logger.warning("%s", error, extra={"reason": SECRET})
    text = capsys.readouterr().err
    for secret in (SECRET, SECRET[:5], "abc123", "hf_12345", "me:"):
        assert secret not in text
    assert "&part=1" in text and "shortly" in text and "@host/a" in text


@pytest.mark.parametrize(("value", "expected"), [("json", True), ("text", False), ("", False)])
def test_the_environment_decides(value: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEHOUSE_LOG", value)
    assert logs.wants_json() is expected


def test_a_wrong_wish_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEHOUSE_LOG", "jsno")
    with pytest.raises(ValueError, match="GATEHOUSE_LOG is 'jsno'; give json or text"):
        logs.wants_json()
