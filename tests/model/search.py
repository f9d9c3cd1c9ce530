"""Walks the protocol's state space breadth first, checks every state, tells the shortest trace into what is broken."""

from __future__ import annotations

import sys
import time
from typing import Any, NamedTuple

from tests.model.protocol import ENDED, Agent, Host, Message, Protocol, Row, Scope, State, Work

RANK = {"": 0, "QUEUED": 1, "INITIALIZING": 2, "RUNNING": 3, "CANCELING": 4} | dict.fromkeys(ENDED, 5)

SCOPES = {  # and the fewest states that a walk through it must see
    Scope(): 95_000,
    Scope(executors=2, outputs=False, cancel=False): 40_000,
    Scope(executors=2, faults=1): 8_000,
}
FURTHER = (Scope(executors=2, cancel=False), Scope(executors=2, outputs=False), Scope(faults=3, cancel=False))

VARIANTS = {  # name: (what the search must find, where)
    # the six that the protocol names
    "instance-is-process": ("stuck", Scope(faults=1)),
    "instance-is-host": ("twice", Scope(faults=1)),
    "heartbeats-by-host": ("stuck", Scope(faults=1)),
    "publish-is-a-check": ("outputs: attempt 1 makes outputs visible though lost", Scope(faults=1)),
    "end-does-not-wait": ("outputs: attempt 1 makes outputs visible after the end", Scope(cancel=False)),
    "driver-names-no-version": ("state: COMPLETE", Scope(faults=1)),
    # single guards taken away
    "publish-unchecked": ("lease: given to", Scope()),
    "finish-unchecked": ("state", Scope(faults=1)),
    "failed-unchecked": ("state", Scope(faults=1)),
    "finish-ignores-cancel": ("state: CANCELING", Scope(faults=0)),
    "failed-ignores-cancel": ("state: CANCELING", Scope()),
    "word-not-journalled": ("outputs", Scope(faults=3, cancel=False)),
    "lease-counted-from-answer": ("outputs", Scope(faults=0)),
    "directory-made-again": ("twice", Scope(faults=1)),
    "restart-begins-anew": ("twice", Scope(faults=1)),
    "stop-leaves-no-tombstone": ("after", Scope(faults=1)),
    "forget-before-logs": ("logs", Scope(faults=0)),
    # what the table leaves open or says otherwise
    "old-answer-obeyed": ("twice", Scope(faults=1)),
    "old-poll-heard": ("missing", Scope(faults=1)),
    "old-session-heard": ("missing", Scope()),
    "report-counts-as-listed": ("missing", Scope()),
    "nobody-settles": ("stuck", Scope(faults=1)),
    "cancel-assigned-at-once": ("after", Scope(faults=0)),
    "410-drops-everything": ("stuck", Scope(faults=1)),
    "agent-counts-no-room": ("room: A runs two", Scope(cancel=False)),
    "register-resets-room": ("room", Scope(faults=1)),
    "repeat-gets-410": ("logs", Scope(faults=0)),
    "directory-made-in-place": ("stuck", Scope(faults=1)),
}


def broken(old: State, new: State) -> str:
    """What the step from `old` to `new` breaks, as ``kind: sentence``; empty: nothing."""
    before, t = old.task, new.task
    if new.wrong:
        return new.wrong
    if before.state != t.state:
        back = RANK[t.state] < RANK[before.state] or (before.state == "CANCELING" and t.state != "CANCELED")
        if before.state in ENDED or back:
            return f"state: {before.state} becomes {t.state}"
    if (t.phase == "ended") != (t.state in ENDED):
        return f"state: {t.state} is {t.phase}"
    if t.lease and t.state in ENDED:
        return f"lease: {t.state} while the lease of attempt {t.lease} lives"
    if t.lease not in (0, before.lease) and (t.lease != t.n or new.attempts[t.lease - 1].closed):
        return f"lease: given to attempt {t.lease}, which is not current"
    for agent in new.agents:
        held = sum(a.instance == agent.instance and not a.closed for a in new.attempts)
        if agent.room < 0 or agent.room != 1 - held:
            return f"room: {name(agent.instance)} has room {agent.room} while {held} open attempts hold room there"
    for host in new.hosts:
        if sum(isinstance(work, Work) and work.box == "running" for work in host.works) > 1:
            return f"room: {name(host.instance)} runs two containers in room for one"
    return ""


def clean(s: State) -> bool:
    """Ended, and nothing is left: no lease, no room taken, no container and no scratch."""
    left = any(isinstance(work, Work) for host in s.hosts for work in host.works)
    return s.task.state in ENDED and not s.task.lease and not left and all(agent.room == 1 for agent in s.agents)


def ended_or_dark(s: State) -> bool:
    """What is in reach even if no host that is down ever comes back. (With every host down, waiting is right.)"""
    return s.task.state in ENDED or not any(host.up for host in s.hosts)


class Result(NamedTuple):
    """`trace`: the shortest way into `violation`, a line a step. `rows`: all that ever happened."""

    states: int
    steps: int
    seconds: float
    rows: frozenset[str] = frozenset()
    violation: str = ""
    trace: tuple[str, ...] = ()

    def __str__(self) -> str:
        head = f"{self.states} states, {self.steps} steps, {self.seconds:.1f} s: {self.violation or 'holds'}"
        return "\n".join([head, *self.trace])


def explore(protocol: Protocol, only: str = "") -> Result:
    """Stops at the first violation (that begins with `only`); where there is none, looks for states that are stuck."""
    began, steps, here = time.perf_counter(), 0, 0
    first = State(faults=protocol.scope.faults)
    states, index = [first], {first: 0}
    came: list[tuple[int, Row, tuple[Any, ...]]] = [(0, protocol.submit, ())]
    back: list[list[int]] = [[]]  # by state: whence a step without a fault leads there; ~whence: a restart
    rows: set[str] = set()

    def result(violation: str = "", trace: list[str] | None = None) -> Result:
        spent = time.perf_counter() - began
        return Result(len(states), steps, spent, frozenset(rows), violation, tuple(trace or ()))

    def way(there: int) -> list[str]:
        lines = []
        while there:
            before, row, args = came[there]
            lines.append(f"{line(row.__name__, args):<32} {show(states[there])}")
            there = before
        return lines[::-1]

    while here < len(states):
        s = states[here]
        for row, args, fault, after in protocol.steps(s):
            if after is None or after == s:
                continue
            steps += 1
            rows |= {row.__name__, row.__name__ + " after the end" * (s.task.state in ENDED)}
            wrong = broken(s, after)
            if wrong and wrong.startswith(only):
                return result(wrong, [*way(here), line(row.__name__, args), f"=> {wrong}"])
            if after.wrong:
                after = after._replace(wrong="")
            there = index.setdefault(after, len(states))
            if there == len(states):
                states.append(after)
                came.append((here, row, args))
                back.append([])
            if not fault and row.__name__ != "cancel":
                back[there].append(~here if row.__name__ == "restart" else here)
        here += 1
    goals = (clean, True, "a clean end"), (ended_or_dark, False, "an end without the hosts that are down")
    for goal, restarts, text in goals if "stuck".startswith(only) else ():
        reach = [goal(s) for s in states]
        todo = [i for i, good in enumerate(reach) if good]
        while todo:
            for i in back[todo.pop()]:
                before = i if i >= 0 else ~i
                if not reach[before] and (i >= 0 or restarts):
                    reach[before] = True
                    todo.append(before)
        if not all(reach):
            wrong = f"stuck: no way without a further fault leads to {text} ({reach.count(False)} states)"
            return result(wrong, [*way(reach.index(False)), f"=> {wrong}"])
    return result()


def name(instance: int) -> str:
    """Hosts are A and B; A' is host A with its next disk."""
    return "AB"[instance % 2] + "'" * (instance // 2)


def line(row: str, args: tuple[Any, ...]) -> str:
    """One step: the row and whom it is about."""
    words = [row]
    for arg in args:
        if isinstance(arg, Message):
            words += [arg.kind] * (arg.kind != words[0]) + [f"#{arg.n}"] * bool(arg.n)
        if isinstance(arg, Message | Host | Agent):
            words.append(name(arg.instance))
        elif isinstance(arg, int):
            words.append(f"#{arg}")
    return " ".join(words)


def show(s: State) -> str:
    """The world in one line: the task, its attempts, what hosts have, and after ~ what is held up or on its way."""
    t = s.task
    parts = [f"{t.state}/{t.phase}", *([f"lease #{t.lease}"] if t.lease else [])]
    parts += [f"#{n}@{name(a.instance)}{':' if a.closed else ''}{a.closed}" for n, a in enumerate(s.attempts, 1)]
    for host in s.hosts:
        facts = [] if host.up else ["down"]
        for n, work in enumerate(host.works, 1):
            if isinstance(work, Work):
                words = [f"#{n}", f"executor {work.step}" if work.step else "begun", work.box]
                words += ["may store"] * work.lease + ["stored"] * work.stored + [work.word]
                facts.append(" ".join(filter(None, words)))
            elif work:
                facts += [f"#{n} {work}"]
        parts += [f"{name(host.instance)}[{', '.join(facts)}]"] if facts else []
    parts += sorted("~" + line(m.kind, (m,)) for m in s.net)
    return " ".join(parts + ([f"~driver: lost #{s.decided}"] if s.decided else []))


def main(names: list[str]) -> int:
    """Explores the protocol, or ``further`` (minutes), or the variants that are named."""
    for variant in names if names != ["further"] else ():
        only, scope = VARIANTS[variant]
        sys.stdout.write(f"{variant}: {explore(Protocol(scope, variant), only)}\n\n")
    for scope in FURTHER if names == ["further"] else () if names else SCOPES:
        sys.stdout.write(f"{scope}: {explore(Protocol(scope))}\n")
    return 0
