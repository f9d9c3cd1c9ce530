"""``python -m tesgate.runner drain …``: an operator takes his own host out with what the agent there has."""

from __future__ import annotations

import os
import sys
from typing import Any

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
    try:
        with open(os.path.join(settings.scratch, "instance"), encoding="ascii") as file:
            instance = file.read(200).strip()
    except (OSError, UnicodeDecodeError):
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
    print("The agent %s on %s %s." % (instance, answer.hosts[0], said))
    return EXIT_OK


def _ended(code: int, sentence: str) -> int:
    print("tesgate: %s." % sentence, file=sys.stderr)
    return code
