"""Users of a range: one for each attempt, the same after every death, never one for two."""

from __future__ import annotations

from pathlib import Path

from tesgate.runner.plan import RunAs
from tesgate.runner.users import Users

RANGE = RunAs(policy="fixed", uid=5000, last_uid=5003)


def test_attempts_have_users_of_their_own(tmp_path: Path) -> None:
    users = Users(str(tmp_path / "users"))
    found = [users.settled(f"tg-{number}", RANGE) for number in range(4)]
    assert sorted(one.uid or 0 for one in found) == [5000, 5001, 5002, 5003]
    assert all((one.gid, one.last_uid, one.policy) == (one.uid, None, "fixed") for one in found)
    # An agent that was started again knows them.
    again = Users(str(tmp_path / "users"))
    assert [again.settled(f"tg-{number}", RANGE) for number in range(4)] == found


def test_a_full_range_lends_nobody_until_one_is_given_back(tmp_path: Path) -> None:
    users = Users(str(tmp_path))
    first = users.settled("tg-0", RANGE)
    for number in range(1, 4):
        users.settled(f"tg-{number}", RANGE)
    assert users.settled("tg-late", RANGE) == RANGE
    users.release("tg-0")
    users.release("tg-0")
    assert users.settled("tg-late", RANGE).uid == first.uid


def test_what_is_gone_needs_no_user(tmp_path: Path) -> None:
    users = Users(str(tmp_path))
    for number in range(4):
        users.settled(f"tg-{number}", RANGE)
    users.sweep({"tg-1"})
    assert [path.readlink() for path in tmp_path.iterdir()] == [Path("tg-1")]


def test_the_choice_does_not_depend_on_the_order(tmp_path: Path) -> None:
    wide = RunAs(policy="fixed", uid=100_000, gid=7, last_uid=165_535)
    one, two = Users(str(tmp_path / "one")), Users(str(tmp_path / "two"))
    two.settled("tg-other", wide)
    assert one.settled("tg-x", wide) == two.settled("tg-x", wide)
    assert one.settled("tg-x", wide).gid == 7


def test_without_a_range_nothing_is_lent(tmp_path: Path) -> None:
    users = Users(str(tmp_path / "users"))
    for run_as in (RunAs(), RunAs(policy="fixed", uid=1, gid=2)):
        assert users.settled("tg-x", run_as) == run_as
    assert not (tmp_path / "users").exists()
