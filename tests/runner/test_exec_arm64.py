"""The exec of the other architecture, emulated: the same cases as for this machine's own.

Without those about orphans: the emulator refuses PR_SET_CHILD_SUBREAPER (qemu-user 7.2), by which they become exec's.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.runner import test_exec as cases
from tests.runner.test_exec import ROOT, Step, cannot, load

home = cases.home

pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the emulator of this test runs on x86_64"),
    pytest.mark.timeout(300),
]


class Emulated(Step):
    """Starts exec in the emulator; what exec starts is this machine's own again."""

    emulator: str

    def argv(self, *command: str, options: tuple[str, ...] = ()) -> list[str]:
        return [self.emulator, *super().argv(*command, options=options)]


@pytest.fixture(scope="session")
def emulator() -> str:
    found = shutil.which("qemu-aarch64-static")
    return found or cannot("qemu-aarch64-static is not installed (apt-get install qemu-user-static)")


@pytest.fixture(scope="session")
def program() -> Path:
    hatch_build = load(ROOT / "hatch_build.py")
    if not hatch_build.compilers("aarch64"):
        cannot("there is no compiler for arm64 (apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross)")
    path: Path = hatch_build.compile_exec("aarch64", ROOT / hatch_build.FOLDER / "bin" / "tesgate-exec-aarch64")
    return path


@pytest.fixture
def step(emulator: str, program: Path, home: Path) -> Step:
    made = Emulated(program, home)
    made.emulator = emulator
    return made


@pytest.mark.parametrize(
    ("case", "arguments"),
    [
        (cases.test_writes_the_result_streams_and_tails, {}),
        (cases.test_is_readable_whatever_the_umask, {}),
        (cases.test_death_by_signal, {}),
        (cases.test_looks_the_command_up_in_the_environment_s_path, {}),
        (cases.test_default_path_where_the_environment_has_none, {}),
        (cases.test_redirects_to_paths, {}),
        (cases.test_stdout_and_stderr_may_be_one_file, {}),
        (cases.test_makes_the_workdir_with_its_parents, {}),
        (cases.test_tails_survive_the_task_s_unlink, {}),
        (cases.test_copies_a_bounded_part_of_stdout, {}),
        (cases.test_forwards_signals, {"name": "TERM"}),
        (cases.test_kills_after_the_grace, {}),
        (cases.test_time_limit, {}),
        (cases.test_second_start_while_the_first_lives, {}),
        (cases.test_start_after_a_kill, {"redirected": True}),
        (cases.test_start_where_a_result_is, {}),
        (cases.test_many_starts_at_once_run_the_command_once, {}),
    ],
    ids=lambda value: getattr(value, "__name__", "").removeprefix("test_"),
)
def test_arm64(step: Step, case: Callable[..., None], arguments: dict[str, Any]) -> None:
    case(step, **arguments)


def test_arm64_says_what_it_is(emulator: str, program: Path) -> None:
    assert program.read_bytes()[18:20] == b"\xb7\x00"  # e_machine: EM_AARCH64
    done = subprocess.run([emulator, str(program), "version"], capture_output=True, check=True)
    assert done.stdout.startswith(b"tesgate-exec ")
