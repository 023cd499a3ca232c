"""What is wrong with an input, as data: a reason to count and a detail to read."""

from __future__ import annotations


class _Bad(ValueError):
    def __init__(self, reason: str, detail: str = "") -> None:
        # Both as args, so that the exception survives pickling; torch makes it anew in a loader, of a text alone.
        super().__init__(reason, detail)
        self.reason = reason
        """Kebab-case; the value of the index's `reason` column."""
        self.detail = detail
        """One sentence for people."""

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


class BadSample(_Bad):
    """A sample that cannot become a row of features."""


class BadShard(_Bad):
    """A shard that cannot be read to its end; the samples before the fault are good."""
