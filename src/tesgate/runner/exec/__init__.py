"""The static C program that carries out one step, and where its binary for a machine is.

The sources lie beside this file; ``exec.h`` says what each does and which exit codes there are. The binaries are
built by the wheel's build hook (``python hatch_build.py`` in the source tree) into ``bin/tesgate-exec-<machine>``.
"""

from __future__ import annotations

import atexit
import functools
import os
import pkgutil
import platform
import re
import shutil
import tempfile
from pathlib import Path
from typing import Optional

__all__ = ["PROTOCOL", "ExecMissing", "binary", "content", "machine"]

PROTOCOL = 2
"""Of the options and the result, as ``main.c`` says it: a binary of another one was built from other sources."""


class ExecMissing(RuntimeError):
    """This installation holds no exec for the machine, or another one; the message says how to build it."""


def machine(name: Optional[str] = None) -> str:
    """The kernel's word for an architecture (``x86_64``, ``aarch64``); by default this machine's."""
    word = (name or platform.machine()).lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(word, word)


def binary(name: Optional[str] = None) -> Path:
    """An executable file of the exec for machine `name` (default: this one).

    From a zipapp it is extracted into a private directory that lives as long as this process; whoever needs it
    longer copies it (an agent does, into its scratch). Raises `ExecMissing`.
    """
    word = machine(name)
    path = Path(__file__).parent / "bin" / ("tesgate-exec-" + word)
    if path.is_file():
        content(word)
        return path
    return _extracted(word)


def content(name: Optional[str] = None) -> bytes:
    """The bytes of the exec for machine `name` (default: this one). Raises `ExecMissing`."""
    word = machine(name)
    try:
        data = pkgutil.get_data(__name__, "bin/tesgate-exec-" + word)
    except OSError:
        data = None
    if not data:
        raise ExecMissing(
            "There is no tesgate-exec for %s in %s: run 'python hatch_build.py' in the source tree (it needs a C "
            "compiler with a static libc, such as musl-gcc or gcc), or install a wheel that holds it."
            % (word, Path(__file__).parent)
        )
    known = re.search(rb"tesgate-exec [^\0\n]{1,64} protocol ([0-9]{1,6})\0", data)
    if known is None or int(known.group(1)) != PROTOCOL:
        raise ExecMissing(
            "The tesgate-exec for %s in %s was built from other sources than this runner's: run 'python "
            "hatch_build.py' in the source tree again." % (word, Path(__file__).parent)
        )
    return data


@functools.cache
def _extracted(word: str) -> Path:
    data = content(word)
    directory = tempfile.mkdtemp(prefix="tesgate-exec-")
    atexit.register(shutil.rmtree, directory, True)
    path = Path(directory) / ("tesgate-exec-" + word)
    descriptor = os.open(str(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o755)
    with open(descriptor, "wb") as file:
        file.write(data)
    os.chmod(str(path), 0o755)
    return path
