"""Removes what an attempt left on FTP servers under temporary names."""

from __future__ import annotations

import ftplib
import json
import logging
import threading
from functools import partial
from typing import Callable, Dict, List, Sequence, Set, Tuple

from .faults import StagingError, Stopped
from .ftpattempt import FtpAttempt
from .ftpcontrol import Reply
from .ftpfaults import FtpRefused, code_of
from .ftprename import TRACE, aside_name, joined, parent_of
from .ftpsession import FtpSession
from .ftptree import list_directory
from .ftpurl import FtpUrl
from .paths import is_temporary
from .threads import Stop

__all__ = ["discard_left"]

_log = logging.getLogger(__name__)

_SECONDS = 60.0
_TRIES = 3


def discard_left(
    attempt: FtpAttempt, belongs: Callable[[str, str], Tuple[FtpUrl, str]], traces: Sequence[str], stop: Stop
) -> List[str]:
    """See `Sink.discard`. `belongs`: the output that a path of a server is of, and its URL; raises `StagingError`."""
    found: Dict[Tuple[str, str], Tuple[FtpUrl, str, Dict[str, Set[str]], Dict[str, str]]] = {}
    of: Dict[Tuple[str, str], List[str]] = {}
    left: List[str] = []
    for trace in traces:
        if not trace.startswith(TRACE):
            continue
        server, path, name, *more = json.loads(trace[len(TRACE) :])
        habits = more[0] if more else {}  # none in journals of runners before this one
        try:
            spot, url = belongs(server, path)
        except StagingError:
            continue
        if is_temporary(name):
            _, _, names, known = found.setdefault((server, url), (spot, url, {}, {}))
            names.setdefault(path, set()).add(name)
            required = "required" in (known.get("tls"), habits.get("tls"))
            known.update(habits, **({"tls": "required"} if required else {}))
            of.setdefault((server, url), []).append(trace)
    if not found:
        return left
    limit = Stop()
    wish = stop.add(limit.set)
    timer = threading.Timer(_SECONDS, limit.set)
    timer.daemon = True
    timer.start()
    try:
        for key, (spot, url, names, known) in found.items():
            try:
                attempt.act(
                    spot,
                    url,
                    "temporary files",
                    partial(_remove, names=names),
                    limit,
                    tries=_TRIES,
                    alone=known,
                )
            except (StagingError, Stopped) as error:
                _log.warning("temporary files of outputs may be left at %s: %s", spot.server, error)
                if isinstance(error, Stopped) or error.transient:
                    left += of[key]
    finally:
        timer.cancel()
        stop.remove(wish)
        attempt.close()
    return left


def _remove(session: FtpSession, *, names: Dict[str, Set[str]]) -> None:
    """Remove names from the directories of their files and from all above: where they were put, it is not known.

    Where a directory is there but cannot be listed whole, they are removed without knowing whether they are in it.
    Raises the first fault that may pass, or else the first, when all directories have been looked at.
    """
    faults: List[Exception] = []
    wanted: Dict[str, Set[str]] = {}
    asides: Dict[str, Dict[str, str]] = {}
    for path, some in names.items():
        target = session.absolute(path)
        here = parent_of(target)
        asides.setdefault(here, {}).update((aside_name(one), target.rpartition("/")[2]) for one in some)
        while True:
            wanted.setdefault(here, set()).update(some)
            if here == "/":
                break
            here = parent_of(here)
    for directory in sorted(wanted, key=len, reverse=True):
        put_aside = asides.get(directory, {})
        known = {*wanted[directory], *put_aside, *put_aside.values()}
        try:
            found = {one.name for one in list_directory(session, directory) if one.name in known}
        except (FtpRefused, ftplib.error_perm):
            if session.broken:
                raise
            if session.enter(directory):
                faults += _remove_unlisted(session, directory, wanted[directory], put_aside)
            continue
        except ftplib.error_temp as error:
            if session.broken:
                raise
            faults.append(error)
            continue
        for name in sorted(found & wanted[directory]):
            session.voidcmd("DELE " + joined(directory, name))
        for aside in sorted(found & set(put_aside)):
            # What was there before gets its name again, if nothing else has it by now.
            if put_aside[aside] in found:
                session.voidcmd("DELE " + joined(directory, aside))
            else:
                session.sendcmd("RNFR " + joined(directory, aside))
                session.voidcmd("RNTO " + joined(directory, put_aside[aside]))
                found.add(put_aside[aside])
    if faults:
        raise next((one for one in faults if isinstance(one, ftplib.error_temp)), faults[0])


def _remove_unlisted(
    session: FtpSession, directory: str, names: Set[str], put_aside: Dict[str, str]
) -> List[Exception]:
    """Remove names from a directory of which nobody knows what is in it. Returns the faults, but for what is not there.

    `put_aside`: names that get another one again, see `remove_left`.
    """
    removed = _asked(session, ["DELE " + joined(directory, name) for name in sorted(names)])
    faults: List[Exception] = [one for one in removed if not isinstance(one, str) and code_of(one) != 550]
    asides = sorted(put_aside)
    for aside, reply in zip(asides, _asked(session, ["SIZE " + joined(directory, aside) for aside in asides])):
        if isinstance(reply, str):
            target = joined(directory, put_aside[aside])
            (taken,) = session.ask_together(["SIZE " + target])
            try:
                if isinstance(taken, str):
                    session.voidcmd("DELE " + joined(directory, aside))
                elif code_of(taken) == 550:
                    session.sendcmd("RNFR " + joined(directory, aside))
                    session.voidcmd("RNTO " + target)
                else:
                    raise taken
            except (ftplib.error_perm, ftplib.error_temp) as error:
                if session.broken:
                    raise
                faults.append(error)
        elif code_of(reply) != 550:
            faults.append(reply)
    return faults


def _asked(session: FtpSession, commands: Sequence[str]) -> List[Reply]:
    """Return the replies to commands, together where the server takes them so. Raises what breaks the session."""
    if session.can_pipeline():
        return session.ask_together(commands)
    return [reply for command in commands for reply in session.ask_together([command])]
