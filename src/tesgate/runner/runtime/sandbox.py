"""What a step looks like to bubblewrap: its arguments, and the mount points they need below the attempt's root."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple

from .archive import UnsafePath, open_directory, parts_of
from .base import DEFAULT_PATH, Bind, StepRefused, StepSpec

__all__ = ["STEP_VARIABLE", "SandboxSettings", "etc_files", "prepare_root", "sandbox_arguments", "system_paths"]
__all__ += ["uses_network"]

STEP_VARIABLE = "TESGATE_STEP"
"""In bwrap's own environment, so that it can be found; the task does not see it."""

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_ETC = (
    "alternatives",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "nsswitch.conf",
    "os-release",
    "pki/ca-trust/extracted",
    "pki/tls/certs",
    "pki/tls/openssl.cnf",
    "protocols",
    "services",
    "ssl/certs",
    "ssl/openssl.cnf",
    "timezone",
)
_ETC_NETWORK = ("hosts", "resolv.conf")
# A root agent's tasks are the host's uid 0, and the kernel lets uid 0 write settings in a fresh /proc without any
# capability. bubblewrap 0.8 covers only some of them (measured: /proc/sys/kernel/core_pattern could be written).
_PROC_READ_ONLY = ("sys", "sysrq-trigger", "irq", "bus", "fs", "mtrr", "driver", "dynamic_debug")
_PROC_HIDDEN = ("kcore", "keys", "kmsg", "latency_stats", "sched_debug", "timer_list", "kpagecount", "kpageflags")
_PROC_EMPTY = ("acpi", "asound", "scsi")


@dataclass(frozen=True)
class SandboxSettings:
    """What the host's owner decides for all sandboxes."""

    network: str = "none"
    """What a step's ``default`` means: ``none`` or ``host`` (which shares the host's abstract sockets too)."""
    allow_host_network: bool = False
    """A step may ask for ``host`` by name."""
    read_only: Tuple[str, ...] = ()
    """Further host paths that every step sees read-only, such as ``/opt`` or ``/nix``."""
    hostname: str = "tesgate"


def uses_network(spec: StepSpec, settings: SandboxSettings) -> bool:
    """The step shares the host's network. Raises `StepRefused` for what bubblewrap does not have."""
    wanted = settings.network if spec.network == "default" else spec.network
    if wanted == "host" and (spec.network == "default" or settings.network == "host" or settings.allow_host_network):
        return True
    if wanted == "none":
        return False
    raise StepRefused(
        "bubblewrap cannot give a step the network %r: it has none, or the host's where that is configured." % wanted
    )


def etc_files(spec: StepSpec, network: bool) -> Dict[str, str]:
    """The files of /etc that are of our own making."""
    uid, gid = _ids(spec)
    passwd = "" if uid == 0 else "root:x:0:0:root:/root:/bin/sh\n"
    passwd += "%s:x:%d:%d::/tmp:/bin/sh\n" % ("root" if uid == 0 else "task", uid, gid)
    group = "" if gid == 0 else "root:x:0:\n"
    group += "%s:x:%d:\n" % ("root" if gid == 0 else "task", gid)
    if uid != 65534:
        passwd += "nobody:x:65534:65534::/:/bin/false\n"
    if gid != 65534:
        group += "nogroup:x:65534:\n"
    files = {"passwd": passwd, "group": group}
    if not network:
        files["hosts"] = "127.0.0.1 localhost\n::1 localhost\n"
    return files


def sandbox_arguments(
    spec: StepSpec, settings: SandboxSettings, *, network: bool, etc: str, disable_userns: bool
) -> List[str]:
    """The arguments for ``--args``: they never stand on a command line, where every user could read them.

    `etc`: the host directory with `etc_files`. `disable_userns`: this bwrap can forbid further user namespaces.
    """
    uid, gid = _ids(spec)
    arguments = ["--unshare-user", "--uid", str(uid), "--gid", str(gid), "--unshare-pid", "--as-pid-1"]
    arguments += ["--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--hostname", settings.hostname]
    if disable_userns:
        arguments.append("--disable-userns")
    if not network:
        arguments.append("--unshare-net")
    arguments += ["--new-session", "--cap-drop", "ALL"]
    for key, value in {"PATH": DEFAULT_PATH, "HOME": "/tmp", **spec.env}.items():
        arguments += ["--setenv", key, value]
    arguments += ["--unsetenv", STEP_VARIABLE]  # last: the task cannot set it either
    arguments += ["--bind", spec.root, "/"]
    for path in system_paths(settings):
        arguments += ["--ro-bind", os.path.realpath(path), path]
    arguments += ["--proc", "/proc", *_covered_proc(), "--dev", "/dev", "--tmpfs", "/run", "--tmpfs", "/etc"]
    for name in _ETC + (_ETC_NETWORK if network else ()):
        source = os.path.realpath("/etc/" + name)
        if os.path.exists(source):
            arguments += ["--ro-bind", source, "/etc/" + name]
    for name in sorted(os.listdir(etc)):
        arguments += ["--ro-bind", etc + "/" + name, "/etc/" + name]
    for bind in _by_depth(spec.binds):
        arguments += ["--ro-bind" if bind.read_only else "--bind", bind.source, bind.target]
    return [*arguments, "--remount-ro", "/etc", "--chdir", "/"]


def prepare_root(spec: StepSpec, settings: SandboxSettings) -> None:
    """Make the mount points below `spec.root`, which earlier executors could write to, without following a link there.

    bwrap would make them itself, but it follows links while it still sees the host's files.
    Raises `StepRefused` where something else is in the way.
    """
    system = system_paths(settings)
    for path in [*system, "/proc", "/dev", "/run", "/etc"]:
        _make_point(spec.root, path, True)
    binds = _by_depth(spec.binds)
    for index, bind in enumerate(binds):
        if any(_within(bind.target, path) for path in [*system, "/proc", "/dev", "/run", "/etc"]):
            continue  # in a mount of our own; what is read-only there, bwrap refuses
        base, rest, read_only = spec.root, bind.target, False
        for cover in binds[:index]:
            if _within(bind.target, cover.target):
                base, rest, read_only = cover.source, bind.target[len(cover.target.rstrip("/")) :], cover.read_only
        if not read_only and rest.strip("/"):
            _make_point(base, rest, os.path.isdir(bind.source))
    if not any(bind.target.rstrip("/") == "/tmp" for bind in binds):
        _make_point(spec.root, "/tmp", True)
        with open_directory(spec.root, ["tmp"], create=False) as here:
            os.fchmod(here, 0o1777)


def _make_point(base: str, path: str, directory: bool) -> None:
    try:
        parts = parts_of(path)
        with open_directory(base, parts if directory else parts[:-1], create=True) as here:
            if not directory:
                flags = os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                os.close(os.open(parts[-1], flags, 0o644, dir_fd=here))
    except UnsafePath as error:
        raise StepRefused("Nothing can be mounted at %s: %s." % (path, error)) from error
    except OSError as error:
        reason = "a link is in the way" if error.errno == errno.ELOOP else str(error.strerror)
        raise StepRefused("Nothing can be mounted at %s: %s." % (path, reason)) from error


def _ids(spec: StepSpec) -> Tuple[int, int]:
    """User and group that the step sees; on the host it is always our own user."""
    if not spec.user:
        return os.getuid(), os.getgid()
    user, _, group = spec.user.partition(":")
    if not user.isdigit() or (group and not group.isdigit()):
        raise StepRefused("The user %r must be given as uid:gid in numbers." % spec.user)
    return int(user), int(group or user)


def system_paths(settings: SandboxSettings) -> List[str]:
    """Directories of the host that every sandbox has, read-only."""
    return [path for path in [*_SYSTEM, *settings.read_only] if os.path.isdir(path)]


def _covered_proc() -> List[str]:
    arguments: List[str] = []
    for name in _PROC_READ_ONLY:
        if os.path.exists("/proc/" + name):
            arguments += ["--ro-bind", "/proc/" + name, "/proc/" + name]
    for name in _PROC_HIDDEN:
        if os.path.exists("/proc/" + name):
            arguments += ["--ro-bind", "/dev/null", "/proc/" + name]
    for name in _PROC_EMPTY:
        if os.path.isdir("/proc/" + name):
            arguments += ["--tmpfs", "/proc/" + name, "--remount-ro", "/proc/" + name]
    return arguments


def _by_depth(binds: List[Bind]) -> List[Bind]:
    return sorted(binds, key=lambda bind: len([part for part in bind.target.split("/") if part]))


def _within(path: str, cover: str) -> bool:
    cover = cover.rstrip("/")
    return path.rstrip("/") == cover or path.startswith(cover + "/")


def refusal(said: str) -> Optional[str]:
    """What bwrap's words on a failed set-up mean, as a sentence; None where they are empty."""
    text = " ".join(said.split())[-500:].rstrip(".")
    return "bubblewrap refuses the step (%s)." % text if text else None
