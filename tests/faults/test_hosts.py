"""Three nights on a cluster of three hosts: a run that is killed, two that fire at once, and a node that is cut off.

`make test-hosts ARGS=-s` prints what every command said.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import endings, extract, verify
from pipeline import storage
from pipeline.s3 import S3
from schemas.specfile import dump
from tests.faults.harness import contents, spec_of, wait_until, write_shards
from tests.faults.hosts import lacking, network
from tests.faults.ray_hosts import ENVIRONMENT, NIGHT, SHARDS, SPEC, STORE, RayHosts, ray_hosts, told
from tests.infra.test_dashboard import queries
from tests.infra.test_prometheus import write_damaged
from tests.s3_server import serve

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(1800)]
IMAGES = 48  # a shard
FIRST, SECOND, THIRD = 6, 5, 8  # shards that are new on each night; one of the second's is damaged
TOTAL = queries()["Images in the time shown A"]
BY_NODE = TOTAL.replace("sum(", "sum by (NodeAddress) (", 1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """All of them, in the order in which they come into being."""
    folder = tmp_path_factory.mktemp("made") / "shards"
    write_shards(folder, FIRST + SECOND + THIRD - 1, IMAGES)
    write_damaged(folder)
    (folder / "00-damaged.tar").rename(folder / f"{FIRST:02d}-damaged.tar")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHosts]:
    """Ray, Prometheus and S3, whose URLs are this server's in this process too."""
    if (why := lacking()) is not None:
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("hosts")
    with (
        network(folder, "head", "worker-1", "worker-2", environment=ENVIRONMENT) as net,
        serve(folder / "s3", address=net.address) as server,
        ray_hosts(net, server.environment()) as made,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in server.environment().items():
            patch.setenv(name, value)
        S3.clear_instance_cache()
        server.make_bucket("birds")
        yield made
        S3.clear_instance_cache()


def test_a_wrong_token_is_refused(cluster: RayHosts) -> None:
    address = f"--address={cluster.head.address}:6379"
    code, said = cluster.workers[0].run("ray", "status", address, env={"RAY_AUTH_TOKEN": "0" * 64})
    assert code != 0 and "InvalidAuthToken" in said
    assert cluster.workers[0].run("ray", "status", address)[0] == 0


def test_a_folder_that_nodes_do_not_share(cluster: RayHosts, shards: list[Path]) -> None:
    """Guards against a job that says `done` where each worker has stored its rows on a disk of its own."""
    storage.open_fs(SHARDS)[0].put_file(str(shards[0]), "birds/one/0.tar")
    local = spec_of("/tmp/store", "s3://birds/one/*.tar")
    (cluster.head.folder / "local.yaml").write_text(dump(local))
    code, said = told(cluster.submit("gatehouse", "extract", "/tmp/local.yaml"))
    say("a store in a folder of the head's", said)
    assert "3 machines, and all of them must find the same under /tmp/store" in said
    assert "store /tmp/store: host worker-" in said and "does not see there what the driver wrote" in said
    assert code != 0 and "exit code 1" in said


def test_three_nights(cluster: RayHosts, shards: list[Path], tmp_path: Path) -> None:
    """Whatever happens on them, a store has what an undisturbed run without Ray has."""
    spec = spec_of(STORE, f"{SHARDS}/*.tar", lease_ttl_s=10.0)
    storage.open_fs(SPEC)[0].pipe_file(SPEC, dump(spec).encode())
    new = iter(shards)
    grow(new, FIRST)
    killed(cluster)
    grow(new, SECOND)
    two_at_once(cluster)
    grow(new, THIRD)
    cut_off(cluster)
    code, said = cluster.head.run("gatehouse", "verify", STORE)
    say("gatehouse verify", said)
    assert code == verify.SOUND and "sound" in said
    quiet = str(tmp_path / "quiet")
    assert extract.run(spec_of(quiet, f"{shards[0].parent}/*.tar"), serial=True) == endings.DONE
    stored = contents(STORE)
    say("beside a serial run", f"{len(stored)} records, equal to the last byte: {stored == contents(quiet)}")
    assert stored == contents(quiet)


def grow(new: Iterator[Path], count: int) -> None:
    """Put the next shards into the folder."""
    fs, root = storage.open_fs(SHARDS)
    for path in (next(new) for _ in range(count)):
        fs.put_file(str(path), f"{root}/{path.name}")


def killed(cluster: RayHosts) -> None:
    """The first night: SIGKILL of the driver, as soon as some shards are done."""
    night = cluster.submit(*NIGHT)
    fs, root = storage.open_fs(STORE)
    wait_until(lambda: fs.exists(f"{root}/manifest.json"), "a store", timeout=400)
    [driver] = cluster.at_work(2).drivers
    say_status(cluster, "at work")
    assert driver.host == "head"
    cluster.head.run("kill", "-KILL", str(driver.pid))
    code, said = told(night)
    say("the first night, killed", said)
    assert code != 0 and "exit code 137" in said
    wait_until(lambda: not any(one.alive for one in cluster.status().drivers), "it to count as dead")
    say_status(cluster, "nobody is at work, and shards are left")
    found = cluster.status()
    assert 2 <= found.shards.done < FIRST == found.shards.known and found.runs == 0


def two_at_once(cluster: RayHosts) -> None:
    """The second night: a job of Ray's and a cron on another host. One takes over, the other leaves it alone."""
    before, began = cluster.status(), time.time()
    joined = {"RAY_ADDRESS": f"{cluster.head.address}:6379"}
    nights = [cluster.submit(*NIGHT), cluster.workers[0].start(*NIGHT, env=joined)]
    wait_until(lambda: any(night.poll() is not None for night in nights), "one to leave it", timeout=400)
    code, said = cluster.workers[1].run("gatehouse", "extract", SPEC, env=joined)
    say(f"a third driver meanwhile, exit code {code}", said)
    assert code == endings.HELD and "another driver is at work there" in said
    ended = [told(night) for night in nights]
    for (code, said), name in zip(ended, ("ray job submit", "cron on worker-1"), strict=True):
        say(f"the second night, {name}, exit code {code}", said)
        assert code == 0
    assert sum("what it held is taken over" in said and "verify: sound" in said for _, said in ended) == 1
    assert sum("another driver is at work there" in said for _, said in ended) == 1
    say_status(cluster, "done")
    after, found = cluster.status(), say_dashboard(cluster, "the second night", began)
    run, left = after.last_run, before.shards.left
    assert run is not None and (run.exit_code, after.runs, after.shards.left) == (endings.DONE, 1, 0)
    assert run.images == after.rows.good + after.rows.bad - before.rows.good
    assert 0.9 * run.images < found["Images in the time shown A"][""] <= run.images
    assert found["Shards A"] == {"": left} and found["Shards B"] == {"done": left, "set-aside": 0}
    bad = found["Bad samples by reason A"] | found["Damaged shards by reason A"]
    assert bad == after.rows.reasons and len(bad) == 2 and found["Actors replaced, by reason A"] == {}
    assert found["Actors A"]["working"] == 2 and 0 < found["Device busy B"][""] <= 1
    assert set(cluster.ask(BY_NODE, began)) == {worker.address for worker in cluster.workers}


def cut_off(cluster: RayHosts) -> None:
    """The third night: the cable of a node that computes is pulled, and put back when the night is over."""
    before, began, lost = cluster.status(), time.time(), cluster.workers[1]
    night = cluster.submit(*NIGHT)
    cluster.at_work(before.shards.done + 1)
    wait_until(lambda: cluster.ask(BY_NODE, began).get(lost.address), "the node to compute")
    lost.cut_off()
    cut = time.time()
    code, said = told(night)
    say(f"the third night, exit code {code}, {time.time() - cut:.0f} s after the cut", said)
    assert code == 0 and "an actor died" in said and "verify: sound" in said
    say_status(cluster, "done")
    found, run = say_dashboard(cluster, "the third night", began), cluster.status().last_run
    assert (
        run is not None and found["Images in the time shown A"][""] > 0.9 * run.images == 0.9 * THIRD * IMAGES
    )
    assert found["Actors replaced, by reason A"] == {"node-lost": 1}
    lost.plug_in()
    wait_until(lambda: "ray" not in lost.run("ps", "-eo", "comm")[1], "what is left of Ray there to end")


def say_dashboard(cluster: RayHosts, night: str, began: float) -> dict[str, dict[str, float]]:
    """Ask all that the dashboard asks; each query has an answer, but for what did not happen."""
    time.sleep(3)  # the last report, and its scrape
    found = {title: cluster.ask(query, began) for title, query in queries().items()}
    say(f"the dashboard, of {night}", "\n".join(f"{title}: {answer}" for title, answer in found.items()))
    say(f"images of {night}, by node", str(cluster.ask(BY_NODE, began)))
    assert [title for title, answer in found.items() if not answer and "reason" not in title] == []
    return found


def say_status(cluster: RayHosts, headline: str) -> None:
    """What `gatehouse status` prints for people."""
    code, said = cluster.head.run("gatehouse", "status", STORE, "--price", "2.40")
    say("gatehouse status --price 2.40", said)
    assert code == 0 and f"status: {headline}" in said


def say(title: str, text: str) -> None:
    """For the transcript."""
    print(f"\n--- {title}\n{text.rstrip()}", flush=True)
