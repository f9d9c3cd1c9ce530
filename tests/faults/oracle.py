"""The three sentences that every fault must end in, and the one judge of them.

Every accepted task reaches one right terminal state: states are watched through the API, go forward only, and nothing
of a task changes after its end. No executor starts twice within an attempt: each one says to a `Witness` outside of the
scratch that it begins. Nothing is left behind: `assert_nothing_left` of whatever was under test.
"""

from __future__ import annotations

import hashlib
import json
import random
import socketserver
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from tests.beds.images import BUSYBOX

__all__ = ["ENDED", "Mix", "Oracle", "Witness", "Work"]

ENDED = ("COMPLETE", "EXECUTOR_ERROR", "SYSTEM_ERROR", "CANCELED")
RANK = {"QUEUED": 1, "INITIALIZING": 2, "RUNNING": 3, "CANCELING": 4, **dict.fromkeys(ENDED, 5)}


class Witness:
    """Hears of every executor that begins, over TCP: it outlives gateways, agents and scratch directories."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.lines: list[str] = []
        self.host = host
        witness = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                witness.lines.extend(line.decode().strip() for line in self.rfile)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True
            request_queue_size = 128

        self.server = Server((host, 0), Handler)
        self.port = int(self.server.server_address[1])
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def starts(self) -> Counter[tuple[str, str, str]]:
        """How often each (task's name, attempt, executor) began."""
        return Counter((task, attempt, executor) for task, attempt, executor in map(str.split, self.lines))

    def say(self, name: str, index: int, runtime: str) -> str:
        """The line of a script that tells us that executor `index` begins. An attempt's scratch names the attempt."""
        mark = "m=$(cat /count/.id 2>/dev/null) || { m=$(cat /proc/sys/kernel/random/uuid); echo $m > /count/.id; }; "
        if runtime == "bubblewrap":
            return f"{mark}echo {name} $m {index} > /dev/tcp/{self.host}/{self.port} || exit 99; "
        route = "ip route | awk '/^default/ {print $3}'"
        return f"{mark}echo {name} $m {index} | nc -w 9 $({route}) {self.port} || exit 99; "


@dataclass
class Work:
    """One task and all that is right for it."""

    name: str
    document: dict[str, Any]
    right: tuple[str, ...]
    """The terminal states that may come of it."""
    codes: tuple[int, ...] = ()
    """Exit codes of the last attempt's executors, where it is not cancelled."""
    files: dict[Path, bytes] = field(default_factory=dict)
    stdout: bytes | None = None
    """What the whole log of its first executor must be."""
    cancel: bool = False
    id: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    """What it is to store in an object store, by key (`tests.faults.stores`)."""
    remote: dict[Path, bytes] = field(default_factory=dict)
    """The same on a server whose files these are."""
    may_store: bool = False
    """It is cancelled at any moment: what it has stored by then is whole, and may be there."""


class Mix:
    """Tasks of every kind that share a directory of files and a witness."""

    def __init__(
        self, *, files: Path, witness: Witness, runtime: str, rng: random.Random, longest: float = 1.5, prefix: str = ""
    ) -> None:
        """`longest`: seconds that one executor sleeps at most."""
        self._files, self._witness, self._runtime, self._rng = files, witness, runtime, rng
        self._longest, self._prefix = longest, prefix or f"t{rng.randrange(16**6):06x}"
        self._number = 0
        (files / "in").mkdir(exist_ok=True)
        self._input = files / "in" / f"{self._prefix}.bin"
        self._input.write_bytes(rng.randbytes(200_000))

    def make(self, count: int, *, kinds: Sequence[str] = ()) -> list[Work]:
        """So many tasks, of the `kinds` in turn."""
        chosen = kinds or ("plain", "plain", "plain", "copy", "fails", "cancel", "ignored", "loud", "tree", "plain")
        return [getattr(self, "_" + chosen[index % len(chosen)])() for index in range(count)]

    def _nap(self) -> str:
        return f"sleep {self._rng.uniform(0.02, self._longest):.2f}; "

    def _work(self, kind: str, scripts: Sequence[str], right: tuple[str, ...], **more: Any) -> Work:
        self._number += 1
        name = f"{self._prefix}-{self._number}-{kind}"
        document = {"name": name, "executors": self._executors(name, scripts), "volumes": ["/count"]}
        return Work(name, document, right, **more)

    def _executors(self, name: str, scripts: Sequence[str]) -> list[dict[str, Any]]:
        shell = "bash" if self._runtime == "bubblewrap" else "sh"
        return [
            {"image": BUSYBOX, "command": [shell, "-c", self._witness.say(name, index, self._runtime) + script]}
            for index, script in enumerate(scripts)
        ]

    def _url(self, path: Path) -> str:
        return "file://" + quote(str(path))

    def _out(self, work: Work, content: bytes, path: str = "/count/out") -> Work:
        target = self._files / "out" / work.name
        work.document["outputs"] = [{"path": path, "url": self._url(target), "type": "FILE"}]
        work.files[target] = content
        return work

    def _plain(self) -> Work:
        scripts = [self._nap() + "echo one > /count/out", self._nap() + "echo two >> /count/out"]
        return self._out(self._work("plain", scripts, ("COMPLETE",), codes=(0, 0)), b"one\ntwo\n")

    def _copy(self) -> Work:
        work = self._work("copy", [self._nap() + "cat /data/in > /count/out"], ("COMPLETE",), codes=(0,))
        work.document["inputs"] = [{"url": self._url(self._input), "path": "/data/in", "type": "FILE"}]
        return self._out(work, self._input.read_bytes())

    def _quiet(self) -> Work:
        return self._work("quiet", [self._nap() + "true"], ("COMPLETE",), codes=(0,))

    def _fails(self) -> Work:
        scripts = [self._nap() + "echo partly > /count/out; exit 7", "echo never >> /count/out"]
        return self._out(self._work("fails", scripts, ("EXECUTOR_ERROR",), codes=(7,)), b"partly\n")

    def _ignored(self) -> Work:
        work = self._work("ignored", ["exit 3", self._nap() + "echo on > /count/out"], ("COMPLETE",), codes=(3, 0))
        work.document["executors"][0]["ignore_error"] = True
        return self._out(work, b"on\n")

    def _cancel(self) -> Work:
        return self._work("cancel", ["sleep 600"], ("CANCELED",), cancel=True)

    def _loud(self) -> Work:
        lines = self._rng.randrange(500, 3000)
        work = self._work("loud", [self._nap() + f"seq 1 {lines}"], ("COMPLETE",), codes=(0,))
        work.stdout = b"".join(b"%d\n" % number for number in range(1, lines + 1))
        return work

    def _tree(self) -> Work:
        scripts = [self._nap() + "mkdir -p /count/d/e; echo a > /count/d/a; echo b > /count/d/e/b"]
        work = self._work("tree", scripts, ("COMPLETE",), codes=(0,))
        target = self._files / "out" / work.name
        work.document["outputs"] = [{"path": "/count/d", "url": self._url(target), "type": "DIRECTORY"}]
        work.files.update({target / "a": b"a\n", target / "e/b": b"b\n"})
        return work


@dataclass
class _Seen:
    work: Work
    states: list[str] = field(default_factory=list)
    end: dict[str, Any] | None = None
    """The FULL view when its end was first seen."""
    outputs: dict[str, tuple[int, int, str]] = field(default_factory=dict)


class Oracle:
    """Submits, watches and judges. `urls` gives the base URLs of gateways at this moment, in the order to try them."""

    def __init__(
        self,
        urls: Callable[[], Sequence[str]],
        witness: Witness,
        *,
        faults_allowed: Sequence[int] = (503,),
        verify: ssl.SSLContext | bool = True,
    ) -> None:
        """`faults_allowed`: statuses that a request may get while something is away. `verify`: as httpx has it."""
        self._verify = verify
        self._urls, self._witness, self._allowed = urls, witness, {200, *faults_allowed}
        self._client = httpx.Client(timeout=40, trust_env=False, verify=self._verify)
        self._seen: dict[str, _Seen] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.wrong: list[str] = []
        """What was broken so far, a sentence each."""
        self.witness_needed = True
        """Executors can reach the witness."""

    # clients

    def _ask(self, method: str, path: str, client: httpx.Client | None = None, **more: Any) -> httpx.Response | None:
        """The answer of the first gateway that gives 200; None: nobody could be asked now."""
        for url in self._urls():
            try:
                answer = (client or self._client).request(method, url + path, **more)
            except httpx.TransportError:
                continue
            if answer.status_code not in self._allowed:
                self.wrong.append(f"{method} {path} was answered {answer.status_code}: {answer.text[:300]}")
                return None
            if answer.status_code == 200:
                return answer
        return None

    def submit(self, works: Sequence[Work], *, seconds: float = 90.0, threads: int = 6) -> None:
        """POST all, each until it is answered: repeated with its key, as clients should."""
        deadline = time.monotonic() + seconds
        left = list(works)[::-1]

        def post() -> None:
            with httpx.Client(timeout=40, trust_env=False, verify=self._verify) as client:
                while left:
                    try:
                        work = left.pop()
                    except IndexError:
                        return
                    headers = {"Idempotency-Key": work.name}
                    while (
                        answer := self._ask("POST", "/tasks", client, json=work.document, headers=headers)
                    ) is None and time.monotonic() < deadline:
                        time.sleep(0.1)
                    if answer is None:
                        self.wrong.append(f"{work.name} was never accepted")
                        return
                    work.id = answer.json()["id"]
                    with self._lock:
                        self._seen[work.id] = _Seen(work)

        crowd = [threading.Thread(target=post) for _ in range(threads)]
        for thread in crowd:
            thread.start()
        for thread in crowd:
            thread.join()

    def cancel(self, work: Work, *, seconds: float = 60.0) -> None:
        """Cancel it, until that is answered."""
        deadline = time.monotonic() + seconds
        while self._ask("POST", f"/tasks/{work.id}:cancel") is None:
            assert time.monotonic() < deadline, f"nobody takes the cancel of {work.name}: {self.wrong}"
            time.sleep(0.1)

    # watching

    def start(self) -> Oracle:
        """Watch from now on."""
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._client.close()

    def _watch(self) -> None:
        with httpx.Client(timeout=40, trust_env=False, verify=self._verify) as client:
            while not self._stop.wait(0.25):
                self._look(client)

    def _look(self, client: httpx.Client) -> None:
        token = ""
        while True:
            params = {"view": "MINIMAL", "page_size": "1000", **({"page_token": token} if token else {})}
            answer = self._ask("GET", "/tasks", client, params=params)
            if answer is None:
                return
            for task in answer.json()["tasks"]:
                with self._lock:
                    seen = self._seen.get(task["id"])
                if seen is not None:
                    self._note(seen, task["state"], client)
            token = answer.json().get("next_page_token") or ""
            if not token:
                return

    def _note(self, seen: _Seen, state: str, client: httpx.Client) -> None:
        last = seen.states[-1] if seen.states else "QUEUED"
        if state != last or not seen.states:
            seen.states.append(state)
            canceled = last == "CANCELING" and state != "CANCELED"
            if state != last and (RANK[state] <= RANK[last] or canceled):
                self.wrong.append(f"{seen.work.name} went {' -> '.join(seen.states)}")
        if state in ENDED and seen.end is None:
            answer = self._ask("GET", f"/tasks/{seen.work.id}", client, params={"view": "FULL"})
            if answer is not None:
                seen.outputs = _look_at(seen.work)
                seen.end = answer.json()

    # judging

    def open(self) -> list[str]:
        """Names and states of the tasks whose end has not been seen."""
        with self._lock:
            return [f"{s.work.name} ({s.work.id}): {s.states[-1:]}" for s in self._seen.values() if s.end is None]

    def wait(self, seconds: float) -> None:
        """Until every task's end was seen. Raises AssertionError."""
        deadline = time.monotonic() + seconds
        while left := self.open():
            assert not self.wrong, self.wrong
            assert time.monotonic() < deadline, f"not over after {seconds:g} s: {left}"
            time.sleep(0.1)

    def judge(self, *, system_errors: bool = False) -> None:
        """Say all that is wrong, once every task is over. `system_errors`: the faults were such that this is right."""
        self.close_watch()
        with httpx.Client(timeout=40, trust_env=False, verify=self._verify) as client:
            for seen in self._seen.values():
                self._judge(seen, client, system_errors)
        for (task, attempt, executor), times in self._witness.starts().items():
            if times > 1:
                self.wrong.append(f"executor {executor} of {task} began {times} times in the attempt {attempt}")
        assert not self.wrong, "\n".join(self.wrong[:40])

    def close_watch(self) -> None:
        """Watch no more; idempotent."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _judge(self, seen: _Seen, client: httpx.Client, system_errors: bool) -> None:
        work, end = seen.work, seen.end
        assert end is not None
        if end["state"] == "SYSTEM_ERROR" and system_errors:
            return
        if end["state"] not in work.right:
            logs = json.dumps([attempt.get("system_logs") for attempt in end["logs"]])
            self.wrong.append(f"{work.name} ended as {end['state']}: {logs}")
            return
        answer = self._ask("GET", f"/tasks/{work.id}", client, params={"view": "FULL"})
        if answer is None or answer.json() != end:
            self.wrong.append(f"{work.name} changed after its end: {end} became {answer and answer.json()}")
        if _look_at(work) != seen.outputs:
            self.wrong.append(f"the outputs of {work.name} changed after its end")
        if end["state"] == "CANCELED":
            return
        codes = tuple(log["exit_code"] for log in end["logs"][-1]["logs"])
        if codes != work.codes:
            self.wrong.append(f"{work.name} has the exit codes {codes}")
        for path, content in work.files.items():
            found = path.read_bytes() if path.exists() else None
            if found != content:
                self.wrong.append(f"{path} is {found if found is None else found[:60]!r}")
        begun = self._witness.starts()
        if self.witness_needed and not any(task == work.name for task, _, _ in begun):
            self.wrong.append(f"nobody saw {work.name} begin")

    def assert_logs(self) -> None:
        """Whole logs are there too (they may come after the end). For one gateway, which has all of them."""
        for seen in self._seen.values():
            if seen.work.stdout is not None and seen.end is not None and seen.end["state"] == "COMPLETE":
                path = f"/tasks/{seen.work.id}/logs/{len(seen.end['logs'])}/0/stdout"
                answer = self._ask("GET", path)
                assert answer is not None and answer.content == seen.work.stdout, (path, answer)

    def ends(self) -> dict[str, str]:
        """Terminal states by name."""
        return {seen.work.name: str(seen.end["state"]) for seen in self._seen.values() if seen.end is not None}

    def attempts(self) -> dict[str, int]:
        """How many attempts each task took, by name."""
        return {seen.work.name: len(seen.end["logs"]) for seen in self._seen.values() if seen.end is not None}


def _look_at(work: Work) -> dict[str, tuple[int, int, str]]:
    found: dict[str, tuple[int, int, str]] = {}
    for path in work.files:
        if path.exists():
            info = path.stat()
            found[str(path)] = (info.st_ino, info.st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
    return found
