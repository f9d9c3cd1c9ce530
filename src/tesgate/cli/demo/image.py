"""An image for the demo's tasks: one that is there, one that can be pulled, or one made of this machine's programs."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path

import httpx

__all__ = ["MADE", "Engine", "image_tar", "is_static"]

MADE = "tesgate-demo:latest"
"""Name of the image that the demo makes."""

_LOCAL = ("busybox", "alpine", "debian", "ubuntu")
_PROGRAMS = ("sh", "awk", "basename", "cat", "cp", "date", "echo", "grep", "head", "ls", "mkdir", "mv", "rm", "sed",
             "sleep", "sort", "tail", "tr", "true", "uname", "uniq", "wc")  # fmt: skip
_NEEDED = ("awk", "basename", "echo", "sh", "sort")
_PULL_SECONDS = 60.0


class Engine:
    """A Docker engine (or Podman) behind its socket."""

    def __init__(self, path: str = "/var/run/docker.sock") -> None:
        self._socket = path
        self._http = httpx.Client(
            transport=httpx.HTTPTransport(uds=path), base_url="http://engine", timeout=httpx.Timeout(30.0, connect=5)
        )

    def answers(self) -> bool:
        """Whether an engine is there that we may use."""
        try:
            # httpx would leak its socket where nobody listens.
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(self._socket)
            return self._http.get("/_ping").status_code == 200
        except (httpx.HTTPError, OSError):
            return False

    def image(self) -> tuple[str, str]:
        """Name of an image with a shell and the usual small programs, and where it came from.

        Raises `OSError` with a sentence where there is none.
        """
        local = self._local()
        if local is not None:
            return local, "was there already"
        if self._pull("busybox", "latest") and self._has_programs("busybox:latest"):
            return "busybox:latest", "was pulled"
        content, made_of = image_tar()
        self._import(content)
        return MADE, f"was made of {made_of}"

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def _local(self) -> str | None:
        tags = {tag for image in self._http.get("/images/json").json() for tag in image.get("RepoTags") or []}
        candidates = [MADE] if MADE in tags else []
        for name in _LOCAL:
            of_name = sorted(tag for tag in tags if tag.partition(":")[0] == name)
            candidates += [f"{name}:latest"] if f"{name}:latest" in of_name else of_name[:1]
        return next((image for image in candidates if self._has_programs(image)), None)

    def _has_programs(self, image: str) -> bool:
        """Whether a container of the image starts and finds all that the examples call."""
        # Files, not `command -v`: busybox's shell knows programs that nobody else can start.
        script = 'for name in "$@"; do [ -x "/bin/$name" ] || [ -x "/usr/bin/$name" ] || exit 1; done'
        spec = {"Image": image, "Entrypoint": ["sh", "-c", script, "sh"], "Cmd": list(_NEEDED), "NetworkDisabled": True}
        created = self._http.post("/containers/create", json=spec)
        if created.status_code != 201:
            return False
        container = f"/containers/{created.json()['Id']}"
        try:
            if self._http.post(container + "/start").status_code != 204:
                return False
            return bool(self._http.post(container + "/wait").json().get("StatusCode") == 0)
        finally:
            self._http.delete(container, params={"force": "true", "v": "true"})

    def _pull(self, name: str, tag: str) -> bool:
        try:
            with self._http.stream(
                "POST", "/images/create", params={"fromImage": name, "tag": tag}, timeout=_PULL_SECONDS
            ) as response:
                # The status says 200 before the pull has begun: the faults are in the lines.
                return response.status_code == 200 and not any("error" in json.loads(line) for line in _lines(response))
        except (httpx.HTTPError, ValueError):
            return False

    def _import(self, content: bytes) -> None:
        repository, _, tag = MADE.partition(":")
        response = self._http.post(
            "/images/create",
            params={"fromSrc": "-", "repo": repository, "tag": tag},
            content=content,
            headers={"content-type": "application/x-tar"},
            timeout=120.0,
        )
        faults = [json.loads(line).get("error") for line in _lines(response) if '"error"' in line]
        if response.status_code != 200 or faults:
            raise OSError(f"the engine did not take the demo's image: {faults or response.text[:300]}")


def _lines(response: httpx.Response) -> Iterable[str]:
    return (line for line in response.iter_lines() if line.strip())


def image_tar() -> tuple[bytes, str]:
    """A root file system with the demo's programs, and of what it was made. Raises `OSError` where that fails."""
    busybox = shutil.which("busybox")
    if busybox is not None and is_static(Path(busybox)):
        return _busybox_tar(Path(busybox)), f"this machine's {busybox}"
    return _own_tar(), "this machine's own programs"


def is_static(path: Path) -> bool:
    """Whether an ELF program needs no libraries: it names no interpreter."""
    data = path.read_bytes()
    if data[:4] != b"\x7fELF" or data[4] not in (1, 2):
        return False
    order = "<" if data[5] == 1 else ">"
    if data[4] == 2:
        (offset,) = struct.unpack_from(order + "Q", data, 32)
        size, count = struct.unpack_from(order + "HH", data, 54)
    else:
        (offset,) = struct.unpack_from(order + "I", data, 28)
        size, count = struct.unpack_from(order + "HH", data, 42)
    kinds = [struct.unpack_from(order + "I", data, offset + index * size)[0] for index in range(count)]
    return 3 not in kinds  # PT_INTERP


class _Root:
    """A tar of a root file system in the making."""

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._buffer, mode="w")  # noqa: SIM115 (closed in `done`)
        self._known: set[str] = set()
        for name, mode in (("bin", 0o755), ("etc", 0o755), ("root", 0o700), ("tmp", 0o1777), ("usr/bin", 0o755)):
            self.directory(name, mode)
        self.add("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n", 0o644)
        self.add("etc/group", b"root:x:0:\n", 0o644)

    def directory(self, name: str, mode: int = 0o755) -> None:
        parent = os.path.dirname(name)
        if parent:
            self.directory(parent)
        if name not in self._known:
            self._known.add(name)
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            self._tar.addfile(entry)

    def add(self, name: str, content: bytes, mode: int = 0o755) -> None:
        if name not in self._known:
            self.directory(os.path.dirname(name))
            self._known.add(name)
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            self._tar.addfile(entry, io.BytesIO(content))

    def link(self, name: str, target: str) -> None:
        if name not in self._known:
            self._known.add(name)
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            self._tar.addfile(entry)

    def done(self) -> bytes:
        self._tar.close()
        return self._buffer.getvalue()


def _busybox_tar(busybox: Path) -> bytes:
    listed = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True, timeout=30)
    root = _Root()
    root.add("bin/busybox", busybox.read_bytes())
    for name in listed.stdout.split():
        if name != "busybox" and "/" not in name:
            root.link(f"bin/{name}", "busybox")
    return root.done()


def _own_tar() -> bytes:
    root = _Root()
    missing = []
    for name in _PROGRAMS:
        found = shutil.which(name, path="/bin:/usr/bin")
        if found is None:
            missing.append(name)
            continue
        program = Path(found).resolve()
        root.add(f"bin/{name}", program.read_bytes())
        for library in _libraries(program):
            root.add(library.lstrip("/"), Path(library).read_bytes())
    if missing:
        raise OSError(f"this machine has no {', '.join(missing)} to make an image of; install busybox-static")
    return root.done()


def _libraries(program: Path) -> list[str]:
    """Absolute paths of the libraries (and the loader) of a program, as ``ldd`` tells them."""
    ldd = shutil.which("ldd")
    if ldd is None or is_static(program):
        return []
    said = subprocess.run([ldd, program], capture_output=True, text=True, check=False, timeout=30).stdout
    return re.findall(r"(?:=> |^\s+)(/\S+) \(0x", said, flags=re.MULTILINE)
