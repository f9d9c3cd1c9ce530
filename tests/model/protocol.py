"""The attempt's protocol as an explicit state space. What it is for and how to read it: docs/design/model.md.

`State` is all that exists: rows, hosts with their disks and processes, messages that are held up, and how many faults
may still come. A method of `Protocol` is a row of the protocol's table, or a step of the world: it has the row's name,
its docstring is the row (sender | guard | effect), it returns the state after it, or None where its guard says no.
`Protocol.steps` lists what can happen next, `search.explore` walks all of it. A message arrives at once or is held up
(a fault): then it stays in `State.net` and may arrive at any later time, in any order, any number of times. That is all
that delay can do, because whoever waits for an answer is where it was before it asked.

    python -m tests.model.protocol [VARIANT]    explores the protocol, or prints the shortest trace into what breaks
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

ENDED: tuple[str, ...] = ("COMPLETE", "SYSTEM_ERROR", "CANCELED")
ATTEMPTS = 2
TOMBSTONE = "tombstone"
OBEYS_OLD_ANSWERS = ("old-answer-obeyed", "stop-leaves-no-tombstone")
"""The tombstone of an order to stop is a second guard against the start that it overtook: this variant lacks both."""
ORDERS = ("start", "stop", "forget")
"""What a poll's answer carries."""


class Task(NamedTuple):
    """The task's row. `n`: its current attempt; `lease`: the attempt whose publish lease lives, 0: none; `pending`: the
    end that waits for a lease, while clients still see `state`."""

    state: str = ""
    phase: str = ""
    n: int = 0
    lease: int = 0
    pending: str = ""


class Attempt(NamedTuple):
    """An attempt's row. `closed`: by what (finished, failed, stopped, lost). `listed`: a poll had it in `have`;
    `missing`: and a later one did not."""

    instance: int
    closed: str = ""
    listed: bool = False
    missing: bool = False
    logs: bool = False


class Agent(NamedTuple):
    """An agent's row. Sessions and polls have no numbers here: a newer one makes older ones in `State.net` obsolete."""

    instance: int
    open: bool = True
    room: int = 1


class Work(NamedTuple):
    """An attempt's directory. `step`: executors begun; `box`: the last one's container as the engine has it (running,
    exited, dead: without a result); `word`: how it ends, journalled before it is said; `lease`: only in memory."""

    step: int = 0
    box: str = ""
    stored: bool = False
    word: str = ""
    lease: bool = False

    def ends(self, word: str) -> Work:
        return self._replace(box="exited" if self.box else "", word=word, lease=False)


class Host(NamedTuple):
    """Its disk (`instance`; `works` by attempt: a directory, a tombstone or nothing) and its agent's process (`up`)."""

    instance: int
    up: bool = True
    works: tuple[Work | str | None, ...] = (None,) * ATTEMPTS

    def have(self) -> frozenset[int]:
        return frozenset(n for n, work in enumerate(self.works, 1) if isinstance(work, Work))

    def put(self, n: int, work: Work | str | None) -> Host:
        return self._replace(works=(*self.works[: n - 1], work, *self.works[n:]))


class Message(NamedTuple):
    """`more`: of a poll, what the agent has; of a request that makes outputs visible, what is wrong with it."""

    kind: str
    n: int
    instance: int
    more: Any = None


class State(NamedTuple):
    """Everything. `decided`: the driver's write "attempt n is lost" is on its way. For the checks only: `begun` (which
    executors of which attempts were ever started), `wrong` (what this step broke, ``kind: sentence``)."""

    faults: int
    task: Task = Task()
    attempts: tuple[Attempt, ...] = ()
    agents: tuple[Agent, ...] = (Agent(0), Agent(1))
    hosts: tuple[Host, ...] = (Host(0), Host(1))
    net: frozenset[Message] = frozenset()
    owner_up: bool = True
    decided: int = 0
    begun: frozenset[tuple[int, int]] = frozenset()
    wrong: str = ""


class Scope(NamedTuple):
    """How much of the world is explored. `faults`: how many come at most; `cancel`: a client may, at any time."""

    executors: int = 1
    outputs: bool = True
    faults: int = 2
    cancel: bool = True


Row = Callable[..., State | None]


class Protocol:
    """The table, row by row. `variant`: the one rule that is broken (search.VARIANTS); empty: none is."""

    def __init__(self, scope: Scope, variant: str = "") -> None:
        self.scope = scope
        self.variant = variant

    # What rows have in common.

    def write(self, s: State, closed: Attempt | None = None, attempt: Attempt | None = None, **task: Any) -> State:
        """Every write of a task's row or its attempts': the version rises, a write of who read it before is dropped."""
        return s._replace(
            task=s.task._replace(**task) if task else s.task,
            attempts=tuple(attempt if a is closed and attempt else a for a in s.attempts),
            decided=s.decided if self.variant == "driver-names-no-version" else 0,
        )

    def close(self, s: State, n: int, how: str, **task: Any) -> State:
        """Attempt n is closed, its room free. By its own word it stores nothing more, so that gives its lease back."""
        a = s.attempts[n - 1]
        for agent in s.agents:
            if agent.instance == a.instance and not a.closed:
                s = self.agent(s, agent._replace(room=agent.room + 1))
        lease = 0 if s.task.lease == n and how != "lost" else s.task.lease
        return self.write(s, a, Attempt(a.instance, how, logs=a.logs), lease=lease, **task)

    def may_end(self, s: State, n: int = 0) -> bool:
        """No lease lives, but for that of attempt n, which says itself that it stores nothing more."""
        return s.task.lease in (0, n) or self.variant == "end-does-not-wait"

    def give_up(self, s: State, n: int, how: str) -> State:
        """The attempt came to nothing: the next one (of a cancelled task there is none), or the end after the lease."""
        canceling = s.task.state == "CANCELING" and not (self.variant == "failed-ignores-cancel" and how == "failed")
        if n < ATTEMPTS and not canceling:
            return self.close(s, n, how, phase="waiting")
        end = "CANCELED" if canceling else "SYSTEM_ERROR"
        if not self.may_end(s, 0 if how == "lost" else n):
            return self.close(s, n, how, phase="waiting", pending=end)
        return self.close(s, n, how, phase="ended", state=end)

    def current(self, s: State, m: Message) -> bool:
        """current, instance, not ended"""
        a = s.attempts[m.n - 1]
        return a.instance == m.instance and (
            (m.n == s.task.n and not a.closed) or self.variant == m.kind + "-unchecked"
        )

    def refuse(self, s: State, m: Message) -> State:
        """Zero rows. 410 to a lost attempt: stop, tombstone, remove. What closed by its own word hears 200 again."""
        a = s.attempts[m.n - 1]
        gone = a.closed == "lost" or a.instance != m.instance or (a.closed and self.variant == "repeat-gets-410")
        return self.forget(s, Message("forget", m.n, m.instance, "410")) if gone else s

    def agent(self, s: State, agent: Agent) -> State:
        return s._replace(agents=tuple(sorted((*(g for g in s.agents if g.instance != agent.instance), agent))))

    def host(self, s: State, old: Host, new: Host) -> State:
        return s._replace(hosts=tuple(new if host.instance == old.instance else host for host in s.hosts))

    def process(self, s: State, m: Message | Agent) -> Host | None:
        """The host whose living process speaks as this instance."""
        return next((host for host in s.hosts if host.instance == m.instance and host.up), None)

    def runner(self, s: State, m: Message, **changes: Any) -> State:
        """The sender hears its answer, if it still lives and has not said its last word."""
        host = self.process(s, m)
        work = host.works[m.n - 1] if host else None
        if host is None or not isinstance(work, Work) or work.word:
            return s
        return self.host(s, host, host.put(m.n, work._replace(**changes)))

    # Client and dispatcher.

    def submit(self, s: State) -> State | None:
        """client | idempotency key | QUEUED, waiting"""
        return None if s.task.state else self.write(s, state="QUEUED", phase="waiting")

    def cancel(self, s: State) -> State | None:
        """client | not terminal | waiting, no lease alive: CANCELED; else CANCELING (a start may be on its way)"""
        t = s.task
        if not self.scope.cancel or t.state in (*ENDED, "CANCELING"):
            return None
        if t.phase == "waiting" and self.may_end(s):
            return self.write(s, state="CANCELED", phase="ended", pending="")
        if t.phase == "assigned" and self.may_end(s) and self.variant == "cancel-assigned-at-once":
            return self.close(s, t.n, "stopped", state="CANCELED", phase="ended")
        return self.write(s, state="CANCELING", pending="CANCELED" if t.phase == "waiting" else "")

    def settle(self, s: State) -> State | None:
        """anyone | an end is pending, no lease alive | that end"""
        if not s.task.pending or s.task.lease or self.variant == "nobody-settles":
            return None
        return self.write(s, state=s.task.pending, phase="ended", pending="")

    def assign(self, s: State, agent: Agent) -> State | None:
        """dispatcher | waiting, no end pending; agent open, room >= need | attempt n, instance set, room taken"""
        t = s.task
        if t.phase != "waiting" or t.pending or not agent.open or agent.room < 1:
            return None
        s = self.agent(s, agent._replace(room=agent.room - 1))
        s = s._replace(attempts=(*s.attempts, Attempt(agent.instance)))
        return self.write(s, state="INITIALIZING" if t.state == "QUEUED" else t.state, phase="assigned", n=t.n + 1)

    # Agent and gateway.

    def poll(self, s: State, host: Host) -> State | None:
        """agent | newest session, newest poll; closed: 410, it registers again | answer: start, stop, forget"""
        if not host.up:
            return None
        s = self.given_up(s, host.instance)
        if not any(agent.instance == host.instance and agent.open for agent in s.agents):
            return self.register(s, host)
        s = self.acknowledge(self.newest(s, host.instance, "old-poll-heard"), host.instance, host.have())
        for m in self.answer(s, host):
            s = getattr(self, m.kind)(s, m)
        return s

    def given_up(self, s: State, instance: int) -> State:
        """An agent has one poll at a time: when it asks again, what an earlier one was answered is never obeyed."""
        if not s.net or self.variant in OBEYS_OLD_ANSWERS:
            return s
        return s._replace(net=frozenset(m for m in s.net if m.kind not in ORDERS or m.instance != instance))

    def late_poll(self, s: State, m: Message) -> State:
        """A poll that was held up (its answer reaches nobody): a newer poll or session has made it obsolete."""
        if not any(agent.instance == m.instance and agent.open for agent in s.agents):
            return s
        return self.acknowledge(self.newest(s, m.instance, "old-poll-heard"), m.instance, m.more)

    def newest(self, s: State, instance: int, variant: str) -> State:
        if not s.net or self.variant == variant:
            return s
        return s._replace(net=frozenset(m for m in s.net if m.kind != "late_poll" or m.instance != instance or m.n))

    def acknowledge(self, s: State, instance: int, have: frozenset[int]) -> State:
        """agent, in `have` | instance, current, not cancelled | started, listed. Once listed and then missing: lost."""
        t = s.task
        a = s.attempts[t.n - 1] if t.n else None
        if a is None or t.state == "CANCELING" or a.closed or a.instance != instance or a.missing:
            return s
        if t.n in have:
            return s if a.listed else self.write(s, a, a._replace(listed=True), phase="started", state="RUNNING")
        if not a.listed and not (self.variant == "report-counts-as-listed" and t.phase == "started"):
            return s
        if any(host.instance == instance and host.up and t.n in host.have() for host in s.hosts):
            s = s._replace(wrong=f"missing: attempt {t.n} is called missing, and its agent has it")
        return self.write(s, a, a._replace(missing=True))

    def answer(self, s: State, host: Host) -> Iterator[Message]:
        """What a poll's answer carries. The rows alone say it, so it is said again until it is done."""
        for n, a in enumerate(s.attempts, 1):
            if a.instance != host.instance:
                continue
            if a.closed:
                if n in host.have() and (a.closed == "lost" or a.logs or self.variant == "forget-before-logs"):
                    yield Message("forget", n, a.instance)
            elif s.task.state == "CANCELING":
                yield Message("stop", n, a.instance)
            elif not a.listed and n not in host.have():
                yield Message("start", n, a.instance)

    def start(self, s: State, m: Message) -> State:
        """poll's answer | no directory (O_EXCL), no tombstone, room on the host itself | makes the directory, begins"""
        host = self.process(s, m)
        if host is None or (host.works[m.n - 1] is not None and self.variant != "directory-made-again"):
            return s
        others = (work for n, work in enumerate(host.works, 1) if n != m.n and isinstance(work, Work))
        if any(not work.word for work in others) and self.variant != "agent-counts-no-room":
            return s
        return self.host(s, host, host.put(m.n, Work()))

    def stop(self, s: State, m: Message) -> State:
        """poll's answer | - | stops, aborts uploads, journals `stopped`; unknown attempt: a tombstone, says so"""
        host = self.process(s, m)
        work = host.works[m.n - 1] if host else None
        if host is None:
            return s
        if isinstance(work, Work):
            return self.host(s, host, host.put(m.n, work.ends("stopped")))
        unknown = None if self.variant == "stop-leaves-no-tombstone" else TOMBSTONE
        return self.stopped(self.host(s, host, host.put(m.n, unknown)), Message("stopped", m.n, m.instance))

    def forget(self, s: State, m: Message) -> State:
        """poll's answer, or 410 | ended, logs in | container and scratch removed, uploads aborted; 410: a tombstone"""
        host, a = self.process(s, m), s.attempts[m.n - 1]
        if host is None or m.n not in host.have():
            return s
        if a.closed not in ("", "lost") and not a.logs:
            s = s._replace(wrong=f"logs: attempt {m.n} is removed before its logs are in")
        return self.host(s, host, host.put(m.n, TOMBSTONE if m.more == "410" else None))

    def register(self, s: State, host: Host) -> State:
        """agent | scratch lock | open, new session, room = capacity - what its open attempts hold; its work goes on"""
        held = sum(a.instance == host.instance and not a.closed for a in s.attempts)
        s = self.agent(s, Agent(host.instance, room=1 if self.variant == "register-resets-room" else 1 - held))
        s = self.newest(s, host.instance, "old-session-heard")
        if self.variant == "old-session-heard":  # poll numbers begin anew: an old session's poll is never overtaken
            s = s._replace(net=frozenset(m._replace(n=1) if m.kind == "late_poll" else m for m in s.net))
        for n in host.have() if self.variant == "410-drops-everything" else ():
            s = self.forget(s, Message("forget", n, host.instance, "410"))
        return s

    def restart(self, s: State, host: Host) -> State | None:
        """agent | scratch lock | new session, goes on from the journals"""
        if host.up:
            return None
        new = host._replace(up=True)
        if self.variant == "instance-is-process":  # the agent's row stays, the instance in it is the new process
            new = new._replace(instance=host.instance + 2)
            agents = (g._replace(instance=new.instance) if g.instance == host.instance else g for g in s.agents)
            s = s._replace(agents=tuple(agents))
        if self.variant == "restart-begins-anew":
            new = new._replace(works=tuple(Work() if isinstance(w, Work) else w for w in new.works))
        return self.host(self.register(s, new), host, new)

    # Runner: what it does,

    def run_executor(self, s: State, host: Host, n: int, work: Work) -> State | None:
        """runner | the one before has a result | journals it; the engine starts it by name, or has it already"""
        if work.word or work.step == self.scope.executors or work.box not in ("", "exited"):
            return None
        step = work.step + 1
        if (n, step) in s.begun:
            s = s._replace(wrong=f"twice: executor {step} of attempt {n} is started a second time")
        elif s.task.state in ENDED and n == s.task.n and s.attempts[n - 1].closed != "lost":
            s = s._replace(wrong=f"after: executor {step} of attempt {n} is started after the end")
        s = s._replace(begun=s.begun | {(n, step)})
        return self.host(s, host, host.put(n, work._replace(step=step, box="running")))

    def ran(self, work: Work) -> bool:
        return work.step == self.scope.executors and work.box == "exited"

    def word(self, s: State, host: Host, n: int, work: Work) -> State | None:
        """runner | a container is gone without a result: failed; all ran and is stored: finish | journals it"""
        word = "finish" if self.ran(work) and (work.stored or not self.scope.outputs) else ""
        word = "failed" if work.box == "dead" else word
        return self.host(s, host, host.put(n, work.ends(word))) if word and not work.word else None

    def log(self, s: State, host: Host, n: int, work: Work) -> State | None:
        """runner | instance | written (all in one step here, and as late as it can be: when it has heard its 200)"""
        a = s.attempts[n - 1]
        if a.logs or a.instance != host.instance or a.closed in ("", "lost"):
            return None
        return s._replace(attempts=tuple(b._replace(logs=True) if b is a else b for b in s.attempts))

    def says(self, s: State, host: Host, n: int, work: Work) -> Iterator[Message]:
        """and what it may say now; its last word again and again, until it is told to forget."""
        if work.word:
            yield Message(work.word, n, host.instance)
            return
        if work.lease or (s.task.phase == "assigned" and work.step):  # it comes at any time; here where it matters
            yield Message("report", n, host.instance)
        if work.lease and not work.stored:  # by the runner's own clock its lease lives
            faulty = "though lost" if s.attempts[n - 1].closed == "lost" else "without the lease"
            faulty = "after the end" if s.task.state in ENDED else "" if s.task.lease == n else faulty
            yield Message("stored", n, host.instance, faulty)
        elif self.ran(work) and not work.stored and self.scope.outputs:
            yield Message("publish", n, host.instance)

    def report(self, s: State, m: Message) -> State:
        """runner | instance, attempt open | started; its own lease, if it lives and nobody cancelled, is renewed"""
        if not self.current(s, m):
            return self.refuse(s, m)
        if s.task.state == "CANCELING":
            return s
        s = self.write(s, phase="started", state="RUNNING")
        return self.runner(s, m, lease=True) if s.task.lease == m.n else s

    def publish(self, s: State, m: Message) -> State:
        """runner | current, instance, not cancelled or ended, own lease or none alive | started, lease"""
        if not self.current(s, m):
            return self.refuse(s, m)
        if s.task.state == "CANCELING" or s.task.lease not in (0, m.n):
            return s
        lease = s.task.lease if self.variant == "publish-is-a-check" else m.n
        return self.runner(self.write(s, phase="started", state="RUNNING", lease=lease), m, lease=True)

    def stored(self, s: State, m: Message) -> State:
        """The request that makes outputs visible lands. Sent under the lease it may be late: that is allowed."""
        if m.more:
            s = s._replace(wrong=f"outputs: attempt {m.n} makes outputs visible {m.more}")
        return self.runner(s, m, stored=True)

    def finish(self, s: State, m: Message) -> State:
        """runner | as publish | terminal, room free"""
        if not self.current(s, m):
            return self.refuse(s, m)
        if (s.task.state == "CANCELING" and self.variant != "finish-ignores-cancel") or not self.may_end(s, m.n):
            return s
        return self.close(s, m.n, "finished", state="COMPLETE", phase="ended")

    def failed(self, s: State, m: Message) -> State:
        """runner | current, instance | next attempt, or SYSTEM_ERROR / CANCELED after the lease"""
        return self.give_up(s, m.n, "failed") if self.current(s, m) else self.refuse(s, m)

    def stopped(self, s: State, m: Message) -> State:
        """runner | current, instance, CANCELING | CANCELED after the lease, room free"""
        if not self.current(s, m):
            return self.refuse(s, m)
        return self.give_up(s, m.n, "stopped") if s.task.state == "CANCELING" else s

    # Watcher and owner.

    def lost_agent(self, s: State, agent: Agent) -> State | None:
        """pool's watcher | silent | agent closed"""
        heard = self.process(s, agent) is not None
        if self.variant == "heartbeats-by-host":
            heard = any(host.up and host.instance % 2 == agent.instance % 2 for host in s.hosts)
        return None if heard else self.suspect(s, agent)

    def notice(self, s: State) -> State | None:
        """owner | the attempt's agent is closed or the attempt is missing | read the row, will write `lost_attempt`"""
        if not s.owner_up or s.decided or s.task.phase not in ("assigned", "started"):
            return None
        a = s.attempts[s.task.n - 1]
        lost = a.missing or any(agent.instance == a.instance and not agent.open for agent in s.agents)
        return s._replace(decided=s.task.n) if lost else None

    def lost_attempt(self, s: State) -> State | None:
        """owner | epoch and version (see `write`, `adopt`) | waiting, or SYSTEM_ERROR / CANCELED after the lease"""
        return self.give_up(s, s.decided, "lost")._replace(decided=0) if s.decided else None

    def adopt(self, s: State) -> State | None:
        """any replica | owner silent | next epoch: what the old owner still writes finds zero rows"""
        return None if s.owner_up else self.write(s)._replace(owner_up=True, decided=0)

    # The world: what happens by itself,

    def executor_ends(self, s: State, host: Host, n: int, work: Work) -> State | None:
        return self.host(s, host, host.put(n, work._replace(box="exited"))) if work.box == "running" else None

    def lease_expires(self, s: State) -> State | None:
        """The gateway's 30 s are over; so the runner's, counted from before it asked, were over before."""
        n, s = s.task.lease, s._replace(task=s.task._replace(lease=0))
        for host in s.hosts if n else ():
            work = host.works[n - 1]
            if isinstance(work, Work) and self.variant != "lease-counted-from-answer":
                s = self.host(s, host, host.put(n, work._replace(lease=False)))
        return s

    # and its faults. Each costs one of `State.faults`.

    def kill(self, s: State, host: Host) -> State | None:
        """The agent's process dies; containers go on; answers to it are gone, requests of it may still arrive."""
        new = host._replace(up=False)
        for n, work in enumerate(host.works, 1):
            if isinstance(work, Work):
                new = new.put(n, work._replace(lease=False))
                if self.variant == "word-not-journalled":
                    new = new.put(n, work._replace(lease=False, word=""))
        net = frozenset(m for m in s.net if m.kind not in ("start", "stop", "forget") or m.instance != host.instance)
        return self.host(s, host, new)._replace(net=net) if host.up else None

    def kill_in_start(self, s: State, host: Host) -> State | None:
        """It dies while it makes a directory: one that is made under another name and then renamed is not there."""
        n = next((m.n for m in self.answer(s, host) if m.kind == "start"), 0)
        torn = host.put(n, Work(box="no plan"))
        return self.kill(self.host(s, host, torn), torn) if n and self.variant == "directory-made-in-place" else None

    def reboot(self, s: State, host: Host) -> State:
        """The host goes down: process and containers die, the disk stays."""
        new = host
        for n, work in enumerate(host.works, 1):
            if isinstance(work, Work) and work.box == "running":
                new = new.put(n, work._replace(box="dead"))
        s = self.host(s, host, new)
        return self.kill(s, new) or s

    def wipe(self, s: State, host: Host) -> State:
        """The host goes down and comes back, if ever, with an empty disk: a new instance."""
        new = Host(host.instance + (0 if self.variant == "instance-is-host" else 2), up=False)
        return self.host(self.kill(s, host) or s, host, new)

    def suspect(self, s: State, agent: Agent) -> State | None:
        """A living agent is declared lost."""
        return self.agent(s, agent._replace(open=False)) if agent.open else None

    def held_up(self, s: State, m: Message) -> State:
        """A message, or a copy of it, is held up; who waits for its answer gives up waiting and goes on."""
        if m.kind in ORDERS:  # the answer of a newer poll than that of any order that is on its way
            s = self.given_up(s, m.instance)
        return s._replace(net=s.net | {m})

    def trouble(self, s: State, host: Host, n: int, work: Work) -> State | None:
        """Engine or storage fail this attempt: the runner stops what runs and journals `failed`."""
        return None if work.word else self.host(s, host, host.put(n, work.ends("failed")))

    def kill_owner(self, s: State) -> State | None:
        """The owner dies, its write on the way. (Before it decided, its death is only a delay.)"""
        return s._replace(owner_up=False) if s.owner_up and s.decided else None

    # All that can happen next.

    def steps(self, s: State) -> Iterator[tuple[Row, tuple[Any, ...], bool, State | None]]:
        """Yields row, its arguments, is it a fault, and the state after it. Faults come only where an attempt is."""
        alone = (self.submit, self.cancel, self.settle, self.notice, self.lost_attempt, self.adopt, self.lease_expires)
        rows: list[tuple[Row, Any]] = [(row, ()) for row in (alone if s.task.state else alone[:1])]
        faults: list[tuple[Row, Any]] = [(self.kill_owner, ())]
        for agent in s.agents:
            rows.append((self.lost_agent, (agent,)))
            if s.attempts or agent.instance == 0:  # while no attempt was, the hosts are alike
                rows.append((self.assign, (agent,)))
            if any(a.instance == agent.instance and not a.closed for a in s.attempts):
                faults.append((self.suspect, (agent,)))
        for host in s.hosts:
            rows += [(self.poll, (host,)), (self.restart, (host,))]
            said = [Message("late_poll", 0, host.instance, host.have()), *self.answer(s, host)]
            for n, work in enumerate(host.works, 1):
                if isinstance(work, Work):
                    rows.append((self.executor_ends, (host, n, work)))
                    if host.up:
                        rows += [(row, (host, n, work)) for row in (self.run_executor, self.word, self.log)]
                        rows += [(getattr(self, m.kind), (m,)) for m in self.says(s, host, n, work)]
                        said += self.says(s, host, n, work)
                        faults.append((self.trouble, (host, n, work)))
            if any(a.instance == host.instance for a in s.attempts):
                faults += [(row, (host,)) for row in (self.kill, self.kill_in_start, self.reboot, self.wipe)]
                faults += [(self.held_up, (m,)) for m in said if host.up]
        rows += [(getattr(self, m.kind), (m,)) for m in s.net]
        for row, args in rows:
            yield row, args, False, row(s, *args)
        less = s._replace(faults=s.faults - 1)
        for row, args in faults if s.faults else ():
            yield row, args, True, row(less, *args)


if __name__ == "__main__":
    from tests.model.search import main

    sys.exit(main(sys.argv[1:]))
