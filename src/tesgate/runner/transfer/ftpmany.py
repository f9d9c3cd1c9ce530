"""Many small files in one session: as long as nothing is out of the ordinary, with few round trips for each.

What these leave undone, and all that goes wrong, is for whoever does the files one by one.
"""

from __future__ import annotations

import ftplib
import os
from typing import Callable, Iterator, List, Sequence, Tuple

from .ftpdata import Progress, send
from .ftpfaults import FtpPassing
from .ftprename import FtpItem, between, joined
from .ftpsession import FtpSession
from .view import View

__all__ = ["alike", "rename_many", "send_many"]


def alike(items: Sequence[FtpItem]) -> Iterator[List[FtpItem]]:
    """Cut into runs of items that one session can serve."""
    run: List[FtpItem] = []
    for item in items:
        if run and (run[-1].spot.server, run[-1].url) != (item.spot.server, item.url):
            yield run
            run = []
        run.append(item)
    if run:
        yield run


def send_many(
    session: FtpSession, items: Sequence[FtpItem], view: View, beside: Callable[[FtpSession, FtpItem], str]
) -> None:
    """Send files under their temporary names, then ask for all sizes at once; what is right becomes `stored`."""
    sent: List[Tuple[FtpItem, str, int]] = []
    try:
        for item in items:
            item.beside = item.beside or beside(session, item)
            path = joined(item.beside, item.temporary)
            with view.opened(item.entry.node) as (_, _, source):
                before = os.fstat(source)
                send(session, path, source, Progress(total=before.st_size))
                after = os.fstat(source)
            if session.broken:
                raise FtpPassing("the server did not say that it has the file")
            if (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns):
                sent.append((item, path, before.st_size))
    finally:
        # Also what came before the one that failed.
        if not session.broken and not session.stop.is_set():
            for (item, _, size), there in zip(sent, session.lengths([path for _, path, _ in sent])):
                if there == size:
                    item.size, item.stored = size, True


def rename_many(session: FtpSession, items: Sequence[FtpItem], covered: Callable[[], None]) -> bool:
    """Rename files whose directories are there; what is answered well becomes `done`. False: the server refused one.

    The first half of each rename goes out with the second half of the one before it: it changes nothing, so that the
    lease is looked at when it was answered, right before the half that does.
    """
    ready = False
    for item, after in zip(items, (*items[1:], None)):
        if not ready:
            covered()
            if session.sendcmd("RNFR " + joined(item.beside, item.temporary))[:1] != "3":
                return True
        between(session, covered)
        item.renaming = True
        ahead = [] if after is None else ["RNFR " + joined(after.beside, after.temporary)]
        session.put_together(["RNTO " + session.absolute(item.path), *ahead])
        refused = False
        try:
            item.done = session.getresp()[:1] == "2"
        except (ftplib.error_perm, ftplib.error_temp):
            if session.broken:
                raise
            item.renaming, refused = False, True
        try:
            ready = after is not None and session.getresp()[:1] == "3"
        except (ftplib.error_perm, ftplib.error_temp):
            ready = False
        if not item.done or (after is not None and not ready):
            # Some take nothing but the second half after the first.
            session.broken = session.broken or ready
            return not refused
    return True
