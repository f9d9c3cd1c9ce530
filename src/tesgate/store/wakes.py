"""Who has to look again: events inside this process at once, NOTIFY for the other replicas soon after.

A wake never informs. Losing all of them costs one interval of the loop that would have been woken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import anyio

__all__ = ["CHANNELS", "AgentTicket", "Wakes"]

QUEUE = "tesgate_queue"
AGENT = "tesgate_agent"
TASK = "tesgate_task"

CHANNELS = (QUEUE, AGENT, TASK)


@dataclass(frozen=True)
class AgentTicket:
    """What a held poll waits on."""

    news: anyio.Event = field(default_factory=anyio.Event)
    """Something changed."""
    urgent: anyio.Event = field(default_factory=anyio.Event)
    """And the agent should hear of it at once."""


class Wakes:
    """Tickets: take one, look at the rows, then wait on it; what happened in between has set it."""

    def __init__(self) -> None:
        self._queue = anyio.Event()
        self._agents: dict[str, AgentTicket] = {}
        self._send_on: Callable[[str, str], None] = lambda channel, payload: None
        self._tell_driver: Callable[[str], None] = lambda task_id: None
        self._tell_ended: Callable[[str], None] = lambda task_id: None
        self.closing = False
        self.alone = False
        """No other replica lives, so nobody has to be notified. A replica that comes announces itself."""
        self.voices = 0
        """How many notifications were heard."""

    def connect(self, *, send: Callable[[str, str], None]) -> None:
        """From now on the other replicas hear of it too: `send(channel, id)`."""
        self._send_on = send

    def follow_tasks(self, *, tell: Callable[[str], None], ended: Callable[[str], None]) -> None:
        """`tell(task_id)` is called for every task that changed (an empty id: look at all), `ended` for ends."""
        self._tell_driver = tell
        self._tell_ended = ended

    # something happened here

    def queue(self) -> None:
        """A task waits, or room is free."""
        self._wake_queue()
        self._send(QUEUE, "")

    def agent(self, agent_id: str) -> None:
        """The answer to this agent's poll has changed."""
        self._wake_agent(agent_id)
        self._send(AGENT, agent_id)

    def agent_soon(self, agent_id: str) -> None:
        """The same, and it may wait a moment for company."""
        if (ticket := self._agents.get(agent_id)) is not None:
            ticket.news.set()
        self._send(AGENT, agent_id)

    def task(self, task_id: str) -> None:
        """A task that somebody may follow was changed by somebody else."""
        self._tell_driver(task_id)
        self._send(TASK, task_id)

    def ended(self, task_id: str) -> None:
        """A task has ended here."""
        self._tell_ended(task_id)
        self._send(TASK, task_id)

    def announce(self) -> None:
        """This replica is new, or was away: the others must not think that they are alone."""
        self._send_on(QUEUE, "")

    def _send(self, channel: str, payload: str) -> None:
        if not self.alone:
            self._send_on(channel, payload)

    # something happened elsewhere

    def heard(self, channel: str, payload: str) -> None:
        """A notification came in: ids joined by commas; none means: anything may have changed."""
        self.alone = False
        self.voices += 1
        if channel == QUEUE:
            self._wake_queue()
        elif channel == AGENT:
            for agent_id in payload.split(",") if payload else list(self._agents):
                self._wake_agent(agent_id)
        elif channel == TASK:
            for task_id in payload.split(","):
                self._tell_driver(task_id)

    def close(self) -> None:
        """The gateway stops: whoever waits goes on, and finds `closing` set."""
        self.closing = True
        self._wake_queue()
        for agent_id in list(self._agents):
            self._wake_agent(agent_id)

    # waiting

    def queue_ticket(self) -> anyio.Event:
        """Set when the queue or the room changes."""
        return self._queue

    def agent_ticket(self, agent_id: str) -> AgentTicket:
        """Set when this agent's orders change."""
        ticket = self._agents.get(agent_id)
        if ticket is None or ticket.news.is_set():
            ticket = self._agents[agent_id] = AgentTicket()
        return ticket

    def _wake_queue(self) -> None:
        self._queue.set()
        self._queue = anyio.Event()

    def _wake_agent(self, agent_id: str) -> None:
        ticket = self._agents.pop(agent_id, None)
        if ticket is not None:
            ticket.news.set()
            ticket.urgent.set()
