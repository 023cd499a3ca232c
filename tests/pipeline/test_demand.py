"""What a job asks of a cluster, from the spec and the first shards alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import sources
from pipeline.demand import ASSUMED_PASSES, Rate, demand, misfits, passes, place, rate_of
from pipeline.features import make_engine
from pipeline.layouts import layouts
from pipeline.plan import make_plan
from schemas.cluster_file import Workers
from schemas.spec import Backbone, Cluster, ExtractSpec
from tests import stores

GPU = Workers("gpu", most=8, cpus=4, gpus=1, memory=2**34)


@pytest.fixture(scope="module")
def spec(built: Path) -> ExtractSpec:
    """Of ten samples in two shards, on GPUs."""
    made = stores.spec_of(built / "none", [str(built / "shards" / name) for name in ("a.tar", "sub/b.tar")])
    return made.model_copy(update={"cluster": Cluster(device="cuda", actors=4)})


def test_what_the_shards_say(spec: ExtractSpec, built: Path) -> None:
    found = demand(spec, [GPU], images=None, rate=Rate(2.0, "as given"))
    sizes = [file.stat().st_size for file in (built / "shards").rglob("*.tar")]
    plan = make_plan(spec)
    assert (found.images, found.exact, found.scaled, found.read) == (10, True, False, sum(sizes))
    assert (found.actors, found.machines, found.gpus) == (4, 4, 4)
    pooled = 4 * 2 * sum(stores.CHANNELS)
    assert found.written == 10 * (plan.row_bytes + pooled)
    assert found.seconds == 10 / 8
    assert found.cost(3.6) == pytest.approx(4 * 3.6 * 1.25 / 3600)


def test_the_whole_job(spec: ExtractSpec) -> None:
    """Of which the shards that are there are a sample."""
    few, many = (demand(spec, [GPU], images=images, rate=Rate(2.0, "")) for images in (None, 1_000_000))
    assert many.images == 1_000_000 and many.exact and many.scaled
    assert many.read == pytest.approx(few.read * 1e5, rel=1e-6) and many.written == few.written * 1e5
    assert many.memory == few.memory


def test_machines_are_paid_for_whole(spec: ExtractSpec) -> None:
    """Four GPUs each, of which the job's actor takes one."""
    alone = spec.model_copy(update={"cluster": Cluster(device="cuda", actors=1)})
    found = demand(
        alone, [Workers("large", most=1, cpus=1, gpus=4, memory=None)], images=7200, rate=Rate(1.0, "")
    )
    assert (found.actors, found.machines, found.cost(12.0)) == (1, 1, 24.0)


def test_an_assumption_says_so(spec: ExtractSpec) -> None:
    assert rate_of(spec, 3.5) == Rate(3.5, "as given")
    assumed = rate_of(spec, None)
    assert assumed.images == ASSUMED_PASSES / 2 and "assumed" in assumed.source and "--rate" in assumed.source
    assert "2 an image" in assumed.source


def group(name: str, *techniques: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"name": name, "prompt": "a", "t": 50, "taps": "legacy", "techniques": list(techniques), **fields}


INVERSION = {"type": "inversion", "steps": 10}
GROUPS = [
    group("plain"),
    group("inverted", INVERSION),
    group("guided", INVERSION, {"type": "guidance", "scale": 2.0}),
    group("averaged", {"type": "average", "seeds": 3}, {"type": "denoise", "start": 55}),
    group("few-taps", taps=["mid-vit-block0-self-q"]),
]


def of_groups(groups: list[dict[str, Any]], **output: Any) -> ExtractSpec:
    document = {"version": 1, "store": "s", "input": {"shards": "embedded"}, "image_size": [64, 64]}
    return ExtractSpec.model_validate(document | {"groups": groups, "output": output})


@pytest.mark.parametrize("output", [{}, {"scores": {}}], ids=["features", "scores"])
def test_passes_are_those_of_the_engine(output: dict[str, Any]) -> None:
    """Of techniques, of groups that share theirs, and of what Scores are measured against."""
    spec = of_groups(GROUPS, **output)
    engine = make_engine(spec, layouts(spec, sources.locate(spec.backbone)), "cpu")
    assert passes(spec) == engine.network_calls
    assert passes(of_groups(GROUPS[:1])) == 1 and passes(of_groups(GROUPS[1:2])) == 11


def test_weights_of_techniques(spec: ExtractSpec) -> None:
    """Each file once, though two groups load it; a hub's size is not known."""
    shipped = Path(sources.locate(Backbone())).parent
    net = {"type": "controlnet", "source": "embedded/controlnet-canny"}
    lora = {"type": "lora", "source": str(shipped / "loras" / "moderate.safetensors")}

    def weights(*techniques: dict[str, Any]) -> int | None:
        groups = of_groups([group("one", *techniques), group("two", *techniques, seed=1)]).groups
        return demand(
            spec.model_copy(update={"groups": groups}), [GPU], images=10, rate=Rate(1.0, "")
        ).weights

    files = [*(shipped / "controlnet-canny").glob("*.safetensors"), Path(lora["source"])]
    backbone, both = weights(), weights(net, lora)
    assert backbone is not None and both == backbone + sum(file.stat().st_size for file in files)
    assert weights(net | {"source": "owner/name", "revision": "0" * 40}) is None


def test_weights(tmp_path: Path) -> None:
    """Of a folder, the same by its URL, and not of a hub, which would have to be asked."""
    found = sources.weight_bytes(Backbone())
    folder = sources.locate(Backbone())
    assert found == sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    assert sources.weight_bytes(Backbone(source=f"file://{folder}")) == found


@pytest.mark.parametrize(
    ("cluster", "workers", "message"),
    [
        ({"device": "auto", "actors": 2}, [GPU], "cluster.device is auto: while no worker is there"),
        ({"device": "cuda"}, [GPU], "cluster.actors is not given"),
        ({"device": "cuda", "actors": 9}, [GPU], "cluster.actors is 9, the machines have room for 8"),
        (
            {"device": "cuda", "actors": 1, "cpus_per_actor": 8},
            [GPU],
            "no worker has 8 CPUs and 1 GPU, which one actor needs",
        ),
        (
            {"device": "cpu", "actors": 2},
            [Workers("small", most=2, cpus=4, gpus=0, memory=2**30)],
            "4 actors a small machine hold 2,147,483,648 bytes in their queues",
        ),
    ],
)
def test_what_does_not_fit_is_said(cluster: dict[str, Any], workers: list[Workers], message: str) -> None:
    (found,) = misfits(Cluster(**cluster), workers, memory=2**29)
    assert message in found


def test_what_fits() -> None:
    assert misfits(Cluster(device="cuda", actors=8, cpus_per_actor=4), [GPU], memory=2**30) == []
    unknown = Workers("unknown", most=2, cpus=None, gpus=None, memory=None)
    for machines in ([], [unknown], [GPU, unknown]):
        assert misfits(Cluster(device="cuda", actors=80), machines, memory=2**30) == [], (
            "nothing is known of them"
        )
    assert place(Cluster(device="cuda", actors=80), [unknown]) == (2, 2)
    assert place(Cluster(device="cuda", actors=3), []) == (3, 3)


MACHINES = st.tuples(st.integers(0, 5), st.integers(0, 16), st.integers(0, 4))
"""How many, with how many CPUs and GPUs."""


@given(
    st.lists(MACHINES, min_size=1, max_size=3),
    st.integers(1, 40),
    st.integers(1, 8),
    st.sampled_from(["cpu", "cuda"]),
)
def test_actors_find_room_or_it_is_said(
    machines: list[tuple[int, int, int]], actors: int, cpus: int, device: Any
) -> None:
    """What is asked of machines is never more than they have, nor less than the job wants, without a word."""
    cluster = Cluster(device=device, actors=actors, cpus_per_actor=cpus)
    room = sum(
        most * min([cores // cpus, *([gpus] if device == "cuda" else [])]) for most, cores, gpus in machines
    )
    kinds = [Workers("kind", most, cores, gpus, memory=None) for most, cores, gpus in machines]
    placed, filled = place(cluster, kinds)
    assert placed == max(1, min(actors, room))
    assert filled <= max(1, sum(kind.most for kind in kinds))
    said = [line for line in misfits(cluster, kinds, 0) if "room" in line or "no worker has" in line]
    assert bool(said) == (room < actors)
