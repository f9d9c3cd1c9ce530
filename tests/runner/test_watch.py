"""Waiting for a result file: by inotify, and without it."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from tesgate.runner import watch as module
from tesgate.runner.watch import Watch

NEVER = 3600.0
"""Seconds between looks, where it must not be a look that finds something."""


async def _seen(watch: Watch, directory: Path, name: str = "step") -> None:
    """Rename a result into the directory a moment after waiting has begun; return when it was seen."""
    (directory / "tmp").write_text("x")
    with watch.on(str(directory), name) as wake:
        async with anyio.create_task_group() as group:

            async def rename() -> None:
                await anyio.sleep(0.05)
                (directory / "tmp").rename(directory / "result")

            group.start_soon(rename)
            with anyio.fail_after(60):
                while not (directory / "result").exists():
                    await wake.wait()


def test_inotify_sees_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WITH_INOTIFY", NEVER)

    async def main() -> None:
        watch = Watch()
        assert watch.works
        async with anyio.create_task_group() as group:
            group.start_soon(watch.run)
            await _seen(watch, tmp_path)
            group.cancel_scope.cancel()
        watch.close()
        watch.close()

    anyio.run(main)


def test_without_inotify_it_is_polled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WITH_INOTIFY", NEVER)

    async def main() -> None:
        watch = Watch(inotify=False)
        assert not watch.works
        await watch.run()
        await _seen(watch, tmp_path)

    anyio.run(main)


def test_a_directory_that_inotify_refuses_is_polled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WITH_INOTIFY", NEVER)

    async def main() -> None:
        watch = Watch()
        with watch.on(str(tmp_path / "missing"), "step") as wake:
            with anyio.fail_after(60):
                await wake.wait()
        watch.close()

    anyio.run(main)


def test_the_engines_word_wakes_one_and_a_gap_wakes_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WITH_INOTIFY", NEVER)

    async def main() -> None:
        watch = Watch()
        for name in "ab":
            (tmp_path / name).mkdir()
        with watch.on(str(tmp_path / "a"), "a") as first, watch.on(str(tmp_path / "b"), "b") as second:
            watch.notify("a")
            with anyio.fail_after(60):
                await first.wait()
            assert (first.ended, second.ended) == (True, False)
            watch.notify("")
            with anyio.fail_after(60):
                await second.wait()
            assert second.ended
        watch.notify("a")
        watch.close()

    anyio.run(main)
