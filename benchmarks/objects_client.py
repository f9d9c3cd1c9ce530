"""Moves objects with obstore (Rust), the fastest plain client of those that were measured: one line of JSON a job.

Runs in a virtual environment of its own. A job is ``[what, endpoint, bucket, prefix, directory, workers]``; the answer
is the seconds that it took, without the start of this process.
"""

from __future__ import annotations

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import obstore  # type: ignore[import-not-found]
from obstore.store import S3Store  # type: ignore[import-not-found]

PART = 16 << 20


def up(store: Any, prefix: str, directory: Path, pool: ThreadPoolExecutor) -> None:
    def one(path: Path) -> None:
        key = f"{prefix}/{path.relative_to(directory)}"
        if path.stat().st_size <= PART:
            obstore.put(store, key, path.read_bytes(), use_multipart=False)
        else:
            obstore.put(store, key, path, use_multipart=True, chunk_size=PART, max_concurrency=8)

    list(pool.map(one, [path for path in directory.rglob("*") if path.is_file()]))


def down(store: Any, prefix: str, directory: Path, pool: ThreadPoolExecutor) -> None:
    def one(meta: Any) -> None:
        path = directory / meta["path"].removeprefix(prefix + "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if meta["size"] <= PART:
            path.write_bytes(obstore.get(store, meta["path"]).bytes())
            return
        with path.open("wb") as file:
            file.truncate(meta["size"])

            def part(begin: int) -> None:
                data = obstore.get_range(store, meta["path"], start=begin, end=min(begin + PART, meta["size"]))

                os.pwrite(file.fileno(), data, begin)

            with ThreadPoolExecutor(8) as parts:
                list(parts.map(part, range(0, meta["size"], PART)))

    metas = [meta for page in obstore.list(store, prefix + "/") for meta in page]
    list(pool.map(one, metas))


def main() -> None:
    for line in sys.stdin:
        what, endpoint, bucket, prefix, directory, workers = json.loads(line)
        store = S3Store(
            bucket,
            endpoint=endpoint,
            access_key_id="testing",
            secret_access_key="testing-secret",
            region="us-east-1",
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )
        with ThreadPoolExecutor(workers) as pool:
            began = time.perf_counter()
            (up if what == "up" else down)(store, prefix, Path(directory), pool)
            print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main()
