"""Build hook that compiles tesgate-exec statically for the wheel; ``python hatch_build.py`` compiles it in place.

A wheel holds the exec of the machine that builds it, and of others whose cross compiler is there. With
``TESGATE_RELEASE=1`` (``make wheels``) it holds the exec of every architecture, or is not built at all.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface

    Hook = BuildHookInterface[Any]
else:
    try:
        from hatchling.builders.hooks.plugin.interface import BuildHookInterface as Hook
    except ImportError:  # run as a script, where nothing but a compiler is needed
        Hook = object

__all__ = ["CompileError", "ExecBuildHook", "build", "compile_exec", "compilers", "is_release"]

ROOT = Path(__file__).resolve().parent
FOLDER = Path("src/tesgate/runner/exec")
FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-static", "-Os", "-s", "-Wall", "-Wextra", "-Werror", "-Wshadow"]
# The same compiler makes the same bytes, wherever the sources lie.
FLAGS += ["-Wl,--build-id=none"]
NATIVE = ["musl-gcc", "gcc", "cc", "clang"]
CROSS = {"aarch64": "aarch64-linux-gnu-gcc", "x86_64": "x86_64-linux-gnu-gcc"}
ALIASES = {"amd64": "x86_64", "arm64": "aarch64"}


class CompileError(RuntimeError):
    """No compiler could build tesgate-exec; the message holds what each of them said."""


def is_release() -> bool:
    """Whether the wheel is to be given away: then it serves hosts of every architecture."""
    return os.environ.get("TESGATE_RELEASE", "") not in ("", "0")


def native_machine() -> str:
    word = platform.machine().lower()
    return ALIASES.get(word, word)


def compilers(machine: str) -> list[list[str]]:
    """The commands to try for `machine`, in order; those that are not installed are left out."""
    named = [shlex.split(os.environ["CC"])] if os.environ.get("CC") else []
    if platform.system() == "Linux" and machine == native_machine():
        candidates = named + [[name] for name in NATIVE]
    else:
        candidates = [[CROSS[machine]]] if machine in CROSS else []
    return [command for command in candidates if command and shutil.which(command[0])]


def compile_exec(machine: str, target: Path, root: Path = ROOT) -> Path:
    """Compile for `machine` into `target`, unless that is newer than every source and no release is made of it.

    Raises `CompileError`.
    """
    sources = sorted((root / FOLDER).glob("*.c"))
    headers = sorted((root / FOLDER).glob("*.h"))
    version_file = root / "src/tesgate/__init__.py"
    newest = max(path.stat().st_mtime for path in [*sources, *headers, version_file, Path(__file__)])
    if target.is_file() and target.stat().st_mtime > newest and not is_release():  # another compiler may have made it
        return target
    match = re.search(r'^__version__ = "([^"]+)"', version_file.read_text(encoding="utf-8"), re.MULTILINE)
    if match is None:
        raise CompileError(f"{version_file} holds no __version__")
    target.parent.mkdir(parents=True, exist_ok=True)
    said = []
    for command in compilers(machine):
        # A name of its own, then a rename: two builds at once must not see each other's halves.
        descriptor, scratch = tempfile.mkstemp(prefix=target.name + ".", dir=target.parent)
        os.close(descriptor)
        try:
            names = [path.relative_to(root).as_posix() for path in sources]
            line = [*command, *FLAGS, f'-DVERSION="{match[1]}"', *names, "-o", str(Path(scratch).absolute())]
            done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=root)
            if done.returncode == 0:
                os.chmod(scratch, 0o755)
                os.replace(scratch, target)
                return target
            said.append(f"$ {shlex.join(line)}\n{done.stderr.strip()}")
        finally:
            Path(scratch).unlink(missing_ok=True)
    raise CompileError(
        f"tesgate-exec could not be compiled for {machine}. It needs a C compiler with a static libc: install "
        "musl-tools, or gcc and libc6-dev, or name a compiler in CC.\n" + ("\n".join(said) or "No compiler was found.")
    )


def build(root: Path = ROOT) -> list[Path]:
    """Compile for this machine and, where a cross compiler is installed, for the others. Raises `CompileError`."""
    folder = root / FOLDER / "bin"
    machines = [native_machine()] if platform.system() == "Linux" else []
    machines += [name for name in CROSS if name not in machines and (is_release() or compilers(name))]
    if missing := [name for name in machines if name in CROSS and is_release() and not compilers(name)]:
        packages = " ".join(f"gcc-{name.replace('_', '-')}-linux-gnu" for name in missing)
        raise CompileError(
            f"A release wheel holds tesgate-exec for {' and '.join(CROSS)}, and there is no compiler for "
            f"{' and '.join(missing)} here: install it (apt-get install {packages})."
        )
    if not machines:
        raise CompileError(f"tesgate-exec runs on Linux; to compile it here install {' or '.join(CROSS.values())}.")
    return [compile_exec(name, folder / f"tesgate-exec-{name}", root) for name in machines]


def wheel_platform() -> str:
    """The platform of the wheel. A static binary needs no libc, so on Linux any glibc or musl will do."""
    if platform.system() == "Linux":
        machine = native_machine()
        return f"manylinux_2_17_{machine}.manylinux2014_{machine}.musllinux_1_1_{machine}"
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


class ExecBuildHook(Hook):
    """Hatchling calls it for each wheel, editable ones too."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and tell Hatchling about the binaries and the platform."""
        root = Path(self.root)
        build_data["pure_python"] = False
        # The binaries of a release are data for any host of a pool, whatever the machine is that it is installed on.
        build_data["tag"] = "py3-none-any" if is_release() else f"py3-none-{wheel_platform()}"
        for path in build(root):
            if version != "editable":  # an editable installation finds it beside the sources
                build_data["force_include"][str(path)] = f"tesgate/runner/exec/bin/{path.name}"


if __name__ == "__main__":
    try:
        for built in build():
            print(f"{built.relative_to(ROOT)} {built.stat().st_size}")
    except CompileError as error:
        sys.exit(str(error))
