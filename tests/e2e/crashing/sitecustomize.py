"""Loaded by the agents of the kill tests (through PYTHONPATH): at a crash point kills gateway, agent, or both, or
stops the agent, once.

In a gateway whose E2E_POISON names a file: whoever acts on the task whose id is in that file dies, process and all.

The file that E2E_CRASH names holds "who point[:N]"; it is taken away before the kill, so that the next agent lives.
"""

import os
import signal
import sys


def arm(path: str) -> None:
    from tesgate.runner import crash

    def point(name: str, passed: int = 1) -> None:
        try:
            with open(path, encoding="ascii") as file:
                who, wanted, gateway = file.read().split()
        except (FileNotFoundError, ValueError):
            return
        if wanted in (name, f"{name}:{passed}"):
            os.rename(path, path + ".done")
            if who == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
                return
            if who != "agent":
                os.kill(int(gateway), signal.SIGKILL)
            if who != "gateway":
                os.kill(os.getpid(), signal.SIGKILL)

    crash.point = point


if "E2E_CRASH" in os.environ and "tesgate.runner" in sys.orig_argv:
    arm(os.environ["E2E_CRASH"])


def poison(path: str) -> None:
    from tesgate.control.drivers import Drivers

    with open(path, encoding="ascii") as file:
        task_id = file.read().strip()
    real = Drivers._act

    async def act(self, held, followed):  # type: ignore[no-untyped-def]
        if held.task_id == task_id and held.phase != "ended":
            os.kill(os.getpid(), signal.SIGKILL)
        return await real(self, held, followed)

    Drivers._act = act  # type: ignore[method-assign]


if "E2E_POISON" in os.environ and "serve" in sys.orig_argv:
    poison(os.environ["E2E_POISON"])
