"""``python -m tesgate.runner drain …``: an operator takes his own host out with what the agent there has."""

from __future__ import annotations

import os
import sys
from typing import Any, Optional

from .gateway import GatewayFault, Unauthorized
from .report import DrainRequest
from .settings import AgentSettings
from .start import client_of

__all__ = ["drain"]

EXIT_OK = 0
EXIT_USAGE = 2
EXIT_SERVER = 5
EXIT_NOT_FOUND = 6


async def drain(settings: AgentSettings, undo: bool) -> int:
    """Have the gateway give the agent of this scratch directory nothing new (or, to undo it, something again)."""
    instance = _instance(settings.scratch)
    if instance is None:
        return _ended(EXIT_USAGE, "no agent has ever worked in %s; give its --scratch" % settings.scratch)
    client = client_of(settings)
    try:
        answer: Any = await client.drain(DrainRequest(agent=instance, drain=not undo))
    except Unauthorized as exc:
        return _ended(EXIT_SERVER, "the agent's token was not taken: %s" % exc)
    except GatewayFault as exc:
        return _ended(EXIT_SERVER, "%s; try again" % exc)
    finally:
        client.close()
    if not answer.hosts:
        return _ended(EXIT_NOT_FOUND, "the gateway knows no agent %s in the pool of this token" % instance)
    said = "gets new attempts again" if undo else "gets no new attempts; what it has goes on"
    sys.stdout.write("The agent %s on %s %s.\n" % (instance, answer.hosts[0], said))
    return EXIT_OK


def _instance(scratch: str) -> Optional[str]:
    try:
        with open(os.path.join(scratch, "instance"), encoding="ascii") as file:
            return file.read(200).strip()
    except (OSError, UnicodeDecodeError):
        return None


def _ended(code: int, sentence: str) -> int:
    sys.stderr.write("tesgate: %s.\n" % sentence)
    return code
