"""One deterministic test of each kind of fault; `make soak` does them at random moments, again and again."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Gateway, wait_for
from tests.faults.oracle import Work
from tests.faults.world import LEAST, Clock, fill, site, small_disk

pytestmark = pytest.mark.slow


def held(work: Work, name: str = "go") -> Work:
    """Its first executor waits for a file in the attempt's scratch."""
    command = work.document["executors"][0]["command"]
    command[-1] = command[-1].replace("sleep", f"while [ ! -e /count/{name} ]; do sleep 0.05; done; sleep", 1)
    return work


def begun(gateway: Gateway, work: Work, number: int = 1) -> Path:
    """Where /count of its attempt lies, once its executor has said that it began."""
    found = gateway.scratch / "attempts"
    return wait_for("it to begin", lambda: next(found.glob(f"*{work.id}-{number}/rw/count/.id"), None)).parent


def test_an_agent_that_was_stopped_past_its_time_finds_its_claims_gone(
    bubblewrap: Any, external: str, tmp_path: Path
) -> None:
    """SIGSTOP until the agent is lost, then SIGCONT: its attempts are others' by then, so it removes them."""
    rng = random.Random(1)
    with site(
        tmp_path, rng, **LEAST, DATABASE_URL=external, CONTROL__AGENT_LOST_AFTER="4", CONTROL__POLL_INTERVAL="0.5"
    ) as here:
        works = [held(work) for work in here.mix.make(3, kinds=["plain"])]
        here.oracle.submit(works)
        first = [begun(here.gateway, work) for work in works]
        agent = here.gateway.agent()
        assert agent is not None
        agent.suspend()
        for work in works:
            wait_for(
                "the attempt to be lost",
                lambda work=work: here.gateway.rows(  # type: ignore[misc]
                    "SELECT 1 FROM attempt WHERE task_id = $1 AND number = 1 AND closed", work.id
                ),
            )
        (first[0] / "go").touch()  # the command goes on meanwhile, and ends
        agent.resume()
        for work in works:
            (begun(here.gateway, work, 2) / "go").touch()
        here.finish()
        assert set(here.oracle.attempts().values()) == {2}


def test_an_agent_that_was_stopped_past_its_publish_lease_makes_nothing_visible(
    bubblewrap: Any, external: str, tmp_path: Path
) -> None:
    """It had the lease and was about to rename; when it goes on, the lease and the attempt are others'."""
    spans = {"CONTROL__AGENT_LOST_AFTER": "4", "CONTROL__POLL_INTERVAL": "0.5", "CONTROL__PUBLISH_LEASE": "6"}
    with site(tmp_path / "site", random.Random(14), DATABASE_URL=external, **LEAST, **spans) as here:
        (work,) = here.mix.make(1, kinds=["plain"])
        here.gateway.arm("stop", "after-lease")
        here.oracle.submit([work])
        wait_for("the agent to stop itself", Path(f"{here.gateway.crash}.done").exists)
        gone = "SELECT 1 FROM attempt JOIN task ON id = task_id WHERE id = $1 AND closed AND publish_until < now()"
        wait_for("attempt and lease to be gone", lambda: here.gateway.rows(gone, work.id))
        (target,) = work.files
        assert not target.exists()
        target.parent.mkdir(exist_ok=True)
        target.write_text("somebody else's")  # whoever renames over it now, does so without the lease
        known = target.stat().st_ino
        agent = here.gateway.agent()
        assert agent is not None
        agent.resume()
        begins = here.gateway.scratch / "attempts"
        wait_for("the first attempt to be removed", lambda: not list(begins.glob(f"*{work.id}-1")))
        second = here.gateway.rows("SELECT 1 FROM task WHERE id = $1 AND (publisher = 2 OR phase = 'ended')", work.id)
        assert second or target.stat().st_ino == known
        here.finish()
        assert here.oracle.attempts() == {work.name: 2}


def test_the_clock_is_moved(bubblewrap: Any, external: str, tmp_path: Path) -> None:
    """Hours forward, then back, for gateway and agent; a time limit of the executors counts what really passed."""
    clock = Clock(tmp_path)
    with site(
        tmp_path / "site", random.Random(2), start=False, DATABASE_URL=external, **LEAST, TIMEOUTS__EXECUTOR="300"
    ) as here:
        here.gateway.environment.update(clock.environment)
        here.gateway.start().ready()
        here.oracle.start()
        works = [held(work) for work in here.mix.make(4, kinds=["plain"])]
        here.oracle.submit(works)
        counts = [begun(here.gateway, work) for work in works]
        for hours in (30, -30):
            clock.move(hours * 3600)
            here.kill_both()
            here.gateway.start()
            agent = wait_for("the agent to live", here.gateway.agent)
            wait_for("the agent to poll", lambda: here.gateway.rows("SELECT 1 FROM agent WHERE poll_number > 0"))
            here.oracle.submit(here.mix.make(2, kinds=["plain", "loud"]))
            assert agent.is_running()
        for count in counts:
            (count / "go").touch()
        here.finish()
        assert set(here.oracle.attempts().values()) == {1}


def test_the_disk_under_the_scratch_is_full(bubblewrap: Any, external: str, tmp_path: Path) -> None:
    """A task fills it; the attempts there end all the same, others wait, and go on when there is room again."""
    with (
        small_disk(tmp_path / "scratch", 24) as disk,
        site(tmp_path / "site", random.Random(3), DATABASE_URL=external, **LEAST, AGENT__SCRATCH=str(disk)) as here,
    ):
        greedy = here.mix.make(1, kinds=["fails"])[0]
        del greedy.document["outputs"]
        greedy.files.clear()
        command = greedy.document["executors"][0]["command"]
        full = "cat /dev/zero > /count/zeros 2>/dev/null; while [ ! -e /count/go ]; do sleep 0.05; done; exit 7; "
        command[-1] = command[-1].replace("sleep", full + "sleep", 1)
        quick = [held(work) for work in here.mix.make(4, kinds=["quiet"])]
        here.oracle.submit(quick)
        counts = [begun(here.gateway, work) for work in quick]
        here.oracle.submit([greedy])
        go = begun(here.gateway, greedy)
        wait_for("the disk to be full", lambda: os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize < 4096)
        for count in counts:
            make_go(count)
        late = here.mix.make(3, kinds=["plain"])
        here.oracle.submit(late)
        wait_for(
            "the agent to take nothing new",
            lambda: here.gateway.rows("SELECT 1 FROM agent WHERE draining"),
        )
        make_go(go)
        here.finish()


def make_go(count: Path) -> None:
    """A name costs no block of its own, also on a full disk."""
    os.link(count / ".id", count / "go")


def test_the_disk_under_the_workspace_is_full(bubblewrap: Any, external: str, tmp_path: Path) -> None:
    """Logs wait and nothing else does; when there is room again they are whole."""
    with site(tmp_path / "site", random.Random(6), start=False, DATABASE_URL=external, **LEAST) as here:
        with small_disk(here.gateway.data / "workspace", 2) as disk:
            here.gateway.start().ready()
            here.oracle.start()
            ballast = disk / "ballast"
            fill(ballast)
            works = here.mix.make(4, kinds=["loud", "plain"])
            here.oracle.submit(works)
            here.oracle.wait(60)
            ballast.unlink()
            here.finish()
            here.gateway.close()


def test_a_workspace_that_was_lost_gets_its_logs_again(bubblewrap: Any, external: str, tmp_path: Path) -> None:
    """The runner goes on where the gateway says that its copy of a log ends."""
    with site(tmp_path / "site", random.Random(15), DATABASE_URL=external, **LEAST) as here:
        (work,) = here.mix.make(1, kinds=["loud"])
        command = work.document["executors"][0]["command"]
        command[-1] += "; while [ ! -e /count/go ]; do sleep 0.05; done; echo end"
        assert work.stdout is not None
        half, work.stdout = work.stdout, work.stdout + b"end\n"
        here.oracle.submit([work])
        wait_for("the first half", lambda: here.gateway.log(work.id).content == half)
        shutil.rmtree(here.gateway.data / "workspace/logs" / work.id)
        (begun(here.gateway, work) / "go").touch()
        here.finish()


def test_a_row_that_kills_its_driver_takes_no_bystander_along(bubblewrap: Any, external: str, tmp_path: Path) -> None:
    """Whoever acts on it dies, process and all. It is given up, and tasks that ran beside it each time are not."""
    poison = tmp_path / "poison"
    with site(tmp_path / "site", random.Random(7), DATABASE_URL=external, **LEAST, CONTROL__CRASH_LIMIT="2") as here:
        works = [held(work) for work in here.mix.make(6, kinds=["plain"])]
        bad = held(here.mix.make(1, kinds=["plain"])[0])
        bad.right = ("SYSTEM_ERROR",)
        here.oracle.submit([*works, bad])
        counts = [begun(here.gateway, work) for work in works]
        begun(here.gateway, bad)
        poison.write_text(bad.id)
        here.gateway.environment["E2E_POISON"] = str(poison)
        here.gateway.kill()
        deaths = 0
        while not here.gateway.rows("SELECT 1 FROM task WHERE id = $1 AND phase = 'ended'", bad.id):
            here.gateway.begin()
            wait_for(
                "it to die, or to give the row up",
                lambda: (
                    here.gateway.is_dead()
                    or here.gateway.rows("SELECT 1 FROM task WHERE id = $1 AND phase = 'ended'", bad.id)
                ),
            )
            deaths += here.gateway.is_dead()
            assert deaths < 8
        assert deaths >= 2
        if here.gateway.is_dead():
            here.gateway.start()
        for count in counts:
            (count / "go").touch()
        here.finish(system_errors=True)
        assert [name for name, number in here.oracle.attempts().items() if number > 1] == []
        for work in works:
            assert here.gateway.state(work.id) == "COMPLETE"


def test_a_copy_of_a_data_directory_does_not_start(bubblewrap: Any, tmp_path: Path) -> None:
    """Beside the original, which runs tasks: it is refused before it touches anything."""
    with site(tmp_path / "site", random.Random(8), **LEAST) as here:
        work = held(here.mix.make(1, kinds=["plain"])[0])
        here.oracle.submit([work])
        count = begun(here.gateway, work)
        copy = tmp_path / "copy"
        subprocess.run(["cp", "-a", here.gateway.data, copy], check=True)
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "tesgate.cli",
                "serve",
                "--port",
                "0",
                "--data-dir",
                copy,
                "--runtime",
                "bubblewrap",
            ],
            capture_output=True,
            text=True,
            timeout=60,
            env=here.gateway.environment,
            check=False,
        )
        assert done.returncode == 2, done.stderr
        assert f"{copy} is a copy of another gateway's data directory" in done.stderr
        words = ["agent", "--url", f"http://127.0.0.1:{here.gateway.port}", "--token-file", copy / "agent.token"]
        agent = subprocess.run(
            [sys.executable, "-m", "tesgate.runner", *words, "--scratch", copy / "agent", "--runtime", "bubblewrap"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert agent.returncode == 3
        assert "is a copy of another agent's scratch directory" in agent.stderr
        (count / "go").touch()
        here.finish()
        assert set(here.oracle.attempts().values()) == {1}


BEFORE = """
    import importlib.metadata, sys
    import tesgate
    tesgate.__version__ = "0.0.1"
    importlib.metadata.version = lambda name: "0.0.1"
    if "tesgate.runner" in sys.orig_argv:
        from tesgate.runner import wire
        real = wire.encode
        def encode(value):
            said = real(value)
            if isinstance(said, dict):
                for name in ("tombstones", "draining", "labels", "zones", "gpus", "published", "metadata", "wire"):
                    said.pop(name, None)
            return said
        wire.encode = encode
"""


def test_an_agent_of_the_version_before(bubblewrap: Any, external: str, tmp_path: Path) -> None:
    """It works with this gateway; when `serve` replaces it by its own, the running attempts go on in the new one."""
    with site(tmp_path / "site", random.Random(9), start=False, DATABASE_URL=external, **LEAST) as here:
        crashing = Path(here.gateway.environment["PYTHONPATH"])
        old = tmp_path / "old"
        shutil.copytree(crashing, old)
        (old / "sitecustomize.py").write_text(textwrap.dedent(BEFORE))
        here.gateway.environment.update(PYTHONPATH=str(old))
        here.gateway.start().ready()
        here.oracle.start()
        assert {row["program_version"] for row in here.gateway.rows("SELECT program_version FROM agent")} == {"0.0.1"}
        quick, works = here.mix.make(3), [held(work) for work in here.mix.make(3, kinds=["plain", "loud"])]
        here.oracle.submit([*quick, *works])
        counts = [begun(here.gateway, work) for work in works]
        before = here.gateway.agent()
        here.gateway.kill()
        here.gateway.environment["PYTHONPATH"] = str(crashing)
        here.gateway.start()
        wait_for("the agent to be another", lambda: (now := here.gateway.agent()) and before and now.pid != before.pid)
        wait_for(
            "the new one to register",
            lambda: here.gateway.rows("SELECT 1 FROM agent WHERE program_version <> '0.0.1' AND session > 1"),
        )
        for count in counts:
            (count / "go").touch()
        here.cancel_all(quick)
        here.finish()
        assert set(here.oracle.attempts().values()) == {1}
