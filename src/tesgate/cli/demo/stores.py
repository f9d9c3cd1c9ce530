"""An S3 server and an FTP server for the demo, where their packages are installed (``pip install 'tesgate[demo]'``)."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ftplib import FTP
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import httpx

from tesgate.cli.demo.server import said
from tesgate.cli.failure import Exit, Failure

T = TypeVar("T")

__all__ = ["BARCODES", "BUCKET", "Stores", "missing_packages", "stores"]

BUCKET = "demo"
BARCODES = {"first": "ACG", "second": "GTC", "third": "TTT"}
"""Names of files on the FTP server, and the beginning of reads that each holds."""
_START_SECONDS = 60.0
_PACKAGES = {"moto": "moto[s3,server]", "flask": "moto[s3,server]", "pyftpdlib": "pyftpdlib"}


@dataclass(frozen=True)
class Stores:
    """The two servers, both on loopback."""

    s3: str
    """``http://host:port`` of the S3 server."""
    ftp: str
    """``host:port`` of the FTP server."""
    ftp_directory: Path

    def environment(self) -> dict[str, str]:
        """Settings of a gateway that may use them."""
        return {
            "DEMO_S3_KEY": "demo",
            "TESGATE_S3__ENDPOINTS": (
                f'[{{"name": "demo", "url": "{self.s3}", "buckets": ["{BUCKET}"], '
                '"access_key_id": "env:DEMO_S3_KEY", "secret_access_key": "env:DEMO_S3_KEY"}]'
            ),
        }

    def read(self, key: str) -> bytes:
        """An object of the bucket. Raises `OSError`."""
        answer = httpx.get(f"{self.s3}/{BUCKET}/{quote(key)}", headers=_KEY)
        if answer.status_code != 200:
            raise OSError(f"s3://{BUCKET}/{key}: {answer.status_code}")
        return answer.content


# moto looks whether there is a signature, not whether it is right.
_KEY = {"Authorization": "AWS4-HMAC-SHA256 Credential=demo/20260101/us-east-1/s3/aws4_request, Signature=0"}


def missing_packages() -> list[str]:
    """What must be installed before `stores` can start anything."""
    return sorted({package for name, package in _PACKAGES.items() if importlib.util.find_spec(name) is None})


@contextlib.contextmanager
def stores(home: Path, reads: Path) -> Iterator[Stores]:
    """Start both, with `reads` in the bucket and barcodes on the FTP server. Raises `Failure`."""
    directory = home / "ftp"
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "barcodes").mkdir(parents=True)
    for name, code in BARCODES.items():
        (directory / "barcodes" / f"{name}.txt").write_text(f"{code}\n", "ascii")
    with contextlib.ExitStack() as stack:
        s3_log, ftp_log = home / "s3.log", home / "ftp.log"
        stack.enter_context(_process(s3_log, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"))
        stack.enter_context(
            _process(ftp_log, "-m", "pyftpdlib", "-i", "127.0.0.1", "-p", "0", "-w", "-d", str(directory))
        )
        s3 = _wait(s3_log, lambda: said(s3_log, r"Running on http://127\.0\.0\.1:(\d+)"))
        ftp = _wait(ftp_log, lambda: said(ftp_log, r"starting FTP server on 127\.0\.0\.1:(\d+)"))
        made = Stores(f"http://127.0.0.1:{s3}", f"127.0.0.1:{ftp}", directory)
        _wait(s3_log, lambda: httpx.put(f"{made.s3}/{BUCKET}", headers=_KEY).status_code == 200)
        _wait(ftp_log, lambda: _greets(int(ftp)))
        with reads.open("rb") as file:
            stored = httpx.put(f"{made.s3}/{BUCKET}/reads/{reads.name}", content=file.read(), headers=_KEY)
        if stored.status_code != 200:
            raise Failure(f"The demo's S3 server answered {stored.status_code}; its log is {home / 's3.log'}.")
        yield made


def _greets(port: int) -> bool:
    with FTP() as client:  # noqa: S321 (loopback, nothing secret)
        client.connect("127.0.0.1", port, timeout=5)
        return client.login().startswith("230")


@contextlib.contextmanager
def _process(log: Path, *arguments: str) -> Iterator[None]:
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-W", "ignore", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the demo
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        ) as process,
    ):
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(log: Path, what: Callable[[], T | None]) -> T:
    """What comes of `what`, when there is something. Raises `Failure`."""
    deadline = time.monotonic() + _START_SECONDS
    while True:
        with contextlib.suppress(OSError, EOFError, httpx.HTTPError):
            if made := what():
                return made
        if time.monotonic() > deadline:
            raise Failure(f"A server of the demo does not answer; its log is {log}.", Exit.SYSTEM_ERROR)
        time.sleep(0.05)
