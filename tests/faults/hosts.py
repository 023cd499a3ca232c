"""Several hosts on one machine: network namespaces on a bridge, each with processes, a name and a /tmp of its own.

Of the machine they see its file system but for /tmp and /dev/shm, so that they are like nodes with one image. It takes
root, iproute2 and util-linux. Whoever runs a server for them binds it to `Network.address`, which only they reach.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

# The first process of a host: whatever ends becomes its child, and it takes note of that. `kill` on it ends the host.
_INIT = """
set -e
hostname "$1"
mount --bind "$2" /tmp
mount -t tmpfs none /dev/shm
echo up
while sleep 1; do :; done
"""


@dataclass
class Host:
    """A host that is up. Its /tmp is `folder` here."""

    name: str
    address: str
    folder: Path
    environment: dict[str, str]
    """Of every command run there."""
    init: psutil.Process
    _link: str = ""
    _started: list[subprocess.Popen[str]] = field(default_factory=list)

    def command(self, *command: str, env: Mapping[str, str] | None = None) -> list[str]:
        """What runs a command on this host, in its /tmp and with nothing of this process's environment."""
        pairs = [f"{key}={value}" for key, value in {**self.environment, **(env or {})}.items()]
        enter = ["nsenter", f"--target={self.init.pid}", "--mount", "--uts", "--ipc", "--net", "--pid"]
        return [*enter, "env", "--ignore-environment", "--chdir=/tmp", *pairs, *command]

    def run(
        self, *command: str, timeout: float = 240, env: Mapping[str, str] | None = None
    ) -> tuple[int, str]:
        """A command to its end: exit code, and what it printed on either stream."""
        process = self.start(*command, env=env)
        said, _ = process.communicate(timeout=timeout)
        self._started.remove(process)
        return process.returncode, said

    def start(self, *command: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """A command that goes on; it ends with its host."""
        process = _piped(self.command(*command, env=env))
        self._started.append(process)
        return process

    def cut_off(self) -> None:
        """Pull its cable: nothing arrives and nobody is told."""
        _ip("link", "set", self._link, "down")

    def plug_in(self) -> None:
        """Put the cable back."""
        _ip("link", "set", self._link, "up")

    def power_off(self) -> None:
        """End all of its processes at once."""
        if self.init.is_running():
            self.init.kill()
        for process in self._started:
            process.communicate()


@dataclass(frozen=True)
class Network:
    """A bridge and the hosts on it."""

    address: str
    """Of this machine, as the hosts reach it."""
    hosts: Sequence[Host]


def lacking() -> str | None:
    """Why there can be no hosts here, None where there can."""
    for program in ("ip", "nsenter", "unshare", "setpriv", "prometheus"):
        if shutil.which(program) is None:
            return f"there is no program `{program}` (apt-get install iproute2 util-linux prometheus)"
    if Path(__file__).resolve().is_relative_to("/tmp"):
        return "hosts have a /tmp of their own, and would not see a checkout that lies there"
    name = f"gatehouse-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if tried.returncode:
        return f"`ip netns add` is not permitted here, it takes root: {tried.stderr.strip()}"
    _ip("netns", "delete", name)
    return None


@contextmanager
def network(folder: Path, *names: str, environment: Mapping[str, str]) -> Iterator[Network]:
    """Hosts on a bridge of their own until the context ends, which ends all that runs on them.

    Args:
        folder: for what hosts have in /tmp, by name.
        names: of the hosts.
        environment: of all that runs on them.
    """
    number, bridge = os.getpid() % 250 + 1, f"gh{os.getpid()}"
    address = f"10.213.{number}.1"
    with ExitStack() as stack:
        _ip("link", "add", bridge, "type", "bridge")
        stack.callback(_ip, "link", "delete", bridge)
        _ip("address", "add", f"{address}/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        hosts = [
            stack.enter_context(
                _host(folder / name, bridge, address, f"10.213.{number}.{place}", environment)
            )
            for place, name in enumerate(names, start=2)
        ]
        yield Network(address, hosts)


@contextmanager
def _host(
    folder: Path, bridge: str, gateway: str, address: str, environment: Mapping[str, str]
) -> Iterator[Host]:
    folder.mkdir(parents=True)
    space, link = f"{bridge}-{folder.name}", f"{bridge}-{address.rsplit('.', 1)[-1]}"
    with ExitStack() as stack:
        _ip("netns", "add", space)
        stack.callback(_ip, "netns", "delete", space)
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("link", "set", link, "master", bridge, "up")
        for device, own in (("lo", "127.0.0.1/8"), ("eth0", f"{address}/24")):
            _ip("-netns", space, "address", "replace", own, "dev", device)
            _ip("-netns", space, "link", "set", device, "up")
        _ip(
            "-netns", space, "route", "add", "default", "via", gateway
        )  # leads no further, but Ray looks for it
        unshare = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
        command = ["setpriv", "--pdeathsig=KILL", "ip", "netns", "exec", space, *unshare]
        command += ["sh", "-c", _INIT, "init", folder.name, str(folder)]
        outer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        stack.callback(outer.wait)
        stack.callback(outer.kill)
        assert outer.stdout is not None and outer.stdout.readline() == "up\n", (
            f"host {folder.name} did not start"
        )
        [init] = psutil.Process(outer.pid).children()
        host = Host(folder.name, address, folder, {**environment, "HOME": "/tmp"}, init, link)
        stack.callback(host.power_off)
        yield host


def _piped(command: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr.strip()}"
