"""Runs steps in bubblewrap sandboxes, for hosts without a container engine and with a single user."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import time
from typing import AsyncIterator, Callable, Dict, List, Optional, Tuple, TypeVar

import anyio
import anyio.to_thread

from .archive import open_directory, parts_of
from .base import Collect, ImageFacts, RuntimeFacts, RuntimeUnavailable, StepSpec, StepStatus
from .cgroup import Cgroups
from .processes import Process
from .sandbox import SandboxSettings, system_paths
from .steps import Steps

__all__ = ["BubblewrapRuntime"]

T = TypeVar("T")

_NEEDED = ("--args", "--as-pid-1", "--block-fd", "--json-status-fd", "--unshare-cgroup-try", "--remount-ro")
_LOOK = 0.25
"""Seconds between looks at processes on kernels without pidfds."""
_THREADS = 16
_TRIALS = (0.0, 0.25, 0.25, 0.25, 0.25)
"""Seconds before each trial of what a sandbox can have here."""


class BubblewrapRuntime:
    """`Runtime` by bubblewrap: ``/`` is the attempt's own ``rw/`` tree, the host's programs bound over it read-only.

    Every step is the agent's own user on the host, so a gateway with more than one caller must not offer it (the
    configuration refuses that). Images are not used. Only one iterator of `ended` may be in use at a time.
    """

    name = "bubblewrap"

    def __init__(
        self,
        *,
        state: str,
        program: Optional[str] = None,
        settings: Optional[SandboxSettings] = None,
        cgroup_parent: Optional[str] = None,
    ) -> None:
        """`state`: directory for the records of steps, on the scratch's host, outside every attempt.

        `program`: path of bwrap, by default from PATH. `cgroup_parent`: path in the cgroup hierarchies below which
        steps get theirs, by default this process's own cgroup.
        """
        self._state = os.path.abspath(state)
        self._program = program
        self._settings = settings or SandboxSettings()
        self._cgroup_parent = cgroup_parent
        self._known: Optional[Tuple[RuntimeFacts, Steps]] = None
        self._threads: Optional[anyio.CapacityLimiter] = None
        self._epoll: Optional[select.epoll] = None
        self._watched: Dict[int, str] = {}
        """pidfd -> name"""
        self._looked_at: Dict[str, Process] = {}
        """Where there are no pidfds."""

    async def probe(self) -> RuntimeFacts:
        """`Runtime.probe`: a real sandbox is made, and what stands in its way is said."""
        self._known = await self._call(self._probe)
        return self._known[0]

    async def prepare(self, image: str, pull_policy: str) -> ImageFacts:
        """`Runtime.prepare`: nothing to do, any image will do."""
        return ImageFacts(reference=image)

    async def start(self, spec: StepSpec) -> List[str]:
        """`Runtime.start`."""
        steps = await self._steps()
        notes, process = await self._call(steps.start, spec)
        self._watch(spec.name, process)
        return notes

    async def inspect(self, name: str) -> StepStatus:
        """`Runtime.inspect`. exec cannot see its cgroup in here: `oom_killed` is known to this call alone."""
        steps = await self._steps()
        return await self._call(steps.inspect, name)

    async def stop(self, name: str, grace: float) -> None:
        """`Runtime.stop`."""
        steps = await self._steps()
        await self._call(steps.stop, name, grace)

    async def remove(self, name: str) -> None:
        """`Runtime.remove`."""
        steps = await self._steps()
        await self._call(steps.remove, name)

    async def keep(self, name: str) -> None:
        """`Runtime.keep`: a sandbox has no files of its own, so nothing of it is kept."""
        await self.remove(name)

    async def collect(self, name: str, items: List[Collect], root: str) -> List[str]:
        """`Runtime.collect`: nothing to do, all that a step writes is below `root` already."""
        return []

    async def restore(self, spec: StepSpec, items: List[Collect], root: str) -> None:
        """`Runtime.restore`: the next step has the same root, so only the directories above the paths are made."""
        for item in items:
            parts = parts_of(item.path)
            if not item.pattern and len(parts) > 1:
                await self._call(_make, root, parts[:-1])

    async def names(self, prefix: str) -> List[str]:
        """`Runtime.names`."""
        steps = await self._steps()
        found = await self._call(steps.names)
        return [name for name in found if name.startswith(prefix)]

    async def own(self, image: str, paths: List[str], uid: int, gid: int) -> None:
        """`Runtime.own`: nothing to do, every file is the agent's own."""

    async def ended(self) -> AsyncIterator[str]:
        """`Runtime.ended`, by pidfds; begins with ``""`` after it has found all that runs, others' steps too."""
        steps = await self._steps()
        if self._epoll is None:
            self._epoll = select.epoll()
            for name in await self._call(steps.names):
                process = await self._call(steps.living, name)
                if process is not None:
                    self._watch(name, process)
        yield ""
        while True:
            if self._looked_at:
                await anyio.sleep(_LOOK)
            else:
                await anyio.wait_readable(self._epoll.fileno())
            for name in self._take_ended():
                await self._call(steps.inspect, name)  # takes leave of the process
                yield name

    async def aclose(self) -> None:
        """`Runtime.aclose`."""
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None
        for descriptor in self._watched:
            os.close(descriptor)
        self._watched.clear()
        self._looked_at.clear()

    # -- watching

    def _watch(self, name: str, process: Optional[Process]) -> None:
        """Let `ended` tell when `process` has ended; None: it has already."""
        if self._epoll is None or name in self._watched.values():
            return  # nobody listens yet: whoever does first asks for all that runs
        descriptor = process.descriptor() if process is not None else None
        if descriptor is None:
            if process is not None and process.alive():
                self._looked_at[name] = process  # this kernel has no pidfds
                name = ""
            # The end of a pipe that nobody writes to is readable at once: it wakes `ended`.
            descriptor, writer = os.pipe()
            os.close(writer)
        self._watched[descriptor] = name
        self._epoll.register(descriptor, select.EPOLLIN)

    def _take_ended(self) -> List[str]:
        assert self._epoll is not None
        names: List[str] = []
        for descriptor, _ in self._epoll.poll(0):
            self._epoll.unregister(descriptor)
            os.close(descriptor)
            name = self._watched.pop(descriptor)
            if name:
                names.append(name)
        for name, process in list(self._looked_at.items()):
            if not process.alive():
                del self._looked_at[name]
                names.append(name)
        return names

    # -- in threads

    async def _call(self, function: Callable[..., T], *args: object) -> T:
        if self._threads is None:
            self._threads = anyio.CapacityLimiter(_THREADS)
        return await anyio.to_thread.run_sync(lambda: function(*args), limiter=self._threads)

    async def _steps(self) -> Steps:
        if self._known is None:
            await self.probe()
        assert self._known is not None
        return self._known[1]

    def _probe(self) -> Tuple[RuntimeFacts, Steps]:
        program = self._program or shutil.which("bwrap")
        if program is None or not os.path.exists(program):
            raise RuntimeUnavailable(
                "bubblewrap is not installed on this host: install it (apt-get install bubblewrap, or dnf install "
                "bubblewrap), or start a container engine."
            )
        version, options = _output([program, "--version"]), _output([program, "--help"])
        missing = [option for option in _NEEDED if option not in options]
        if missing:
            raise RuntimeUnavailable(
                "bubblewrap %s is too old (it lacks %s): install 0.4 or newer." % (version, ", ".join(missing))
            )
        said, disable_userns = self._try(program, "--disable-userns" in options)
        if said:
            raise RuntimeUnavailable("bubblewrap cannot make a sandbox here (%s): %s." % (said, _advice(said)))
        cgroups = Cgroups(parent=self._cgroup_parent)
        steps = self._known[1] if self._known is not None else None
        if steps is None:
            steps = Steps(
                state=self._state,
                program=program,
                disable_userns=disable_userns,
                cgroups=cgroups,
                settings=self._settings,
            )
        steps.disable_userns = disable_userns
        cgroups.sweep(steps.names())
        return self._facts(version, disable_userns, cgroups), steps

    def _try(self, program: str, can_disable: bool) -> Tuple[str, bool]:
        """What bwrap said when it made no sandbox, or an empty string, and whether it forbids user namespaces here.

        Steps without that are worse kept apart, so one trial that failed for a passing reason (the host's mounts
        change while they are bound, its namespaces are all taken) does not decide it.
        """
        said = ""
        for pause in _TRIALS:
            time.sleep(pause)
            if can_disable and not _trial(program, self._settings, True):
                return "", True
            said = _trial(program, self._settings, False)
            if not said and not can_disable:
                break
        return said, False

    def _facts(self, version: str, disable_userns: bool, cgroups: Cgroups) -> RuntimeFacts:
        notes = [
            "Steps run the host's own programs in a bubblewrap sandbox as the agent's user; images are not used.",
            "The disk limit is not held: bubblewrap has no quota.",
        ]
        if os.getuid() == 0:
            notes.append(
                "The agent is root, so steps are the host's uid 0 without capabilities: run it as an ordinary user."
            )
        if not disable_userns:
            notes.append("Steps can make user namespaces of their own: this bubblewrap cannot forbid it.")
        for controller, word in (("memory", "memory"), ("cpu", "CPU"), ("pids", "process")):
            if not cgroups.holds(controller):
                notes.append("The %s limit is not held: %s." % (word, cgroups.why_not(controller)))
        return RuntimeFacts(
            name=self.name,
            version=version.split()[-1] if version else "",
            cpu_cores=float(os.cpu_count() or 1),
            ram_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            cpu_limit=cgroups.holds("cpu"),
            memory_limit=cgroups.holds("memory"),
            pids_limit=cgroups.holds("pids"),
            disk_limit=False,
            rootless=os.getuid() != 0,
            notes=notes,
        )


def _output(command: List[str]) -> str:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeUnavailable("bubblewrap cannot be executed here (%s): reinstall it." % error) from error
    return done.stdout.decode("utf-8", "replace").strip()


def _trial(program: str, settings: SandboxSettings, disable_userns: bool) -> str:
    """Make a sandbox like those of steps; returns what bwrap said, or an empty string."""
    command = [program, "--unshare-user", "--unshare-pid", "--as-pid-1", "--unshare-ipc", "--unshare-uts"]
    command += ["--unshare-cgroup-try", "--unshare-net", "--new-session", "--cap-drop", "ALL"]
    command += ["--disable-userns"] if disable_userns else []
    # No more of the host than steps have: its other mounts may go while they are bound.
    for path in system_paths(settings):
        command += ["--ro-bind", os.path.realpath(path), path]
    # Nor is bwrap itself in there: the libraries of one that lies elsewhere (conda, Nix, Spack) are not either.
    command += ["--proc", "/proc", "--dev", "/dev", "--", "/bin/sh", "-c", ":"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    said = " ".join(done.stderr.decode("utf-8", "replace").split())[:300].rstrip(".")
    return "" if done.returncode == 0 else said or "exit code %d" % done.returncode


def _advice(said: str) -> str:
    """What to do about a kernel that does not let bwrap make its namespaces, or about a sandbox without programs."""
    if "execvp" in said:
        return (
            "steps would find no /bin/sh: show them the directory that it leads to, such as with --sandbox-path /nix "
            "(runtime.sandbox_paths)"
        )
    apparmor = (
        "give bwrap an AppArmor profile that allows userns, or set sysctl "
        "kernel.apparmor_restrict_unprivileged_userns=0"
    )
    for path, bad, advice in (
        ("kernel/unprivileged_userns_clone", "0", "set sysctl kernel.unprivileged_userns_clone=1"),
        ("user/max_user_namespaces", "0", "set sysctl user.max_user_namespaces=15000"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", apparmor),
    ):
        try:
            with open("/proc/sys/" + path, encoding="ascii") as stream:
                if stream.read().strip() == bad:
                    return advice
        except OSError:
            continue
    if "proc" in said:
        return "inside a container it needs an unmasked /proc: run the agent on the host itself"
    return "let the agent's user make user namespaces, or start a container engine"


def _make(root: str, parts: List[str]) -> None:
    with open_directory(root, parts, create=True):
        pass
