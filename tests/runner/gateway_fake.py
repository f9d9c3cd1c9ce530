"""A gateway that speaks /internal/v1 as the protocol says, and does what a test tells it to; no database behind it."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

from tesgate.runner import wire
from tesgate.runner.plan import Plan

__all__ = ["FakeGateway", "Key", "wait_for"]

Key = Tuple[str, int]
Body = Dict[str, Any]

AGENT_TOKEN = "tga_test"
_PATH = re.compile(r"^/internal/v1/attempts/([^/]+)/(\d+)/(report|publish|finish|failed|stopped)$")
_LOG = re.compile(r"^/internal/v1/attempts/([^/]+)/(\d+)/logs/(\d+)/(stdout|stderr)\?offset=(\d+)$")


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
    """Wait until `condition` gives something true, and return it."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, "waited %g s in vain for %s" % (seconds, what)
        time.sleep(0.02)


class FakeGateway:
    """State survives `stop` and `start`, as a database would; `port` stays the same."""

    def __init__(self) -> None:
        self.lock = threading.Condition()
        self.plans: Dict[Key, Plan] = {}
        self.acknowledged: Set[Key] = set()
        self.ended: Dict[Key, Tuple[str, Body]] = {}
        """Which message ended the attempt, and its body."""
        self.messages: List[Tuple[str, Key, Body]] = []
        self.logs: Dict[Tuple[str, int, int, str], bytearray] = {}
        self.log_requests = 0
        self.cancelled: Set[Key] = set()
        self.closed: Set[Key] = set()
        """Answered with 410: not the agent's any more."""
        self.refuse: Dict[str, List[int]] = {}
        """Per message: statuses to answer with, one a request, before it is taken."""
        self.lease_seconds = 30.0
        self.other_lease_until = 0.0
        self.leases: Dict[Key, float] = {}
        self.forgotten: Set[Key] = set()
        self.forgets = True
        self.hold_finish = False
        """The answer to `finish` comes only after the agent has obeyed a poll's `forget`."""
        self.have: List[Key] = []
        self.tombstones: List[Key] = []
        self._number: Dict[int, int] = {}
        self.polls: List[Body] = []
        self.registrations: List[Body] = []
        self.session = 0
        self.max_wait = 25.0
        self.token = AGENT_TOKEN
        self.violations: List[str] = []
        self._server: Optional[ThreadingHTTPServer] = None
        self._sockets: Set[socket.socket] = set()
        self.port = 0

    # -- for tests ---------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return "http://127.0.0.1:%d" % self.port

    def start(self) -> None:
        gateway = self

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a killed agent breaks its connections

            def process_request(self, request: Any, client_address: Any) -> None:
                with gateway.lock:
                    gateway._sockets.add(request)
                super().process_request(request, client_address)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                gateway._serve(self)

            do_PUT = do_POST

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Go away, connections and all."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
        with self.lock:
            for sock in self._sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            self._sockets.clear()
            self.lock.notify_all()

    def assign(self, plan: Plan) -> Key:
        key = (plan.task, plan.attempt)
        with self.lock:
            self.plans[key] = plan
            self.lock.notify_all()
        return key

    def cancel(self, key: Key) -> None:
        with self.lock:
            self.cancelled.add(key)
            self.lock.notify_all()

    def close_attempt(self, key: Key) -> None:
        with self.lock:
            self.closed.add(key)

    def of(self, key: Key, message: str) -> List[Body]:
        with self.lock:
            return [body for name, whose, body in self.messages if name == message and whose == key]

    def end_of(self, key: Key, seconds: float = 30.0) -> Tuple[str, Body]:
        """Wait for the attempt's last word."""
        found: Tuple[str, Body] = wait_for(lambda: self.ended.get(key), "the end of %s" % (key,), seconds)
        return found

    def gone_from_have(self, key: Key, seconds: float = 30.0) -> None:
        wait_for(lambda: key in self.acknowledged and key not in self.have, "%s to leave have" % (key,), seconds)

    def log(self, key: Key, step: int, stream: str) -> bytes:
        return bytes(self.logs.get((key[0], key[1], step, stream), b""))

    # -- inside ------------------------------------------------------------------------------------------------

    def _serve(self, request: BaseHTTPRequestHandler) -> None:
        length = int(request.headers.get("content-length") or 0)
        body = request.rfile.read(length)
        if len(body) < length:  # whoever asked was killed half-way through
            request.close_connection = True
            return
        status, answer = self._answer(request.path, request.headers.get("authorization") or "", body)
        data = json.dumps(answer).encode()
        request.send_response(status)
        request.send_header("content-type", "application/json")
        request.send_header("content-length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    def _answer(self, path: str, authorization: str, body: bytes) -> Tuple[int, Body]:
        token = authorization.partition(" ")[2]
        if path in ("/internal/v1/agents", "/internal/v1/agents/poll"):
            if token != self.token:
                return 401, {"msg": "wrong token"}
            return self._register(json.loads(body)) if path.endswith("agents") else self._poll(json.loads(body))
        found = _PATH.match(path)
        if found is not None:
            return self._message((found.group(1), int(found.group(2))), found.group(3), token, json.loads(body))
        found = _LOG.match(path)
        if found is not None:
            task, attempt, step, stream, offset = found.groups()
            return self._log((task, int(attempt)), int(step), stream, int(offset), token, body)
        return 404, {"msg": "no such route"}

    def _refused(self, message: str) -> Optional[int]:
        waiting = self.refuse.get(message)
        return waiting.pop(0) if waiting else None

    def _register(self, body: Body) -> Tuple[int, Body]:
        with self.lock:
            status = self._refused("register")
            if status is not None:
                return status, {"msg": "scripted"}
            self.registrations.append(body)
            self.session += 1
            self.lock.notify_all()
            return 200, {"agent": "agent-1", "session": self.session, "wire": 1}

    def _poll(self, body: Body) -> Tuple[int, Body]:
        deadline = time.monotonic() + min(body["wait"], self.max_wait)
        with self.lock:
            status = self._refused("poll")
            if status is not None:
                return status, {"msg": "scripted"}
            number, newest = body["number"], self._number.get(body["session"], 0)
            if 0 < number == newest:
                self.violations.append("poll number %d was used twice" % number)
            if 0 < number <= newest:  # it was held up on its way, and the agent has given it up
                return 200, {"start": [], "stop": [], "forget": [], "wire": 1}
            self._number[body["session"]] = number
            self.polls.append(body)
            self.have = [(item["task"], item["attempt"]) for item in body["have"]]
            self.tombstones = [(item["task"], item["attempt"]) for item in body["tombstones"]]
            for key in self.tombstones:
                self.ended[key] = ("tombstone", body)
            self.acknowledged.update(self.have)
            while True:
                if body["session"] != self.session:
                    return 410, {"msg": "an old session"}
                answer = self._wishes()
                left = deadline - time.monotonic()
                if answer["start"] or answer["stop"] or answer["forget"] or left <= 0 or self._server is None:
                    return 200, answer
                self.lock.wait(left)

    def _wishes(self) -> Body:
        done: Set[Key] = self.acknowledged | self.cancelled | self.closed | set(self.ended)
        start = [wire.encode(plan) for key, plan in self.plans.items() if key not in done]
        stop = [
            {"task": key[0], "attempt": key[1], "grace": 1.0}
            for key in self.cancelled
            if key not in self.ended and (key in self.have or key not in self.acknowledged)
        ]
        over = [key for key in self.have if key in self.ended and self.forgets] + self.tombstones
        forget = [{"task": key[0], "attempt": key[1]} for key in over]
        self.forgotten.update(over)
        return {"start": start, "stop": stop, "forget": forget, "wire": 1}

    def _message(self, key: Key, message: str, token: str, body: Body) -> Tuple[int, Body]:
        with self.lock:
            plan = self.plans.get(key)
            if plan is None or token != plan.token:
                return 401, {"msg": "wrong token"}
            self.messages.append((message, key, body))
            self.lock.notify_all()
            status = self._refused(message)
            if status == 599:  # taken, but the answer is lost
                self._take(key, message, body)
                return 503, {"msg": "scripted"}
            if status is not None:
                return status, {"msg": "scripted"}
            if key in self.closed:
                return 410, {"msg": "not yours any more"}
            answer = self._take(key, message, body)
            deadline = time.monotonic() + 20.0
            while self.hold_finish and message == "finish" and time.monotonic() < deadline:
                if key in self.forgotten and key not in self.have:
                    break
                self.lock.wait(0.02)
            return answer

    def _take(self, key: Key, message: str, body: Body) -> Tuple[int, Body]:
        if body["version"] in [item["version"] for _, whose, item in self.messages[:-1] if whose == key]:
            self.violations.append("version %d of %s was used twice" % (body["version"], key))
        if key in self.ended:
            same = self.ended[key][0] == message
            return (200, self._plain(key)) if same else (410, {"msg": "it has ended"})
        now = time.monotonic()
        if message in ("publish", "finish", "failed") and key in self.cancelled:
            return 200, {"stop": True, "grace": 1.0, "lease": 0.0, "wire": 1}
        if message in ("publish", "finish") and self.other_lease_until > now:
            return 409, {"msg": "another attempt's lease lives"}
        if message == "publish":
            self.leases[key] = now + self.lease_seconds
        if message == "finish" and body.get("published") and self.leases.get(key, 0.0) <= now:
            return 409, {"msg": "a lease is needed"}
        if message in ("finish", "failed", "stopped"):
            self.ended[key] = (message, body)
            self.lock.notify_all()
        return 200, self._plain(key)

    def _plain(self, key: Key) -> Body:
        now = time.monotonic()
        if self.leases.get(key, 0.0) > now:
            self.leases[key] = now + self.lease_seconds
        stop = key in self.cancelled and key not in self.ended
        return {"stop": stop, "grace": 1.0, "lease": self.lease_seconds if key in self.leases else 0.0, "wire": 1}

    def _log(self, key: Key, step: int, stream: str, offset: int, token: str, data: bytes) -> Tuple[int, Body]:
        with self.lock:
            status = self._refused("log")
            if status is not None:
                return status, {"msg": "scripted"}
            if key in self.closed:
                return 410, {"msg": "not yours any more"}
            if not data:
                self.violations.append("an empty log request")
            self.log_requests += 1
            stored = self.logs.setdefault((key[0], key[1], step, stream), bytearray())
            if len(stored) < offset:
                stored.extend(b"\0" * (offset - len(stored)))
            stored[offset : offset + len(data)] = data
            return 200, self._plain(key)
