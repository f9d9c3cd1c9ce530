"""Small images for tests, made of the machine's static busybox and loaded by the Engine API, with no registry."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import shutil
import socket
import subprocess
import tarfile
from dataclasses import dataclass
from typing import BinaryIO

from tests.beds import BedUnavailable

__all__ = ["BUSYBOX", "DATA", "FOREIGN", "USER", "engine_call", "load_images"]

BUSYBOX = "tesgate-test/busybox:latest"
"""busybox with all its applets, /tmp, /etc/passwd; its user is root."""
USER = "tesgate-test/user:latest"
"""The same with USER app (1234:1234), WORKDIR /srv/app and an environment of its own."""
DATA = "tesgate-test/data:latest"
"""The same with files in /data and a VOLUME /cache."""
FOREIGN = "tesgate-test/foreign:latest"
"""The same, said to be built for another architecture."""

_PASSWD = "root:x:0:0:root:/root:/bin/sh\napp:x:1234:1234:app:/home/app:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"
_GROUP = "root:x:0:\napp:x:1234:\nnogroup:x:65534:\n"


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def engine_call(
    path: str, method: str, url: str, body: bytes | BinaryIO | None = None, content_type: str = "application/json"
) -> tuple[int, bytes]:
    """One call of the Engine API over the socket `path`, independent of the code under test."""
    connection = _Connection(path, 120.0)
    try:
        connection.request(method, url, body=body, headers={"Content-Type": content_type} if body is not None else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@dataclass
class _Image:
    name: str
    layers: list[bytes]
    config: dict[str, object]
    architecture: str = "amd64"


def load_images(path: str) -> None:
    """Have all test images on the engine. Raises `BedUnavailable` where busybox is missing."""
    status, body = engine_call(path, "GET", "/version")
    architecture = json.loads(body)["Arch"] if status == 200 else "amd64"
    base = _base_layer()
    images = [
        _Image(BUSYBOX, [base], {"Env": ["PATH=/usr/bin:/bin"]}, architecture),
        _Image(
            USER,
            [base],
            {"Env": ["PATH=/usr/bin:/bin", "FROM_IMAGE=yes"], "User": "app", "WorkingDir": "/srv/app"},
            architecture,
        ),
        _Image(DATA, [base, _data_layer()], {"Env": ["PATH=/usr/bin:/bin"], "Volumes": {"/cache": {}}}, architecture),
        _Image(FOREIGN, [base], {"Env": ["PATH=/usr/bin:/bin"]}, "s390x" if architecture != "s390x" else "amd64"),
    ]
    for image in images:
        _load(path, image)


def _load(path: str, image: _Image) -> None:
    config = json.dumps(
        {
            "architecture": image.architecture,
            "os": "linux",
            "created": "2020-01-01T00:00:00Z",
            "config": image.config,
            "rootfs": {
                "type": "layers",
                "diff_ids": ["sha256:" + hashlib.sha256(one).hexdigest() for one in image.layers],
            },
            "history": [{"created": "2020-01-01T00:00:00Z"} for _ in image.layers],
        },
        sort_keys=True,
    ).encode()
    wanted = "sha256:" + hashlib.sha256(config).hexdigest()
    status, body = engine_call(path, "GET", f"/images/{image.name}/json")
    if status == 200 and json.loads(body)["Id"] == wanted:
        return
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        names = [f"{hashlib.sha256(layer).hexdigest()}/layer.tar" for layer in image.layers]
        for name, layer in zip(names, image.layers, strict=True):
            _file(archive, name, layer)
        _file(archive, wanted[7:] + ".json", config)
        manifest = [{"Config": wanted[7:] + ".json", "RepoTags": [image.name], "Layers": names}]
        _file(archive, "manifest.json", json.dumps(manifest).encode())
    status, body = engine_call(path, "POST", "/images/load?quiet=1", out.getvalue(), "application/x-tar")
    if status != 200 or b"error" in body:
        raise BedUnavailable(f"the engine does not load test images: {status} {body[:300]!r}")


def _base_layer() -> bytes:
    busybox = shutil.which("busybox")
    if busybox is None:
        raise BedUnavailable("busybox is not installed (apt-get install busybox-static)")
    applets = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout.split()
    with open(busybox, "rb") as stream:
        program = stream.read()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("bin", "etc", "usr", "usr/bin", "var", "proc", "sys", "dev", "srv"):
            _directory(archive, name, 0o755)
        _directory(archive, "root", 0o700)
        _directory(archive, "tmp", 0o1777)
        for name in ("home/app", "srv/app"):
            _directory(archive, name, 0o755, 1234)
        _file(archive, "bin/busybox", program, 0o755)
        for applet in sorted(applets):
            if applet != "busybox":
                info = tarfile.TarInfo("bin/" + applet)
                info.type, info.linkname = tarfile.SYMTYPE, "busybox"
                archive.addfile(info)
        _file(archive, "etc/passwd", _PASSWD.encode())
        _file(archive, "etc/group", _GROUP.encode())
    return out.getvalue()


def _data_layer() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        _directory(archive, "data", 0o755)
        _directory(archive, "data/sub", 0o755)
        _file(archive, "data/old.txt", b"from the image\n")
        _file(archive, "data/sub/inner.txt", b"from the image too\n")
        _directory(archive, "cache", 0o777)
    return out.getvalue()


def _directory(archive: tarfile.TarFile, name: str, mode: int, owner: int = 0) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.uid, info.gid = tarfile.DIRTYPE, mode, owner, owner
    archive.addfile(info)


def _file(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), mode
    archive.addfile(info, io.BytesIO(content))
