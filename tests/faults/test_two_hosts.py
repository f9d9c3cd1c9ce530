"""Agents on hosts of their own, over TLS: what they are, who gets what, and what becomes of it when a host goes."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from tests.beds import standing
from tests.beds.postgres import Server
from tests.faults.two_hosts import Judged, RemoteAgent, Site, site, stop
from tests.replicas.fleet import wait_for

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def here(
    bubblewrap: Any, postgres_server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Site, RemoteAgent, RemoteAgent]]:
    """A gateway with TLS, and an agent on each of two hosts, in pools of their own."""
    name = f"hosts_{os.getpid()}"
    template = f"CREATE DATABASE {name} TEMPLATE {postgres_server.template} STRATEGY FILE_COPY"
    pools = json.dumps([{"name": "near"}, {"name": "far"}])
    with standing("netns") as netns:
        anyio.run(postgres_server.run, template)
        try:
            hosts = [netns("a"), netns("b")]
            with site(tmp_path_factory.mktemp("hosts"), postgres_server.url(name), hosts, POOLS=pools) as made:
                near = made.agent("near1", hosts[0], "--cpus", "6", "--zone", "z1", "--label", "disk=ssd", pool="near")
                far = made.agent("far1", hosts[1], "--cpus", "6", "--zone", "z2", pool="far")
                yield made, near, far
        finally:
            anyio.run(postgres_server.run, f"DROP DATABASE {name} WITH (FORCE)")


def test_one_host_is_killed_and_one_is_cut_off(here: tuple[Site, RemoteAgent, RemoteAgent]) -> None:
    """Nothing is lost, nothing published twice, no executor starts twice within an attempt."""
    made, one, two = here
    judged = Judged(made, random.Random(21), one.host.outside)
    try:
        works = judged.mix.make(12)
        judged.oracle.submit(works)
        taken = "SELECT count(DISTINCT agent_id) AS n FROM attempt WHERE acknowledged_at IS NOT NULL"
        wait_for("both to have some", lambda: made.fleet.rows(taken)[0]["n"] == 2)
        one.power_off()
        for work in works:
            if work.cancel:
                judged.oracle.cancel(work)
        wait_for("the dead host to be lost", lambda: one.row()["state"] == "lost", 30)
        judged.oracle.submit(judged.mix.make(4, kinds=["plain", "copy"]))
        one.start()  # with its old disk: what it had are others' by now
        two.host.cut()
        wait_for("the one that is cut off to be lost", lambda: two.row()["state"] == "lost", 30)
        two.host.mend()
        wait_for("it to be back", lambda: two.row()["state"] == "open", 30)
        judged.oracle.wait(60)
        judged.oracle.judge()
        made.fleet.assert_nothing_left()
    finally:
        two.host.mend()
        judged.close()


def test_tasks_go_where_they_ask_to(here: tuple[Site, RemoteAgent, RemoteAgent]) -> None:
    """Zones, labels, pools; a pool that is down is passed over; drain; a token of another pool."""
    made, near, far = here
    wait_for("both to be there", lambda: [agent["state"] for agent in made.agents()] == ["open", "open"], 60)
    placed = {
        made.run(): "near1",
        made.run(zones=["z9", "z2"]): "far1",
        made.run(backend_parameters={"labels": "disk=ssd"}): "near1",
        made.run(backend_parameters={"Pool": "far"}): "far1",
    }
    for task_id, host in placed.items():
        assert made.place_of(task_id) == host
    nowhere = made.run(zones=["mars"])
    cards = made.run(backend_parameters={"gpus": "2"})
    made.reason(nowhere, "waiting: no connected agent is in the zone mars")
    made.reason(cards, "waiting: no connected agent has 2 GPUs")
    asked = made.fleet.task("true", "never")
    asked["resources"] = {"backend_parameters": {"pool": "moon"}}
    refused = made.gateway.client.post("/tasks", json=asked)
    assert refused.status_code == 400 and "pools: near, far" in refused.json()["msg"]
    listed = made.tesgate("agent", "list")
    assert listed.returncode == 0, listed.stderr
    head, *lines = listed.stdout.splitlines()
    assert head.split()[:3] == ["HOST", "POOL", "STATE"]
    assert [line.split()[:3] for line in lines] == [["far1", "far", "open"], ["near1", "near", "open"]]
    shown = {agent["host"]: agent for agent in made.agents()}
    assert shown["near1"]["zones"] == ["z1"] and shown["near1"]["labels"] == {"disk": "ssd"}
    assert shown["near1"]["used"]["cpu_cores"] == 2 and len(shown["near1"]["attempts"]) == 2
    # near is taken out by its own operator, far by an admin: what they have goes on, and nobody gets anything.
    own = ["--url", near.url, "--token-file", str(near.token), "--scratch", str(near.scratch)]
    own += ["--ca-file", str(made.authority.file)]
    done = made.tesgate("agent", "drain", "--self", *own)
    assert (done.returncode, "gets no new attempts" in done.stdout) == (0, True), done.stderr
    assert made.place_of(made.run()) == "far1"
    assert made.tesgate("agent", "drain", "far1").returncode == 0
    assert {agent["state"] for agent in made.agents()} == {"draining"}
    waiting = made.run()
    made.reason(waiting, "take no new tasks for now")
    # It holds over a restart, in which what runs goes on.
    stop(near)
    near.log.write_text("")
    near.start()
    assert near.row()["told_to_drain"]
    assert made.tesgate("agent", "drain", "--self", "--undo", *own).returncode == 0
    assert made.place_of(waiting) == "near1"
    for task_id in placed:
        agent = near if placed[task_id] == "near1" else far
        (agent.begun(task_id) / "go").touch()
        assert made.gateway.wait(task_id)["state"] == "COMPLETE"
    made.undrain("far1")
    # The first pool is down: what only it would do waits and says so, the rest goes to the next.
    near.power_off()
    wait_for("near to be lost", lambda: near.row()["state"] == "lost", 30)
    wait_for("the other pool to have it", lambda: made.place_of(waiting) == "far1")
    only = made.run(backend_parameters={"pool": "near"})
    made.reason(only, "no agent of the pool 'near', which it asks for, is connected")
    made.reason(nowhere, "is in the zone mars; of the pool near no agent is connected")
    # A token of another pool does not speak for its instance: it becomes an agent of that pool, and a new one.
    near.token = made.token("far")
    known = (near.scratch / "instance").read_text()
    near.log.write_text("")
    near.start()
    assert (near.scratch / "instance").read_text() != known
    assert "belongs to another pool than this token" in near.log.read_text()
