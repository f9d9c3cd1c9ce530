"""Agents on hosts of their own, over TLS: what they are, who gets what, and what becomes of it when a host goes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.beds import standing
from tests.beds.netns import Host
from tests.faults.two_hosts import Judged, site, stop
from tests.replicas.fleet import wait_for

pytestmark = [pytest.mark.timeout(150), pytest.mark.slow]


@pytest.fixture
def netns() -> Iterator[Callable[[str], Host]]:
    with standing("netns") as bed:
        yield bed


def test_one_host_is_killed_and_one_is_cut_off(
    bubblewrap: Any, netns: Callable[[str], Host], external: str, tmp_path: Path
) -> None:
    """Nothing is lost, nothing published twice, no executor starts twice within an attempt."""
    hosts = [netns("a"), netns("b")]
    with site(tmp_path / "s", external, hosts) as here:
        one, two = (here.agent(name, host, "--cpus", "6") for name, host in zip(("one", "two"), hosts, strict=True))
        judged = Judged(here, random.Random(21), hosts[0].outside)
        try:
            works = judged.mix.make(12)
            judged.oracle.submit(works)
            taken = "SELECT count(DISTINCT agent_id) AS n FROM attempt WHERE acknowledged_at IS NOT NULL"
            wait_for("both to have some", lambda: here.fleet.rows(taken)[0]["n"] == 2)
            one.power_off()
            for work in works:
                if work.cancel:
                    judged.oracle.cancel(work)
            wait_for("the dead host to be lost", lambda: one.row()["state"] == "lost", 30)
            late = judged.mix.make(4, kinds=["plain", "copy"])
            judged.oracle.submit(late)
            one.start()  # with its old disk: what it had are others' by now
            hosts[1].cut()
            wait_for("the one that is cut off to be lost", lambda: two.row()["state"] == "lost", 30)
            hosts[1].mend()
            wait_for("it to be back", lambda: two.row()["state"] == "open", 30)
            judged.oracle.wait(60)
            judged.oracle.judge()
            here.fleet.assert_nothing_left()
        finally:
            judged.close()


def test_tasks_go_where_they_ask_to(
    bubblewrap: Any, netns: Callable[[str], Host], external: str, tmp_path: Path
) -> None:
    """Zones, labels, pools; a pool that is down is passed over; drain; a token of another pool."""
    hosts = [netns("c"), netns("d")]
    pools = json.dumps([{"name": "near"}, {"name": "far"}])
    with site(tmp_path / "s", external, hosts, POOLS=pools) as here:
        near = here.agent("near1", hosts[0], "--zone", "z1", "--label", "disk=ssd", pool="near")
        far = here.agent("far1", hosts[1], "--zone", "z2", pool="far")
        placed = {
            here.run(): "near1",
            here.run(zones=["z9", "z2"]): "far1",
            here.run(backend_parameters={"labels": "disk=ssd"}): "near1",
            here.run(backend_parameters={"Pool": "far"}): "far1",
        }
        for task_id, host in placed.items():
            assert here.place_of(task_id) == host
        nowhere = here.run(zones=["mars"])
        cards = here.run(backend_parameters={"gpus": "2"})
        here.reason(nowhere, "waiting: no connected agent is in the zone mars")
        here.reason(cards, "waiting: no connected agent has 2 GPUs")
        asked = here.fleet.task("true", "never")
        asked["resources"] = {"backend_parameters": {"pool": "moon"}}
        refused = here.gateway.client.post("/tasks", json=asked)
        assert refused.status_code == 400 and "pools: near, far" in refused.json()["msg"]
        listed = here.tesgate("agent", "list")
        assert listed.returncode == 0, listed.stderr
        head, *lines = listed.stdout.splitlines()
        assert head.split()[:3] == ["HOST", "POOL", "STATE"]
        assert [line.split()[:3] for line in lines] == [["far1", "far", "open"], ["near1", "near", "open"]]
        shown = {agent["host"]: agent for agent in here.agents()}
        assert shown["near1"]["zones"] == ["z1"] and shown["near1"]["labels"] == {"disk": "ssd"}
        assert shown["near1"]["used"]["cpu_cores"] == 2 and len(shown["near1"]["attempts"]) == 2
        # near is taken out by its own operator, far by an admin: what they have goes on, and nobody gets anything.
        own = ["--url", near.url, "--token-file", str(near.token), "--scratch", str(near.scratch)]
        own += ["--ca-file", str(here.authority.file)]
        done = here.tesgate("agent", "drain", "--self", *own)
        assert (done.returncode, "gets no new attempts" in done.stdout) == (0, True), done.stderr
        assert here.place_of(here.run()) == "far1"
        assert here.tesgate("agent", "drain", "far1").returncode == 0
        assert {agent["state"] for agent in here.agents()} == {"draining"}
        waiting = here.run()
        here.reason(waiting, "take no new tasks for now")
        # It holds over a restart, in which what runs goes on.
        stop(near)
        near.log.write_text("")
        near.start()
        assert near.row()["told_to_drain"]
        assert here.tesgate("agent", "drain", "--self", "--undo", *own).returncode == 0
        assert here.place_of(waiting) == "near1"
        for task_id in placed:
            agent = near if placed[task_id] == "near1" else far
            (agent.begun(task_id) / "go").touch()
            assert here.gateway.wait(task_id)["state"] == "COMPLETE"
        here.undrain("far1")
        # The first pool is down: what only it would do waits and says so, the rest goes to the next.
        near.power_off()
        wait_for("near to be lost", lambda: near.row()["state"] == "lost", 30)
        wait_for("the other pool to have it", lambda: here.place_of(waiting) == "far1")
        only = here.run(backend_parameters={"pool": "near"})
        here.reason(only, "no agent of the pool 'near', which it asks for, is connected")
        here.reason(nowhere, "is in the zone mars; of the pool near no agent is connected")
        # A token of another pool does not speak for its instance: it becomes an agent of that pool, and a new one.
        near.token = here.token("far")
        known = (near.scratch / "instance").read_text()
        near.log.write_text("")
        near.start()
        assert (near.scratch / "instance").read_text() != known
        assert "belongs to another pool than this token" in near.log.read_text()
