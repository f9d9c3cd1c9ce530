"""Placement: best fit, in order, nobody starves, and every wait has its reason."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tesgate.model.placement import AgentRoom, Candidate, Need, place

GB = 10**9


def agent(name: str, cpus: float = 4, ram: float = 16, used: float = 0, **more: object) -> AgentRoom:
    return AgentRoom(
        agent_id=name,
        host=name,
        capacity=Need(int(cpus * 1000), int(ram * GB), 100 * GB),
        used=Need(int(used * 1000), 0, 0),
        **more,  # type: ignore[arg-type]
    )


def task(name: str, cpus: float = 1, ram: float = 1, **more: object) -> Candidate:
    return Candidate(task_id=name, version=1, need=Need(int(cpus * 1000), int(ram * GB), 0), **more)  # type: ignore[arg-type]


def picks(result: object) -> list[tuple[str, str]]:
    return [(pick.task_id, pick.agent_id) for pick in result.picks]  # type: ignore[attr-defined]


def test_takes_the_agent_that_it_fits_best() -> None:
    assert picks(place([task("t", 2)], [agent("big", 16), agent("small", 2)], reserve_after=30)) == [("t", "small")]


def test_keeps_the_order_and_counts_what_it_gave_away() -> None:
    result = place([task("a", 3), task("b", 3), task("c", 1)], [agent("x", 4)], reserve_after=30)
    assert picks(result) == [("a", "x"), ("c", "x")]
    assert "busy" in result.reasons["b"]
    assert "3 CPU cores" in result.reasons["b"]


def test_a_big_task_that_has_waited_long_enough_is_not_passed_any_more() -> None:
    room = [agent("x", 4, used=1)]
    assert picks(place([task("big", 4, age=29), task("small")], room, reserve_after=30)) == [("small", "x")]
    room = [agent("x", 4, used=1)]
    assert picks(place([task("big", 4, age=31), task("small")], room, reserve_after=30)) == []


def test_a_reservation_leaves_other_agents_alone() -> None:
    room = [agent("x", 4, used=1), agent("y", 2)]
    result = place([task("big", 4, age=31), task("small")], room, reserve_after=30)
    assert picks(result) == [("small", "y")]


def test_turns_of_owners_do_not_pass_a_reservation() -> None:
    """Whoever's turn it is: the agent is reserved first, and kept by rounds that do not see the task."""
    first = place([task("small"), task("big", 4, age=31)], [agent("x", 4, used=1)], reserve_after=30)
    assert picks(first) == []
    assert list(first.reserved) == ["big"]
    unseen = place([task("small")], [agent("x", 4)], reserve_after=30, reserved=first.reserved)
    assert picks(unseen) == []
    assert unseen.reserved == first.reserved
    both = place([task("small"), task("big", 4, age=32)], [agent("x", 4)], reserve_after=30, reserved=unseen.reserved)
    assert picks(both) == [("big", "x")]
    assert not both.reserved


def test_a_reservation_goes_to_the_oldest_and_keeps_out_only_who_is_smaller() -> None:
    candidates = [task("young", 4, age=31), task("old", 3, age=40), task("small", 2)]
    first = place(candidates, [agent("x", 4, used=2)], reserve_after=30)
    assert (picks(first), list(first.reserved)) == ([], ["old"])
    # It is another owner's turn, and he takes as much: the agent empties for "old" no later.
    turn = place([task("t", 3, ram=0.1), task("old", 3)], [agent("x", 4)], reserve_after=30, reserved=first.reserved)
    assert picks(turn) == [("t", "x")]
    assert picks(place([task("small")], [agent("y")], reserve_after=30, reserved=first.reserved)) == [("small", "y")]


def test_says_that_nobody_is_there_and_that_nobody_is_large_enough() -> None:
    assert "no agent is connected" in place([task("t")], [], reserve_after=30).reasons["t"]
    assert "no connected agent is large enough" in place([task("t", 9)], [agent("x")], reserve_after=30).reasons["t"]
    assert "no agent is connected" in place([task("t")], [agent("x", draining=True)], reserve_after=30).reasons["t"]


def test_an_agent_without_a_working_engine_gets_nothing() -> None:
    result = place([task("t")], [agent("x", runtimes=())], reserve_after=30)
    assert picks(result) == []
    assert "no connected agent has a container engine" in result.reasons["t"]
    assert picks(place([task("t")], [agent("x", runtimes=()), agent("y")], reserve_after=30)) == [("t", "y")]
    alone = [agent("x", runtimes=("bubblewrap",))]
    assert picks(place([task("t")], alone, reserve_after=30, refused_runtimes=["bubblewrap"])) == []
    assert picks(place([task("t")], alone, reserve_after=30)) == [("t", "x")]


def test_paths_need_a_root_and_writing_needs_a_writable_one() -> None:
    reader = task("r", paths=(("/data/in", False),))
    writer = task("w", paths=(("/data/out", True),))
    sibling = task("s", paths=(("/database/x", False),))
    roots = (("/data", False),)
    result = place([reader, writer, sibling], [agent("x", roots=roots)], reserve_after=30)
    assert picks(result) == [("r", "x")]
    assert "read-only" in result.refused["w"][1]
    assert "--file-root" in result.refused["s"][1]


def test_waits_for_an_agent_with_a_root_that_the_configuration_knows() -> None:
    result = place(
        [task("t", paths=(("/data/in", False),))], [agent("x")], reserve_after=30, known_roots=[("/data", True)]
    )
    assert "file root that holds /data/in" in result.reasons["t"]


@given(
    st.lists(st.tuples(st.floats(0.1, 8), st.floats(0.1, 32), st.floats(0, 60)), max_size=30),
    st.lists(st.tuples(st.floats(1, 16), st.floats(1, 64)), max_size=5),
)
def test_never_gives_away_more_than_there_is(
    tasks: list[tuple[float, float, float]], agents: list[tuple[float, float]]
) -> None:
    rooms = [agent(f"a{i}", cpus, ram) for i, (cpus, ram) in enumerate(agents)]
    candidates = [task(f"t{i}", cpus, ram, age=age) for i, (cpus, ram, age) in enumerate(tasks)]
    result = place(candidates, rooms, reserve_after=30)
    needs = {candidate.task_id: candidate.need for candidate in candidates}
    for index, (cpus, ram) in enumerate(agents):
        given_away = [needs[pick.task_id] for pick in result.picks if pick.agent_id == f"a{index}"]
        assert sum(need.cpu_milli for need in given_away) <= int(cpus * 1000)
        assert sum(need.ram_bytes for need in given_away) <= int(ram * GB)
    decided = [pick.task_id for pick in result.picks] + list(result.reasons) + list(result.refused)
    assert sorted(decided) == sorted(needs)
