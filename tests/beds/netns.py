"""Network namespaces: hosts of their own as far as the network goes, each on one cable to this machine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tests.beds import BedUnavailable

__all__ = ["Host", "serving"]


@dataclass
class Host:
    """A namespace; `outside` is this machine's address on its cable, `inside` its own."""

    name: str
    outside: str
    inside: str
    cable: str

    @property
    def wrapper(self) -> list[str]:
        """Words before a command that runs there. Not `ip netns exec`: that hides the cgroups, which lie below /sys."""
        return ["nsenter", f"--net=/run/netns/{self.name}"]

    def cut(self) -> None:
        """The cable is out: nothing passes, and nobody says so."""
        _run("ip", "link", "set", self.cable, "down")

    def mend(self) -> None:
        _run("ip", "link", "set", self.cable, "up")


Hosts = Callable[[str], Host]


@contextmanager
def serving() -> Generator[Hosts]:
    """Yield a function that makes a host; all are removed at the end."""
    if os.geteuid() != 0:
        raise BedUnavailable("only root can make network namespaces.")
    made: dict[str, Host] = {}
    with ExitStack() as stack:

        def host(name: str) -> Host:
            number = (os.getpid() * 8 + len(made)) % 16000
            base = f"10.{230 + number // 4000}.{number // 64 % 63}.{number % 64 * 4}"
            first, _, last = base.rpartition(".")
            # Names of interfaces have 15 letters at most.
            one = Host(f"tgn{os.getpid()}{name}", f"{first}.{int(last) + 1}", f"{first}.{int(last) + 2}", f"tn{number}")
            stack.callback(_removed, one)
            _made(one)
            made[name] = one
            return one

        try:
            _removed(host("try"))
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", b"") or str(error).encode()
            raise BedUnavailable(f"network namespaces cannot be made: {said.decode()[:200].strip()}") from None
        yield host


def _made(host: Host) -> None:
    _run("ip", "netns", "add", host.name)
    _run("ip", "link", "add", host.cable, "type", "veth", "peer", "name", "out", "netns", host.name)
    _run("ip", "addr", "add", f"{host.outside}/30", "dev", host.cable)
    _run("ip", "link", "set", host.cable, "up")
    _run("ip", "-n", host.name, "addr", "add", f"{host.inside}/30", "dev", "out")
    _run("ip", "-n", host.name, "link", "set", "out", "up")
    _run("ip", "-n", host.name, "link", "set", "lo", "up")
    # To this machine's other addresses, too.
    _run("ip", "-n", host.name, "route", "add", "default", "via", host.outside)
    _run(*host.wrapper, "true")


def _removed(host: Host) -> None:
    # The cable goes with either end.
    subprocess.run(["ip", "link", "del", host.cable], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "del", host.name], capture_output=True, check=False)


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)
