"""What a job asks of a cluster, from the spec and the first shards alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import sources
from pipeline.demand import ASSUMED_PASSES, Rate, demand, misfits, place, rate_of
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
    assert (found.images, found.exact, found.read) == (10, True, sum(sizes))
    assert (found.actors, found.machines, found.gpus) == (4, 4, 4)
    pooled = 4 * 2 * sum(stores.CHANNELS)
    assert found.written == 10 * (plan.row_bytes + pooled)
    assert found.seconds == 10 / 8
    assert found.cost(3.6) == pytest.approx(4 * 3.6 * 1.25 / 3600)


def test_the_whole_job(spec: ExtractSpec) -> None:
    """Of which the shards that are there are a sample."""
    few, many = (demand(spec, [GPU], images=images, rate=Rate(2.0, "")) for images in (None, 1_000_000))
    assert many.images == 1_000_000 and many.exact
    assert many.read == pytest.approx(few.read * 1e5, rel=1e-6) and many.written == few.written * 1e5
    assert many.memory == few.memory


def test_an_assumption_says_so(spec: ExtractSpec) -> None:
    assert rate_of(spec, 3.5) == Rate(3.5, "as given")
    assumed = rate_of(spec, None)
    assert assumed.images == ASSUMED_PASSES / 2 and "assumed" in assumed.source and "--rate" in assumed.source


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
    assert misfits(Cluster(device="cpu", actors=8), [], memory=2**30) == [], (
        "machines of which nothing is known"
    )


KINDS = st.builds(
    Workers,
    st.just("kind"),
    most=st.integers(0, 5),
    cpus=st.integers(0, 16),
    gpus=st.integers(0, 4),
    memory=st.none(),
)


@given(
    st.lists(KINDS, min_size=1, max_size=3),
    st.integers(1, 40),
    st.integers(1, 8),
    st.sampled_from(["cpu", "cuda"]),
)
def test_actors_find_room_or_it_is_said(kinds: list[Workers], actors: int, cpus: int, device: Any) -> None:
    """What is asked of machines is never more than they have, nor less than the job wants, without a word."""
    cluster = Cluster(device=device, actors=actors, cpus_per_actor=cpus)
    room = sum(
        kind.most * min([kind.cpus // cpus, *([kind.gpus] if device == "cuda" else [])]) for kind in kinds
    )
    placed, machines = place(cluster, kinds)
    assert placed == max(1, min(actors, room))
    assert machines <= max(1, sum(kind.most for kind in kinds))
    said = [line for line in misfits(cluster, kinds, 0) if "room" in line or "no worker has" in line]
    assert bool(said) == (room < actors)
