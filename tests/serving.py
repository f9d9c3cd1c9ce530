"""A ``tesgate serve`` of a test: waiting for what it does, its process, and its API as a client sees it."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import httpx

__all__ = ["ENDED", "Api", "Process", "begun", "wait_for"]

T = TypeVar("T")

ENDED = ("COMPLETE", "EXECUTOR_ERROR", "SYSTEM_ERROR", "CANCELED")


def wait_for(what: str, ask: Callable[[], T], seconds: float = 60.0, pause: float = 0.05) -> T:
    """The first answer that is true. `ask` may raise what a gateway that is down makes httpx raise."""
    deadline = time.monotonic() + seconds
    last: Any = None
    while True:
        try:
            last = ask()
            if last:
                return last
        except (httpx.TransportError, OSError, asyncpg.PostgresError) as error:
            last = error
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}; last: {last!r}"
        time.sleep(pause)


def begun(command: Sequence[str], variables: Mapping[str, str], place: Path, name: str) -> subprocess.Popen[str]:
    """A client's program with these variables alone; what it says goes into a file ``name.said`` of `place`."""
    with (place / f"{name}.said").open("w") as said:
        return subprocess.Popen(
            command,
            cwd=place,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )


class Process:
    """A process that tests start and end."""

    process: subprocess.Popen[bytes] | None = None

    def is_dead(self) -> bool:
        """Whether it has ended, or was never started."""
        return self.process is None or self.process.poll() is not None

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """As by ``kill -9``."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()


class Api:
    """TES at a gateway."""

    client: httpx.Client
    """Its base URL ends with the version."""

    def get(self, task_id: str, view: str = "FULL") -> dict[str, Any]:
        """GET one task."""
        answer = self.client.get(f"/tasks/{task_id}", params={"view": view})
        assert answer.status_code == 200, answer.text
        task: dict[str, Any] = answer.json()
        return task

    def state(self, task_id: str) -> str:
        state: str = self.get(task_id, "MINIMAL")["state"]
        return state

    def cancel(self, task_id: str) -> None:
        answer = self.client.post(f"/tasks/{task_id}:cancel")
        assert (answer.status_code, answer.json()) == (200, {})

    def wait(self, task_id: str, *states: str, seconds: float = 90.0) -> dict[str, Any]:
        """The whole task in one of `states` (by default, a terminal one)."""

        def there() -> bool:
            state = self.state(task_id)
            assert state in states or not states or state not in ENDED, self.get(task_id)
            return state in (states or ENDED)

        wait_for(f"task {task_id} to be {' or '.join(states) or 'over'}", there, seconds, pause=0.02)
        return self.get(task_id)
