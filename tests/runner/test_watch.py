"""Waiting for a result file: by inotify, and without it."""

from __future__ import annotations

import time
from pathlib import Path

import anyio
import pytest

from tesgate.runner import watch as module
from tesgate.runner.watch import Watch


async def _seconds_until_seen(watch: Watch, directory: Path, name: str = "step") -> float:
    """Rename a result into the directory a moment after waiting has begun; return how long it took to be seen."""
    (directory / "tmp").write_text("x")
    with watch.on(str(directory), name) as wake:
        began = time.monotonic()
        async with anyio.create_task_group() as group:

            async def rename() -> None:
                nonlocal began
                await anyio.sleep(0.05)
                began = time.monotonic()
                (directory / "tmp").rename(directory / "result")

            group.start_soon(rename)
            with anyio.fail_after(5):
                while not (directory / "result").exists():
                    await wake.wait()
        return time.monotonic() - began


def test_inotify_sees_it_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WITH_INOTIFY", 30.0)

    async def main() -> None:
        watch = Watch()
        assert watch.works
        async with anyio.create_task_group() as group:
            group.start_soon(watch.run)
            assert await _seconds_until_seen(watch, tmp_path) < 0.5
            group.cancel_scope.cancel()
        watch.close()
        watch.close()

    anyio.run(main)


def test_without_inotify_it_is_polled(tmp_path: Path) -> None:
    async def main() -> None:
        watch = Watch(inotify=False)
        assert not watch.works
        await watch.run()
        assert await _seconds_until_seen(watch, tmp_path) < 1.0

    anyio.run(main)


def test_a_directory_that_inotify_refuses_is_polled(tmp_path: Path) -> None:
    async def main() -> None:
        watch = Watch()
        with watch.on(str(tmp_path / "missing"), "step") as wake:
            began = time.monotonic()
            await wake.wait()
            assert time.monotonic() - began < 0.5
        watch.close()

    anyio.run(main)


def test_the_engines_word_wakes_one_and_a_gap_wakes_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WITH_INOTIFY", 30.0)

    async def main() -> None:
        watch = Watch()
        for name in "ab":
            (tmp_path / name).mkdir()
        with watch.on(str(tmp_path / "a"), "a") as first, watch.on(str(tmp_path / "b"), "b") as second:
            watch.notify("a")
            with anyio.fail_after(5):
                await first.wait()
            assert (first.ended, second.ended) == (True, False)
            watch.notify("")
            with anyio.fail_after(5):
                await second.wait()
            assert second.ended
        watch.notify("a")
        watch.close()

    anyio.run(main)
