"""Every route × whoever asks: the documented status, and no difference between what is foreign and what is nowhere."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from tests.hostile.gateways import TES, Answer, Gateways, exchange, expect_error, request, task

NOBODY = "01arz3ndektsv4rrffq69g5fav"
"""The form of a task's id, and no task."""
REPORT = json.dumps({"version": 1, "instance": "0" * 32, "snapshot": {}}).encode()
FACTS = json.dumps({"instance": "1" * 32, "host": "h", "version": "0", "capacity": {}}).encode()
POLL = json.dumps({"agent": "1" * 32, "session": 0, "number": 1, "wait": 0}).encode()
BODY = json.dumps(task()).encode()

OPEN = [("GET", path) for path in (f"{TES}/service-info", "/v1/tasks/service-info", "/healthz", "/readyz", "/metrics")]
OPEN += [("GET", path) for path in ("/docs", "/redoc", "/openapi.json", "/docs/static/swagger-ui.css")]

OF_USERS = [
    ("GET", f"{TES}/tasks", None),
    ("GET", "/v1/tasks", None),
    ("GET", "//v1/tasks", None),
    ("HEAD", f"{TES}/tasks", None),
    ("POST", f"{TES}/tasks", BODY),
]
OF_A_TASK = [
    ("GET", f"{TES}/tasks/ID", None),
    ("HEAD", f"{TES}/tasks/ID", None),
    ("GET", "/v1/tasks/ID?view=FULL", None),
    ("GET", f"{TES}/tasks/ID?view=BASIC", None),
    ("POST", f"{TES}/tasks/ID:cancel", None),
    ("POST", "/v1/tasks/ID:cancel", None),
    ("GET", f"{TES}/tasks/ID/logs/1/0/stdout", None),
    ("GET", f"{TES}/tasks/ID/logs/2/7/stderr", None),
]
OF_AGENTS = [("POST", "/internal/v1/agents", FACTS), ("POST", "/internal/v1/agents/poll", POLL)]
OF_ATTEMPTS = [
    *(("POST", f"/internal/v1/attempts/ID/1/{name}", REPORT) for name in ("report", "publish", "failed", "stopped")),
    ("POST", "/internal/v1/attempts/ID/1/access", b'{"instance": "i", "look": ["s3://bucket/key"]}'),
    ("POST", "/internal/v1/attempts/ID/1/finish", REPORT[:-1] + b', "state": "COMPLETE"}'),
    ("PUT", "/internal/v1/attempts/ID/1/logs/0/stdout", b"bytes"),
]
NOT_USERS = ["anonymous", "agent", "attempt", "revoked", "expired", "expired-agent", "wrong", "empty", "huge"]
NOT_AGENTS = [*(who for who in NOT_USERS if who != "agent"), "alice", "bob", "root", "basic agent"]


def headers_for(gateways: Gateways, who: str, task_id: str = NOBODY) -> list[str]:
    match who:
        case "anonymous":
            return []
        case "attempt":
            return [f"Authorization: Bearer {gateways.attempt_token(task_id, 1)}"]
        case "other attempt":
            return [f"Authorization: Bearer {gateways.attempt_token(task_id, 2)}"]
        case "attempt of another":
            return [f"Authorization: Bearer {gateways.attempt_token(NOBODY, 1)}"]
        case "wrong":
            return [f"Authorization: Bearer {gateways.tokens['alice'][:-1]}"]
        case "empty":
            return ["Authorization: Bearer "]
        case "huge":
            return [f"Authorization: Bearer {'x' * 50_000}"]
        case "basic agent":
            words = base64.b64encode(f"x:{gateways.tokens['agent']}".encode()).decode()
            return [f"Authorization: Basic {words}"]
        case _:
            return [f"Authorization: Bearer {gateways.tokens[who]}"]


class Asking:
    """Requests to the guarded gateway as somebody."""

    def __init__(self, gateways: Gateways) -> None:
        self.gateways = gateways
        self.port = gateways.guarded.port
        self.task = self("alice", "POST", f"{TES}/tasks", BODY).json()["id"]

    def __call__(self, who: str, method: str, path: str, body: bytes | None = None) -> Answer:
        headers = headers_for(self.gateways, who, getattr(self, "task", NOBODY))
        (answer,) = exchange(self.port, request(method, path, headers=headers, body=body), methods=[method])
        return answer

    def refused(self, who: str, method: str, path: str, body: bytes | None, *statuses: int) -> Answer:
        """What is refused shows no secret, and no hint at one."""
        answer = self(who, method, path, body)
        expect_error(answer, *statuses)
        for token in self.gateways.tokens.values():
            assert token.encode() not in answer.body and token[:12].encode() not in answer.body
        return answer


@pytest.fixture(scope="module")
def ask(gateways: Gateways) -> Asking:
    return Asking(gateways)


def as_one(answer: Answer, task_id: str) -> tuple[int, list[Any], bytes]:
    """What an answer tells, with the id that was asked for taken out."""
    headers = [item for item in answer.headers if item[0] != "date"]
    return answer.status, headers, answer.body.replace(task_id.encode(), b"ID")


def test_what_is_open_to_all(ask: Asking) -> None:
    for method, path in OPEN:
        for who in ("anonymous", "wrong", "revoked", "alice", "agent"):
            assert ask(who, method, path).status == 200, (who, path)


@pytest.mark.parametrize("who", NOT_USERS)
def test_who_is_no_user_learns_nothing(ask: Asking, who: str) -> None:
    for method, path, body in OF_USERS:
        ask.refused(who, method, path, body, 401)
    for method, path, body in OF_A_TASK:
        told = {
            str(as_one(ask.refused(who, method, path.replace("ID", task_id), body, 401), task_id))
            for task_id in (ask.task, NOBODY)
        }
        assert len(told) == 1, told


@pytest.mark.parametrize("who", ["bob", "carol"])
def test_a_foreign_task_is_not_there(ask: Asking, who: str) -> None:
    """Also for members of its owner's group, as long as `auth.share_with_group` is off."""
    for method, path, body in OF_A_TASK:
        told = {
            str(as_one(ask.refused(who, method, path.replace("ID", task_id), body, 404), task_id))
            for task_id in (ask.task, NOBODY)
        }
        assert len(told) == 1, told
    for query in ("", "?view=FULL", "?name_prefix=", f"?page_token={page_token(ask)}", "?page_size=2047"):
        found = ask(who, "GET", f"{TES}/tasks{query}")
        assert found.status == 200 and found.json()["tasks"] == [], found
    assert ask("alice", "GET", f"{TES}/tasks/{ask.task}").json()["state"] == "QUEUED"


def page_token(ask: Asking) -> str:
    """Of alice's list."""
    for _ in range(2):
        ask("alice", "POST", f"{TES}/tasks", BODY)
    token: str = ask("alice", "GET", f"{TES}/tasks?page_size=1").json()["next_page_token"]
    return token


def test_owner_and_admin_see_it(ask: Asking) -> None:
    for who in ("alice", "root"):
        for method, path, _ in OF_A_TASK:
            if method != "POST" and "/logs/" not in path:
                assert ask(who, method, path.replace("ID", ask.task)).status == 200
        logs = f"{TES}/tasks/{ask.task}/logs/1/0/stdout"
        expect_error(ask(who, "GET", logs), 404)  # nothing was written yet


@pytest.mark.parametrize("who", NOT_AGENTS)
def test_internal_is_for_agents(ask: Asking, who: str) -> None:
    for method, path, body in OF_AGENTS:
        ask.refused(who, method, path, body, 401)


@pytest.mark.parametrize("who", [*NOT_USERS, "alice", "root", "other attempt", "attempt of another"])
def test_an_attempt_is_for_its_runner(ask: Asking, who: str) -> None:
    for method, path, body in OF_ATTEMPTS:
        if who == "attempt":
            # Its own token, on an attempt that was never started: nothing happens to the task.
            ask.refused(who, method, path.replace("ID", ask.task), body, 410)
            continue
        for task_id in (ask.task, NOBODY):
            if (who, task_id) != ("attempt of another", NOBODY):
                ask.refused(who, method, path.replace("ID", task_id), body, 401)
    assert ask("alice", "GET", f"{TES}/tasks/{ask.task}").json()["state"] == "QUEUED"


def test_numbers_of_attempts(ask: Asking) -> None:
    token = ask.gateways.attempt_token(ask.task, 1)
    for number in ("01", "+1", "1.0", "1e0", "%31%20", "\u0661", "0", "-1", "9" * 20, "9" * 5000, "1%00", "1/../1"):
        for tail in ("report", "logs/0/stdout"):
            path = f"/internal/v1/attempts/{ask.task}/{number.encode('unicode_escape').decode()}/{tail}"
            method = "POST" if tail == "report" else "PUT"
            data = request(method, path, headers=[f"Authorization: Bearer {token}"], body=REPORT)
            (answer,) = exchange(ask.port, data)
            expect_error(answer, 401, 404, 410)
    for step, stream, offset, status in (
        ("9" * 5000, "stdout", "0", 404),
        ("..", "stdout", "0", 404),
        ("0", "stdin", "0", 404),
        ("0", "stdout%00", "0", 404),
        ("0", "stdout", "-1", 400),
        ("0", "stdout", "9" * 5000, 400),
        ("0", "stdout", "x", 400),
    ):
        path = f"/internal/v1/attempts/{ask.task}/1/logs/{step}/{stream}?offset={offset}"
        (answer,) = exchange(ask.port, request("PUT", path, headers=[f"Authorization: Bearer {token}"], body=b"x"))
        expect_error(answer, status)


def test_credentials_in_odd_forms(ask: Asking) -> None:
    alice, root = ask.gateways.tokens["alice"], ask.gateways.tokens["root"]
    basic = base64.b64encode(f"x:{alice}".encode()).decode()
    for line in (f"Bearer {alice}", f"bearer  {alice} ", f"Basic {basic}", f"BASIC {basic}"):
        (answer,) = exchange(ask.port, request(path=f"{TES}/tasks", headers=[f"Authorization: {line}"]))
        assert answer.status == 200, line
    odd: list[list[str | bytes]] = [
        [f"Authorization: {alice}"],
        [f"Authorization: Bearer\x09\x09{alice}"],
        [f"Authorization: Bearer {alice},{alice}"],
        [f"Authorization: Bearer {alice} {alice}"],
        [f"Authorization: Bearer {alice.upper()}"],
        [f"Authorization: Bearer {alice}\u00a0"],
        [f"Authorization: Token {alice}"],
        [f"Authorization: Basic {alice}"],
        ["Authorization: Basic " + base64.b64encode(alice.encode()).decode()],
        ["Authorization: Basic " + base64.b64encode(b"x:\xff\xfe").decode()],
        [b"Authorization: Bearer \xff\xfe"],
        ["Authorization: Bearer tgt_" + "x" * 100],
        [f"Proxy-Authorization: Bearer {alice}"],
        [f"X-Forwarded-Authorization: Bearer {alice}"],
        ["X-Forwarded-User: alice", "X-Remote-User: alice", "Remote-User: alice"],
        [f"Cookie: token={alice}; Authorization={alice}"],
    ]
    for lines in odd:
        (answer,) = exchange(ask.port, request(path=f"{TES}/tasks", headers=lines))
        expect_error(answer, 401)
        assert alice.encode() not in answer.body
    for query in (f"access_token={alice}", f"token={alice}", f"Authorization=Bearer%20{alice}"):
        (answer,) = exchange(ask.port, request(path=f"{TES}/tasks?{query}"))
        expect_error(answer, 401)
    # Two of them: nobody may pick the one that a proxy in front did not look at.
    both = [f"Authorization: Bearer {alice}", f"Authorization: Bearer {root}"]
    for lines in (both, both[::-1]):
        (answer,) = exchange(ask.port, request(path=f"{TES}/tasks", headers=lines))
        expect_error(answer, 400)
