"""An object store and an FTP server that fail, tasks whose data is there, and what must lie there at the end."""

from __future__ import annotations

import contextlib
import json
import random
import secrets
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from tests.beds import ftp as ftp_bed
from tests.beds import s3 as s3_bed
from tests.e2e.harness import wait_for
from tests.faults.oracle import Mix, Work
from tests.transfer.s3_proxy import Fault, Proxy, proxy_of
from tests.transfer.s3_signing import client_of

__all__ = ["KINDS", "Breakable", "StoreMix", "Stores", "stores"]

LARGE = (16 << 20) + 4099
"""Bytes: more than one PUT is for, so it is a multipart upload."""
METHODS = ("GET", "PUT", "POST", "HEAD", "DELETE")
ALWAYS = 10**9


class Breakable:
    """The proxy before an S3 server, told to fail for a moment."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy

    def away(self) -> None:
        """Every connection is reset."""
        self._all("reset")

    def busy(self) -> None:
        """Every request is answered 503 SlowDown."""
        self._all("slow")

    def flaky(self, rng: random.Random, count: int = 12) -> None:
        """Some of the next requests are carried out and their answer lost, cut, refused or reset."""
        for _ in range(count):
            kind = rng.choice(["lost", "lost", "reset", "slow", "error", "early", "cut"])
            method = rng.choice(["PUT", "PUT", "POST", "POST", "GET", "DELETE"])
            with self.proxy.lock:
                self.proxy.faults.append(Fault(kind, method=method, skip=rng.randrange(6), at=rng.randrange(200)))

    def _all(self, kind: str) -> None:
        with self.proxy.lock:
            self.proxy.faults[:0] = [Fault(kind, method=method, times=ALWAYS) for method in METHODS]

    def mend(self) -> None:
        """No fault any more."""
        with self.proxy.lock:
            self.proxy.faults.clear()


class Stores:
    """One bucket for data, one for the workspace, one directory on an FTP server; made by `stores`."""

    def __init__(self, base: Path, server: s3_bed.Server, proxy: Proxy, ftp: ftp_bed.Faulty) -> None:
        self.server, self.ftp = server, ftp
        self.s3 = Breakable(proxy)
        self.client: Any = client_of(server.url, server.access_key, server.secret_key)
        self.name = secrets.token_hex(5)
        self.bucket, self.workspace = f"soak-{self.name}", f"work-{self.name}"
        for bucket in (self.bucket, self.workspace):
            self.client.create_bucket(Bucket=bucket)
        self.ftp_root = ftp.root / self.name
        self.ftp_root.mkdir()
        for name, word in (("id", server.access_key), ("secret", server.secret_key)):
            (base / f"s3.{name}").write_text(word)
        endpoint = {
            "name": "bed",
            "url": proxy.url,
            "access_key_id": f"file:{base}/s3.id",
            "secret_access_key": f"file:{base}/s3.secret",
            "part_mb": 5,
        }
        self.settings = {
            "S3__ENDPOINTS": json.dumps([endpoint]),
            "WORKSPACE": f"s3://{self.workspace}/here",
            "URL_POLICY__ALLOWED_HOSTS": "127.0.0.1,::1",
        }

    def close(self) -> None:
        self.s3.mend()
        self.client.close()

    # faults of the FTP server

    def ftp_away(self) -> None:
        """It hears and says nothing."""
        self.ftp.process.send_signal(signal.SIGSTOP)

    def ftp_back(self) -> None:
        self.ftp.process.send_signal(signal.SIGCONT)

    def ftp_flaky(self, rng: random.Random) -> None:
        """Some of the next transfers and commands go wrong, each in a way of its own."""
        self.ftp.set(
            hangup=[rng.randrange(1, 200_000) for _ in range(3)],
            gone=2,
            mute=1,
            lost=[rng.randrange(1, 100_000)],
            answers={"RNTO": ["hang up", "", "450 busy"], "STOR": ["421 too many", "", "hang up"], "DELE": ["hang up"]},
        )

    def ftp_mend(self) -> None:
        self.ftp_back()
        self.ftp.set()

    # what lies there

    def keys(self) -> dict[str, int]:
        """Sizes of all data objects by key."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return {item["Key"]: int(item["Size"]) for page in pages for item in page.get("Contents") or []}

    def stored(self, key: str) -> bytes:
        data: bytes = self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return data

    def uploads(self) -> list[str]:
        """Keys of multipart uploads with parts that nobody has completed or aborted.

        One of whose beginning nobody heard is empty, and swept a day later (`tests/storage` has that).
        """
        answer = self.client.list_multipart_uploads(Bucket=self.bucket)
        found: list[str] = []
        for item in answer.get("Uploads") or []:
            with contextlib.suppress(ClientError):  # aborted meanwhile
                parts = self.client.list_parts(Bucket=self.bucket, Key=item["Key"], UploadId=item["UploadId"])
                found += [str(item["Key"])] if parts.get("Parts") else []
        return found

    def judge(self, works: Sequence[Work], ends: dict[str, str]) -> None:
        """Exactly the whole outputs of what was to store some, and nothing else, soon.

        `ends`: terminal states by name. Raises AssertionError with all that is wrong.
        """
        wrong: list[str] = []
        expected: set[str] = set()
        keys = self.keys()
        for work in works:
            stored = ends[work.name] in ("COMPLETE", "EXECUTOR_ERROR")
            for key, content in work.objects.items():
                expected.add(key)
                if key in keys:
                    if not stored and not work.may_store:
                        wrong.append(f"{work.name} is {ends[work.name]} and has stored {key}")
                    elif (found := self.stored(key)) != content:
                        wrong.append(f"{key} has {len(found)} bytes, not the {len(content)} that it should have")
                elif stored:
                    wrong.append(f"{work.name} is {ends[work.name]} without {key}")
            for path, content in work.remote.items():
                if path.exists():
                    if not stored and not work.may_store:
                        wrong.append(f"{work.name} is {ends[work.name]} and has stored {path}")
                    elif path.read_bytes() != content:
                        wrong.append(f"{path} is not what it should be")
                elif stored:
                    wrong.append(f"{work.name} is {ends[work.name]} without {path}")
        wrong += [
            f"nobody should have stored {key}" for key in keys if key not in expected and not key.startswith("in/")
        ]
        known = {path for work in works for path in work.remote}
        wrong += [
            f"nobody should have stored {path}"
            for path in self.ftp_root.rglob("*")
            if path.is_file()
            and path not in known
            and path.parent != self.ftp_root / "in"
            and ".tesgate" not in path.name
        ]
        assert not wrong, "\n".join(wrong[:40])

    def assert_nothing_left(self, seconds: float = 90.0) -> None:
        """No open upload and no temporary file, once the sweeps have been."""

        def left() -> list[str]:
            return [*self.uploads(), *(str(path) for path in self.ftp.root.rglob(".tesgate*"))]

        try:
            wait_for("nothing to be left in the stores", lambda: not left(), seconds, 0.5)
        except AssertionError:
            raise AssertionError(f"still in the stores: {left()}") from None


@contextlib.contextmanager
def stores(base: Path, server: s3_bed.Server, ftp: ftp_bed.Servers) -> Iterator[Stores]:
    """Both, with nothing in them."""
    base.mkdir(parents=True, exist_ok=True)
    with proxy_of(server.url) as proxy:
        made = Stores(base, server, proxy, ftp.faulty())
        try:
            yield made
        finally:
            made.ftp_mend()
            made.close()


def content_of(name: str, size: int) -> bytes:
    """What ``yes NAME | head -c SIZE`` writes."""
    line = name.encode() + b"\n"
    return (line * (size // len(line) + 1))[:size]


class StoreMix(Mix):
    """Tasks that take inputs from the stores and put outputs there."""

    def __init__(self, *, stores: Stores, **more: Any) -> None:
        super().__init__(**more)
        self._stores = stores
        self._data = self._rng.randbytes(200_000)
        stores.client.put_object(Bucket=stores.bucket, Key=f"in/{self._prefix}", Body=self._data)
        (stores.ftp_root / "in").mkdir(exist_ok=True)
        (stores.ftp_root / "in" / self._prefix).write_bytes(self._data)

    def _object(self, work: Work, path: str, contents: dict[str, bytes], kind: str = "FILE") -> Work:
        """An output in the bucket; `contents` by what follows the key of the output."""
        key = f"{work.name}/{path.rpartition('/')[2]}"
        url = f"s3://{self._stores.bucket}/{key}"
        work.document.setdefault("outputs", []).append({"path": path, "url": url, "type": kind})
        work.objects.update({key + below: content for below, content in contents.items()})
        return work

    def _remote(self, work: Work, path: str, contents: dict[str, bytes], kind: str = "FILE") -> Work:
        """The same on the FTP server."""
        name = f"{work.name}/{path.rpartition('/')[2]}"
        url = self._stores.ftp.url(f"{self._stores.name}/{name}")
        work.document.setdefault("outputs", []).append({"path": path, "url": url, "type": kind})
        work.remote.update({self._stores.ftp_root / (name + below): content for below, content in contents.items()})
        return work

    def _s3_copy(self) -> Work:
        work = self._work("s3copy", [self._nap() + "cat /data/in > /count/out"], ("COMPLETE",), codes=(0,))
        url = f"s3://{self._stores.bucket}/in/{self._prefix}"
        work.document["inputs"] = [{"url": url, "path": "/data/in", "type": "FILE"}]
        return self._object(work, "/count/out", {"": self._data})

    def _s3_large(self) -> Work:
        work = self._work("s3large", [], ("COMPLETE",), codes=(0, 0))
        large = f"yes {work.name} | head -c {LARGE} > /count/large"
        self._script(work, [self._nap() + large, self._nap() + "echo small > /count/small"])
        self._object(work, "/count/large", {"": content_of(work.name, LARGE)})
        return self._object(work, "/count/small", {"": b"small\n"})

    def _s3_tree(self) -> Work:
        scripts = [self._nap() + "mkdir -p /count/d/e; for i in 1 2 3 4 5 6 7 8; do echo $i > /count/d/e/$i; done"]
        work = self._work("s3tree", scripts, ("COMPLETE",), codes=(0,))
        return self._object(work, "/count/d", {f"/e/{i}": b"%d\n" % i for i in range(1, 9)}, "DIRECTORY")

    def _s3_fails(self) -> Work:
        work = self._work("s3fails", [], ("EXECUTOR_ERROR",), codes=(7,))
        self._script(work, [self._nap() + f"yes {work.name} | head -c {LARGE} > /count/large; exit 7"])
        return self._object(work, "/count/large", {"": content_of(work.name, LARGE)})

    def _s3_cancel(self) -> Work:
        script = f"yes x | head -c {LARGE} > /count/large; sleep 600"
        work = self._work("s3cancel", [script], ("CANCELED",), cancel=True)
        self._remote(work, "/count/large", {"": b""})
        return self._object(work, "/count/large", {"": b""})

    def _race(self) -> Work:
        """To be cancelled at any moment."""
        work = self._work("race", [], ("COMPLETE", "CANCELED"), codes=(0,), may_store=True)
        script = (
            self._nap()
            + f"yes {work.name} | head -c {LARGE} > /count/large; for i in 1 2 3; do echo $i > /count/$i; done"
        )
        self._script(work, [script])
        self._object(work, "/count/large", {"": content_of(work.name, LARGE)})
        for i in (1, 2, 3):
            self._object(work, f"/count/{i}", {"": b"%d\n" % i})
            self._remote(work, f"/count/{i}", {"": b"%d\n" % i})
        return work

    def _ftp_copy(self) -> Work:
        work = self._work("ftpcopy", [self._nap() + "cat /data/in > /count/out"], ("COMPLETE",), codes=(0,))
        url = self._stores.ftp.url(f"{self._stores.name}/in/{self._prefix}")
        work.document["inputs"] = [{"url": url, "path": "/data/in", "type": "FILE"}]
        return self._remote(work, "/count/out", {"": self._data})

    def _ftp_tree(self) -> Work:
        scripts = [self._nap() + "mkdir -p /count/d/e; echo a > /count/d/a; echo b > /count/d/e/b"]
        work = self._work("ftptree", scripts, ("COMPLETE",), codes=(0,))
        return self._remote(work, "/count/d", {"/a": b"a\n", "/e/b": b"b\n"}, "DIRECTORY")

    def _everywhere(self) -> Work:
        scripts = [self._nap() + "echo one > /count/out; seq 1 40000"]
        work = self._work("everywhere", scripts, ("COMPLETE",), codes=(0,))
        work.stdout = b"".join(b"%d\n" % number for number in range(1, 40001))
        self._out(work, b"one\n")
        self._object(work, "/count/out", {"": b"one\n"})
        return self._remote(work, "/count/out", {"": b"one\n"})

    def _script(self, work: Work, scripts: Sequence[str]) -> None:
        """Its executors, for scripts that need its name."""
        work.document["executors"] = self._executors(work.name, scripts)


KINDS = (
    *("s3_copy", "s3_large", "ftp_copy", "race", "s3_fails", "s3_cancel"),
    *("everywhere", "s3_tree", "ftp_tree", "loud", "race", "plain"),
)
"""Of `StoreMix`, for `make`."""
