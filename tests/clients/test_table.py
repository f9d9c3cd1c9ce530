"""Our answers in every state and view: held against the table of clients, and read by their real model classes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
import pytest
import tes as pytes
from tes.utils import unmarshal

from tesgate.api.tes import OLD_PREFIX, PREFIX
from tesgate.ga4gh import tes
from tesgate.model.records import AttemptRecord, TaskRecord
from tesgate.model.state import TERMINAL, State
from tesgate.services.dialects import NEW_FIELDS, OldDialect
from tesgate.services.views import task_json
from tesgate.store.database import Database
from tests.api.conftest import Context, use_database
from tests.beds.clients import Clients
from tests.clients.table import CLIENTS, STATES

READ = Path(__file__).with_name("read.py")
ENDS = {
    State.COMPLETE: {"succeeds"},
    State.EXECUTOR_ERROR: {"fails"},
    State.SYSTEM_ERROR: {"fails"},
    State.CANCELED: {"fails", "canceled"},
}
KNOWN = {
    # Its own fault, and told in docs/clients.md; dialect.queued_as_initializing is for it.
    ("Pulsar 0.16.0, pydantic-tes 0.4.0", "QUEUED"),
    # `wait` takes CANCELING for the end; whoever cancels and waits has to ask once more.
    ("py-tes 1.1.4", "CANCELING"),
    # Its polls of tasks that it did not cancel know no CANCELED, and those of cancelled ones nothing else.
    ("ELIXIR suite, openapi-test-runner 1.1.0", "CANCELED"),
    *(("ELIXIR suite, cancel", state) for state in ("COMPLETE", "EXECUTOR_ERROR", "SYSTEM_ERROR", "CANCELING")),
}
FULL_TASK: dict[str, Any] = {
    "name": "all",
    "description": "has every field of TES 1.1",
    "inputs": [
        {"name": "i", "description": "d", "url": "file:///data/a", "path": "/in/a", "type": "FILE", "streamable": True},
        {"path": "/in/b", "content": "text"},
    ],
    "outputs": [
        {"name": "o", "description": "d", "url": "/data", "path": "/out/*", "path_prefix": "/out", "type": "FILE"},
        {"url": "/data/d", "path": "/out/d", "type": "DIRECTORY"},
    ],
    "resources": {
        "cpu_cores": 0.5,
        "preemptible": False,
        "ram_gb": 0.25,
        "disk_gb": 1,
        "zones": ["z"],
        "backend_parameters": {"known": "value"},
        "backend_parameters_strict": False,
    },
    "executors": [
        {
            "image": "a",
            "command": ["b"],
            "workdir": "/w",
            "stdin": "/in/b",
            "stdout": "/out/o",
            "stderr": "/out/e",
            "env": {"A": "b"},
            "ignore_error": True,
        }
    ],
    "volumes": ["/v"],
    "tags": {"a": "b"},
}
ATTEMPT = AttemptRecord(
    number=1,
    start_time="2026-10-02T10:00:00.123456Z",
    end_time="2026-10-02T10:00:03Z",
    executors=[
        {
            "start_time": "2026-10-02T10:00:01Z",
            "end_time": "2026-10-02T10:00:02Z",
            "exit_code": 0,
            "stdout": "out",
            "stderr": "err",
            "max_rss_bytes": 1,
        },
        {"start_time": "2026-10-02T10:00:03Z"},
    ],
    system_logs=["said"],
    outputs=[{"url": "u", "path": "/p", "size_bytes": 2**40}],
    metadata={"host": "h"},
)


def shown(state: str, prefix: str, *, queued_as_initializing: bool = False) -> str:
    return OldDialect(queued_as_initializing).state(state) if prefix == OLD_PREFIX else state


def wrong(prefix: str | None = None, states: Iterable[str] = State, **setting: bool) -> set[tuple[str, str]]:
    """Where a client takes an end for none, none for an end, or one end for another; all at `prefix`, if given."""
    return {
        (client.name, str(state))
        for client in CLIENTS
        for state in states
        if client.at(shown(state, prefix or client.prefix, **setting)) not in ENDS.get(State(state), {"waits", "runs"})
    }


def test_clients_take_every_state_for_what_it_is() -> None:
    assert wrong() == KNOWN
    assert wrong(queued_as_initializing=True) == {one for one in KNOWN if one[1] != "QUEUED"}


def test_without_the_old_dialect_old_clients_would_not_survive_a_cancel() -> None:
    broken = {name for name, state in wrong(PREFIX) - KNOWN if state == "CANCELING"}
    assert broken == {client.name for client in CLIENTS if client.at("CANCELING") == "refuses"}
    assert len(broken) == 4


def test_every_client_in_the_old_dialect() -> None:
    """Nobody loses by the old dialect: also those that know TES 1.1 take each state there for what it is."""
    assert wrong(OLD_PREFIX) <= KNOWN
    assert ("py-tes 1.1.4", "CANCELING") not in wrong(OLD_PREFIX)


def test_the_dialect_shows_only_states_of_tes_1_0() -> None:
    assert set(STATES) == set(tes.State)
    new = {"PAUSED", "PREEMPTED", "CANCELING"}  # PAUSED is of 1.0, and py-tes 0.4.2 does not know it
    for dialect in (OldDialect(), OldDialect(queued_as_initializing=True)):
        assert {dialect.state(state) for state in tes.State} <= set(tes.State) - new
        for state in State:
            assert (state in TERMINAL) == (State(dialect.state(state)) in TERMINAL)
            assert state in dialect.behind(dialect.state(state))
        assert all(dialect.behind(state) == () for state in (*new, "UNKNOWN"))


def test_only_what_is_new_is_left_out() -> None:
    """Of each part of a task: fields of ours, without those that py-tes 0.4.2 has, are those that are dropped."""
    parts = {"inputs": tes.Input, "outputs": tes.Output, "executors": tes.Executor, "resources": tes.Resources}
    for part, model in parts.items():
        sent = FULL_TASK[part][0] if isinstance(FULL_TASK[part], list) else FULL_TASK[part]
        assert set(sent) | ({"content"} if part == "inputs" else set()) == set(model.model_fields), part
    before = json.dumps(FULL_TASK)
    old = OldDialect().document(FULL_TASK)
    assert json.dumps(FULL_TASK) == before
    for part, new in NEW_FIELDS.items():
        for sent, answered in zip(_items(FULL_TASK[part]), _items(old[part]), strict=True):
            kept = {name: value for name, value in sent.items() if name not in new}
            assert answered == ({**kept, "cpu_cores": 1} if part == "resources" else kept)
    assert OldDialect().document({"executors": [{"image": "a", "command": []}]}) == {
        "executors": [{"image": "a", "command": []}]
    }
    assert OldDialect().document({"resources": {"cpu_cores": 3}}) == {"resources": {"cpu_cores": 3}}


def _items(part: Any) -> list[dict[str, Any]]:
    return part if isinstance(part, list) else [part]


async def _put_in(database: Database, task_id: str, state: State) -> None:
    """Whatever it was in before."""
    ended = state in TERMINAL
    await database.execute(
        "UPDATE task SET state = $2, phase = $3, ended_at = CASE WHEN $4 THEN now() END WHERE id = $1",
        task_id,
        state.value,
        "ended" if ended else "waiting",
        ended,
    )


async def answers_of(client: httpx.AsyncClient, database: Database, prefix: str) -> list[tuple[str, str]]:
    """What the API answers: kind and text, with one task in each state."""
    sent = await client.post(f"{prefix}/tasks", json=FULL_TASK)
    assert sent.status_code == 200, sent.text
    task_id = sent.json()["id"]
    found: list[tuple[str, str]] = []
    for state in State:
        await _put_in(database, task_id, state)
        for view in ("MINIMAL", "BASIC", "FULL"):
            one = await client.get(f"{prefix}/tasks/{task_id}", params={"view": view})
            page = await client.get(f"{prefix}/tasks", params={"view": view})
            assert one.status_code == page.status_code == 200
            found += [(f"task {view} {state}", one.text), (f"list {view} {state}", page.text)]
    return found


async def test_real_classes_read_every_answer(
    client: httpx.AsyncClient, context: Context, database: Database, clients: Clients
) -> None:
    context.backend_parameters = ("known",)
    use_database(context, database)
    old = await answers_of(client, database, OLD_PREFIX)
    asked: list[tuple[str, str]] = []
    wanted: list[Any] = []
    for kind, text in old:
        what, view, state = kind.split()
        # pydantic-tes asks for FULL alone: its task has executors, which MINIMAL has not.
        for reader in ("pytes", "pydantic") if view != "MINIMAL" else ("pytes",):
            asked.append((f"{reader}_{what}", text))
            folded = OldDialect().state(state)
            wanted.append(folded if what == "task" else [folded])
    for reader, path in (("pytes_info", "/v1/tasks/service-info"), ("pydantic_info", "/v1/service-info")):
        asked.append((reader, (await client.get(path)).text))
        wanted.append([f"file://{context.settings.file_roots[0].path}"])
    # With whole logs, which tasks that never ran have not.
    for state in State:
        record = TaskRecord("0" * 26, state, FULL_TASK_AS_KEPT, attempts=[ATTEMPT])
        for reader in ("pytes_task", "pydantic_task"):
            asked.append((reader, task_json(record, "FULL", old=OldDialect()).decode()))
            wanted.append(OldDialect().state(state))
    read = clients.run(READ, asked)
    wrong = [(ask, said, want) for ask, (got, said), want in zip(asked, read, wanted, strict=True) if got != want]
    assert wrong == []

    # The same classes on the answers of TES 1.1: what the dialect is for. If they could read them, it could go.
    new = await answers_of(client, database, PREFIX)
    said = clients.run(READ, [("pytes_task", text) for kind, text in new if kind.startswith("task FULL")])
    assert all(got is None and "Error" in text for got, text in said)
    (canceling,) = [text for kind, text in new if kind == "task MINIMAL CANCELING"]
    for got, text in clients.run(READ, [("pytes_task", canceling), ("pydantic_task", canceling)]):
        assert got is None and "CANCELING" in text
    # py-tes 1.1 reads them all, but for fractions of a core, which TES 1.1 does not have.
    for kind, text in new:
        what, _, state = kind.split()
        whole = text.replace('"cpu_cores": 0.5', '"cpu_cores": 1').replace('"cpu_cores":0.5', '"cpu_cores":1')
        parsed = unmarshal(whole, pytes.Task if what == "task" else pytes.models.ListTasksResponse)
        assert (parsed if what == "task" else parsed.tasks[0]).state == state


FULL_TASK_AS_KEPT = {
    **FULL_TASK,
    "inputs": [{"type": "FILE", **item} for item in FULL_TASK["inputs"]],
}


def test_the_table_is_what_pulsar_does(clients: Clients) -> None:
    """By its real functions."""
    (pulsar,) = [client for client in CLIENTS if client.name.startswith("Pulsar")]
    for state, (got, said) in zip(STATES, clients.run(READ, [("pulsar_state", s) for s in STATES]), strict=True):
        if got is None:
            assert "ValueError" in said and pulsar.at(state) == "refuses"
            continue
        status, is_complete = got
        word = {"complete": "succeeds", "failed": "fails", "cancelled": "canceled", "running": "runs"}.get(
            status, "waits"
        )
        assert (word, is_complete) == (pulsar.at(state), word in ("succeeds", "fails", "canceled")), state


def test_the_table_is_what_py_tes_reads(clients: Clients) -> None:
    (old,) = [client for client in CLIENTS if client.name == "py-tes 0.4.2"]
    read = clients.run(READ, [("pytes_task", json.dumps({"id": "a", "state": state})) for state in STATES])
    assert [got is None for got, _ in read] == [old.at(state) == "refuses" for state in STATES]


@pytest.mark.parametrize("is_set", [False, True])
async def test_lists_are_asked_for_in_the_words_of_the_dialect(
    client: httpx.AsyncClient, context: Context, database: Database, is_set: bool
) -> None:
    context.settings = context.settings.model_copy(
        update={"dialect": context.settings.dialect.model_copy(update={"queued_as_initializing": is_set})}
    )
    made: dict[str, str] = {}
    for state in State:
        task_id = (await client.post("/v1/tasks", json={"executors": [{"image": "a", "command": ["b"]}]})).json()["id"]
        await _put_in(database, task_id, state)
        made[task_id] = shown(state, OLD_PREFIX, queued_as_initializing=is_set)
    for state in tes.State:
        page = (await client.get("/v1/tasks", params={"state": state})).json()
        assert page["tasks"] == [
            {"id": key, "state": state} for key in sorted(made, reverse=True) if made[key] == state
        ]
        whole = (await client.get("/v1/tasks", params={"state": state, "view": "FULL"})).json()
        assert [(task["id"], task["state"]) for task in whole["tasks"]] == [(t["id"], state) for t in page["tasks"]]
        new = (await client.get(f"{PREFIX}/tasks", params={"state": state})).json()["tasks"]
        assert [task["state"] for task in new] == ([state] if state in set(State) else [])
    # Pages go on where they were, over tasks of both states that are shown as one.
    name = "INITIALIZING" if is_set else "RUNNING"
    first = (await client.get("/v1/tasks", params={"state": name, "page_size": 1})).json()
    rest = (await client.get("/v1/tasks", params={"state": name, "page_token": first["next_page_token"]})).json()
    assert [task["id"] for task in (*first["tasks"], *rest["tasks"])] == sorted(
        (key for key in made if made[key] == name), reverse=True
    )
    assert "next_page_token" not in rest
    assert (await client.get("/v1/tasks", params={"state": "DONE"})).status_code == 400


async def test_service_info_of_each_version(client: httpx.AsyncClient, context: Context) -> None:
    new, old, oldest = [
        (await client.get(path)).json()
        for path in (f"{PREFIX}/service-info", "/v1/service-info", "/v1/tasks/service-info")
    ]
    assert (new["type"]["version"], old["type"]["version"]) == ("1.1.0", "1.0.0")
    assert set(new) - set(old) == {"tesResources_backend_parameters"}
    assert set(oldest) == {"name", "doc", "storage"}
    assert new["storage"] == old["storage"] == oldest["storage"] == [f"file://{context.settings.file_roots[0].path}"]


async def test_fields_of_1_1_are_honoured_at_v1(client: httpx.AsyncClient, context: Context) -> None:
    """What came by the old path is kept whole, and shown whole in TES 1.1."""
    sent = await client.post("/v1/tasks", json=FULL_TASK)
    kept = (await client.get(f"{PREFIX}/tasks/{sent.json()['id']}", params={"view": "FULL"})).json()
    assert kept["outputs"][0]["path_prefix"] == "/out"
    assert kept["executors"][0]["ignore_error"] is True
    assert kept["resources"]["cpu_cores"] == 0.5
    refused = {**FULL_TASK, "resources": {"backend_parameters": {"no": "such"}, "backend_parameters_strict": True}}
    assert (await client.post("/v1/tasks", json=refused)).status_code == 400
    # A wildcard without what it needs is refused here as there.
    outputs = [{"url": "/data", "path": "/out/*"}]
    assert (await client.post("/v1/tasks", json={**FULL_TASK, "outputs": outputs})).status_code == 400
