"""Zones, labels, GPUs and pools: who gets a task, and the sentence where nobody does."""

from __future__ import annotations

import pytest

from tesgate.errors import BadRequest, Forbidden
from tesgate.model.caller import Caller
from tesgate.model.placement import AgentRoom, Candidate, Need, place
from tesgate.model.pools import PoolRule, allowed_pools, check_pool, known_pools
from tesgate.model.wishes import Wish, WishError, gpus_of, wish_of

GB = 10**9


def agent(name: str, cpus: int = 4, gpus: int = 0, used: int = 0, **more: object) -> AgentRoom:
    return AgentRoom(
        agent_id=name,
        host=name,
        capacity=Need(cpus * 1000, 16 * GB, 100 * GB, gpus),
        used=Need(used * 1000, 0, 0),
        **more,  # type: ignore[arg-type]
    )


def task(name: str = "t", cpus: int = 1, gpus: int = 0, **more: object) -> Candidate:
    return Candidate(task_id=name, version=1, need=Need(cpus * 1000, GB, 0, gpus), **more)  # type: ignore[arg-type]


def where(candidate: Candidate, *agents: AgentRoom, **more: object) -> str:
    """The agent that gets it, or why it waits."""
    result = place([candidate], agents, reserve_after=30, **more)  # type: ignore[arg-type]
    return result.picks[0].agent_id if result.picks else result.reasons[candidate.task_id]


def test_a_task_goes_only_where_it_asked_to() -> None:
    rooms = [
        agent("east", 2, zones=("eu-1", "eu-2"), labels={"disk": "ssd"}),
        agent("west", zones=("us",), labels={"disk": "ssd", "cpu": "arm"}),
    ]
    assert where(task(wish=Wish(("mars", "us"))), *rooms) == "west"
    assert where(task(wish=Wish(labels=(("disk", "ssd"),))), *rooms) == "east"  # the tighter one
    assert where(task(wish=Wish(labels=(("cpu", "arm"), ("disk", "ssd")))), *rooms) == "west"
    assert where(task(wish=Wish(("mars",))), *rooms) == "waiting: no connected agent is in the zone mars"
    said = where(task(wish=Wish(("eu-1",), (("cpu", "arm"),))), *rooms)
    assert said == "waiting: no connected agent in the zone eu-1 has the label cpu=arm"
    assert "no connected agent in the zone eu-2 is large enough for 3 CPU" in where(
        task(cpus=3, wish=Wish(("eu-2",))), *rooms
    )


def test_gpus_are_room() -> None:
    rooms = [agent("plain"), agent("cards", 2, gpus=2)]
    assert where(task(), *rooms) == "plain"  # the tighter one is left to those who need it
    assert where(task(), agent("cards", gpus=2)) == "cards"
    assert where(task(gpus=1), *rooms) == "cards"
    result = place([task(str(number), gpus=1) for number in range(3)], [agent("cards", gpus=2)], reserve_after=30)
    assert [pick.task_id for pick in result.picks] == ["0", "1"]
    assert result.reasons["2"].startswith("waiting: every agent that is large enough is busy; needs 1 GPU, 1 CPU cores")
    assert where(task(gpus=3), *rooms) == "waiting: no connected agent has 3 GPUs"


def test_gpus_are_kept_free_for_who_waits_long() -> None:
    busy = [AgentRoom("x", "x", Need(8000, 16 * GB, 0, 2), Need(1000, 0, 0, 1))]
    first = place([task("small", gpus=1), task("big", gpus=2, age=40)], busy, reserve_after=30)
    assert first.picks == []
    assert list(first.reserved) == ["big"]


def test_who_takes_nothing_from_the_reserved_task_is_not_kept_out() -> None:
    """One waiting GPU task does not stop the CPU tasks of its host; they leave it the cores that it needs, no more."""
    cpus = [task(str(number), 2) for number in range(3)]
    host = AgentRoom("x", "x", Need(8000, 64 * GB, 0, 1), Need(1000, GB, 0, 1))
    first = place([task("card", 3, gpus=1, age=40), *cpus], [host], reserve_after=30)
    assert ([pick.task_id for pick in first.picks], list(first.reserved)) == (["0", "1"], ["card"])
    # The cores were all taken when it was reserved, and are free by now: it is looked at anew.
    full = AgentRoom("x", "x", Need(8000, 64 * GB, 0, 1), Need(8000, GB, 0, 1))
    first = place([task("card", 3, gpus=1, age=40), *cpus], [full], reserve_after=30)
    assert (first.picks, list(first.reserved)) == ([], ["card"])
    free = AgentRoom("x", "x", Need(8000, 64 * GB, 0, 1), Need(1000, GB, 0, 1))
    later = place(cpus, [free], reserve_after=30, reserved=first.reserved)
    assert [pick.task_id for pick in later.picks] == ["0", "1"]


def test_who_needs_no_disk_is_not_kept_out_by_who_waits_for_disk() -> None:
    host = AgentRoom("x", "x", Need(8000, 64 * GB, 10 * GB), Need(0, 0, 10 * GB))
    waits = Candidate("big", 1, Need(1000, GB, 10 * GB), age=40)
    result = place([task("small"), waits, Candidate("disk", 1, Need(1000, GB, GB))], [host], reserve_after=30)
    assert ([pick.task_id for pick in result.picks], list(result.reserved)) == (["small"], ["big"])


def test_an_agent_that_has_become_too_small_is_not_kept_free() -> None:
    waits = task("card", gpus=1, age=40)
    first = place([waits], [AgentRoom("x", "x", Need(1000, GB, 0, 1), Need(1000, GB, 0, 1))], reserve_after=30)
    rooms = [
        AgentRoom("x", "x", Need(1000, GB, 0), Need(0, 0, 0)),
        AgentRoom("y", "y", Need(1000, GB, 0, 1), Need(1000, GB, 0, 1)),
    ]
    then = place([waits, task("small")], rooms, reserve_after=30, reserved=first.reserved)
    assert [(pick.task_id, pick.agent_id) for pick in then.picks] == [("small", "x")]
    assert then.reserved["card"].agent_id == "y"


def test_pools_are_filled_in_order_and_a_full_or_empty_one_is_passed_over() -> None:
    order = ["own", "cloud"]

    def both(used: int = 0) -> list[AgentRoom]:
        return [agent("own", 2, used=used, pool="own"), agent("cloud", pool="cloud")]

    assert where(task(), *both(), pools=order) == "own"
    assert where(task(), *both(), pools=order[::-1]) == "cloud"
    assert where(task(cpus=3), *both(), pools=order) == "cloud"
    assert where(task(), *both(used=2), pools=order) == "cloud"
    assert where(task(), both()[1], pools=order) == "cloud"
    assert where(task(), agent("other", pool="other"), pools=order).endswith("`pools` do not list (other)")
    said = where(task(), agent("cloud", used=4, pool="cloud"), pools=order)
    assert said.startswith("waiting: every agent that is large enough is busy")
    assert said.endswith("; of the pool own no agent is connected")


def test_a_pool_that_was_asked_for_is_waited_for() -> None:
    rooms = [agent("cloud", pool="cloud")]
    order = ["own", "cloud"]
    asked = task(wish=Wish(pool="own"))
    assert where(asked, *rooms, pools=order) == ("waiting: no agent of the pool 'own', which it asks for, is connected")
    assert where(asked, *rooms, agent("own", pool="own"), pools=order) == "own"
    gone = where(task(wish=Wish(pool="x")), *rooms, pools=order, open_pools=order)
    assert gone == "waiting: the pool 'x' does not exist here (any more)"


def test_pools_that_are_not_the_owners_are_not_used() -> None:
    rooms = [agent("own", pool="own"), agent("cloud", pool="cloud")]
    order = ["own", "cloud"]
    assert where(task(pools=("cloud",)), *rooms, pools=order, open_pools=["own"]) == "cloud"
    assert where(task(pools=None), *rooms, pools=order, open_pools=["cloud"]) == "cloud"
    said = where(task(pools=("cloud",)), rooms[0], pools=order, open_pools=["own"])
    assert said.startswith("waiting: no agent of the pools that it may use (cloud) is connected")


def test_who_drains_is_named_where_only_he_would_do() -> None:
    rooms = [agent("plain"), agent("ssd", labels={"disk": "ssd"}, draining=True)]
    said = where(task(wish=Wish(labels=(("disk", "ssd"),))), *rooms)
    assert "every agent that could take it (ssd) takes no new tasks for now" in said


def test_wishes_are_read_from_the_document() -> None:
    parameters = {"Pool": "own", "LABELS": " disk=ssd , cpu=x=1,", "gpus": "2", "other": "?"}
    document = {"resources": {"zones": ["a", "", "a", "b"], "backend_parameters": parameters}}
    assert wish_of(document) == Wish(("a", "b"), (("cpu", "x=1"), ("disk", "ssd")), "own")
    assert gpus_of(document["resources"]) == 2
    assert wish_of({}) == wish_of({"resources": {"zones": None}}) == Wish()
    assert gpus_of({"backend_parameters": {"gpus": None}}) == 0


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"pool": "Own"}, "pool"),
        ({"pool": ""}, "pool"),
        ({"labels": "disk"}, "labels: 'disk'"),
        ({"labels": "disk="}, "labels: 'disk='"),
        ({"labels": "=ssd"}, "labels"),
        ({"labels": "a=1,a=2"}, "labels: 'a=2'"),
        ({"labels": ",".join(f"a{n}=1" for n in range(65))}, "at most 64"),
        ({"labels": "a=" + "x" * 255}, "255 characters"),
        ({"gpus": "-1"}, "gpus"),
        ({"gpus": "1.5"}, "gpus"),
        ({"gpus": "1025"}, "gpus"),
        ({"gpus": ""}, "gpus"),
        ({"gpus": "١"}, "gpus"),
    ],
)
def test_wishes_that_make_no_sense_are_refused(parameters: dict[str, str], named: str) -> None:
    resources = {"backend_parameters": parameters}
    with pytest.raises(WishError) as refused:
        assert (wish_of({"resources": resources}), gpus_of(resources)) is None
    assert str(refused.value).startswith("resources.backend_parameters")
    assert named in str(refused.value)


@pytest.mark.parametrize("zones", [["z" * 256], [str(number) for number in range(65)]])
def test_zones_have_bounds(zones: list[str]) -> None:
    with pytest.raises(WishError, match=r"resources\.zones"):
        wish_of({"resources": {"zones": zones}})


def test_who_may_use_which_pool() -> None:
    rules = [
        PoolRule("lab", groups=frozenset({"lab"})),
        PoolRule("alices", callers=frozenset({"alice"})),
        PoolRule("all"),
    ]
    assert allowed_pools(rules, Caller("alice")) == ("alices", "all")
    assert allowed_pools(rules, Caller("bob", ("x", "lab"))) == ("lab", "all")
    assert allowed_pools(rules, Caller("root", (), True)) == ("lab", "alices", "all")
    assert allowed_pools([], Caller("bob")) is None
    with pytest.raises(Forbidden):
        allowed_pools(rules[:2], Caller("bob"))
    with pytest.raises(BadRequest, match="'lab' is no pool that you may use"):
        check_pool("lab", ("all",))
    check_pool("lab", None)
    assert known_pools(rules, "default", ["x"]) == ("lab", "alices", "all")
    assert known_pools([], "default", ["b", "default", "a"]) == ("default", "a", "b")
