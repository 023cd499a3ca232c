"""VAE encodings and network passes that a job makes, beside the least that its groups need. Counted, not timed."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor, nn

from jobs.benchmarks.figures import Figure, Line, Measurement
from jobs.benchmarks.workbench import SHARD_IMAGES, Workbench, engine_of, loaded
from pipeline.backbone import Backbone
from pipeline.plan import make_plan

_GROUPS: list[dict[str, Any]] = [
    {"name": "plain", "prompt": "a photo", "t": 50, "taps": "legacy"},
    {"name": "other-taps", "prompt": "a photo", "t": 50, "taps": "practical"},
    {"name": "other-prompt", "prompt": "a drawing", "t": 50, "taps": "legacy"},
    {"name": "caption", "prompt": "{caption}", "t": 50, "taps": "legacy"},
    {"name": "other-seed", "prompt": "a photo", "t": 50, "seed": 1, "taps": "legacy"},
    {"name": "other-t", "prompt": "a photo", "t": 200, "taps": "legacy"},
]
_LEAST = {"VAE encodings": 1, "network passes": 5}
"""An image: all groups share its encoding, and `plain` and `other-taps` one pass of the network."""
_BATCHES = 2  # they are all alike


def measure(bench: Workbench) -> Measurement:
    """Six groups that share what they can, over a few batches."""
    plan = make_plan(bench.spec(SHARD_IMAGES, _GROUPS))
    engine = engine_of(plan)
    made = _count(engine.backbone)
    batches = loaded(plan)[:_BATCHES]
    for item in batches:
        engine.run(item.batch)
    images = sum(record is not None for item in batches for record in item.records)
    found = Measurement(facts={"images": images, "groups": len(_GROUPS), "made": dict(made)})
    for what, least in _LEAST.items():
        ours = Figure("made", [made[what] / images])
        found.lines.append(Line(what, "an image", "lower", ours, Figure("least possible", [float(least)])))
    return found


def _count(backbone: Backbone) -> Counter[str]:
    """Count the images that go into the modules themselves, padding included."""
    made: Counter[str] = Counter()

    def counter(what: str) -> Any:
        def count(_: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
            made[what] += len(inputs[0] if inputs else named["sample"])

        return count

    backbone.vae.encoder.register_forward_pre_hook(counter("VAE encodings"), with_kwargs=True)
    backbone.network.register_forward_pre_hook(counter("network passes"), with_kwargs=True)
    to_the_end = counter("passes to the network's end")
    backbone.network.conv_out.register_forward_pre_hook(to_the_end, with_kwargs=True)
    return made
