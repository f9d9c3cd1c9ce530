"""Stores outputs in two phases: bytes under temporary names, then renames under the publish lease."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from dataclasses import dataclass
from typing import Callable, List, Optional, Sequence, Set, Tuple

from ..plan import Output
from .base import Entry, Item
from .copying import Changed, Copier, copied_mode
from .faults import LeaseLost, PathRefused, StagingError, os_fault, passing
from .paths import RootDir, Roots, is_temporary, open_dir, temporary_name
from .threads import Stop, retrying
from .urls import local_path, printable
from .view import View

__all__ = ["Storing"]

_log = logging.getLogger(__name__)

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass
class LocalItem(Item):
    """One file (or, without `temporary`, one directory) and the deepest directory of its target that exists."""

    root: RootDir
    parts: List[str]
    """Of that directory, below `root`, free of links. The temporary file lies here, so that nothing is left behind."""
    missing: List[str]
    """What is missing below it; for a file the last one is its name, be it missing or not."""
    temporary: str = ""

    @property
    def trace(self) -> Optional[str]:
        """The absolute path of the temporary file on this host."""
        return "/".join([self.root.real.rstrip("/"), *self.parts, self.temporary]) if self.temporary else None


class Storing:
    """The sink of the agent's roots."""

    def __init__(self, *, roots: Roots, copier: Copier, umask: int, link: bool, durable: bool) -> None:
        self._roots = roots
        self._copier = copier
        self._umask = umask
        self._link = link
        self._durable = durable

    def target(self, output: Output) -> str:
        """An absolute path on this host."""
        return local_path(output.url)

    def place_directory(self, entry: Entry) -> LocalItem:
        """Find where it goes. Raises `StagingError`."""
        return self._place(entry, directory=True)

    def place(self, entry: Entry, tag: str, number: int) -> LocalItem:
        """Find where it goes. Raises `StagingError`; nothing is written yet."""
        item = self._place(entry, directory=False)
        item.temporary = temporary_name(tag, number)
        return item

    def _place(self, entry: Entry, *, directory: bool) -> LocalItem:
        # A directory is found through a name in it, so that a link to a directory is followed.
        path = entry.target + "/.tesgate" if directory else entry.target
        try:
            with self._roots.find(path, write=True) as found:
                if found.info is None:
                    missing = found.missing[:-1] if directory else found.missing
                    return LocalItem(entry, found.root, found.parts, missing)
                if directory:
                    return LocalItem(entry, found.root, found.parts[:-1], [])
                if stat.S_ISDIR(found.info.st_mode):
                    raise PathRefused("is a directory, and a file is to be stored there; remove it or change the url")
                return LocalItem(entry, found.root, found.parts[:-1], [found.parts[-1]])
        except PathRefused as error:
            raise _refused(entry, error.why) from None
        except NotADirectoryError:
            raise _refused(entry, "leads through a file as if it were a directory") from None
        except OSError as error:
            raise os_fault(error, "output %s could not be stored" % printable(entry.path)) from error

    def put(self, item: Item, view: View, stop: Stop) -> None:
        """Bring one file's bytes to its temporary name. Raises `StagingError`, `Stopped`."""
        assert isinstance(item, LocalItem)
        shown = printable(item.entry.path)
        try:
            item.size = retrying(lambda: self._put(item, view, stop), stop)
        except Changed:
            raise StagingError(
                "output %s changed while it was stored: something still writes to it." % shown, transient=True
            ) from None
        except PathRefused as error:
            raise StagingError("output %s %s." % (shown, error.why)) from None
        except OSError as error:
            raise os_fault(error, "output %s could not be stored" % shown) from error

    def _put(self, item: LocalItem, view: View, stop: Stop) -> int:
        with view.opened(item.entry.node) as (parent, name, source):
            target_dir = _open(item.root, item.parts)
            try:
                _unlink(item.temporary, target_dir)
                mode = copied_mode(os.fstat(source).st_mode, 0o666 & ~self._umask)
                ours = view.is_ours(item.entry.node)
                if self._link and ours and self._adopt(parent, name, source, target_dir, item.temporary, mode):
                    if self._durable:
                        os.fsync(source)
                    return os.fstat(source).st_size
                handle = os.open(item.temporary, _NEW, 0o600, dir_fd=target_dir)
                try:
                    size = self._copier.copy(source, handle, stop)
                    os.fchmod(handle, mode)
                    if self._durable:
                        os.fsync(handle)
                finally:
                    os.close(handle)
                return size
            finally:
                os.close(target_dir)

    def _adopt(self, parent: int, name: str, source: int, target_dir: int, temporary: str, mode: int) -> bool:
        """Hard-link a file of our own scratch, which is as fast as a move: the scratch is deleted afterwards.

        Only a file that has no other name (two outputs must not become one file), no extended attributes, and that we
        can make ours: owner and mode become those that a copy would have.
        """
        info = os.fstat(source)
        user = os.geteuid()
        if info.st_nlink != 1 or info.st_dev != os.fstat(target_dir).st_dev or user not in (0, info.st_uid):
            return False
        try:
            if set(os.listxattr(source)) - {"security.selinux"}:
                return False  # capabilities, access lists and whatever else the task hung on it: a copy has none
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                return False
        try:
            shared = os.fstat(target_dir)
            group = shared.st_gid if shared.st_mode & stat.S_ISGID else os.getegid()
            if (info.st_uid, info.st_gid) != (user, group):
                os.fchown(source, user, group)
            os.fchmod(source, mode)
            os.link(name, temporary, src_dir_fd=parent, dst_dir_fd=target_dir, follow_symlinks=False)
        except OSError:
            return False
        made = os.stat(temporary, dir_fd=target_dir, follow_symlinks=False)
        if (made.st_dev, made.st_ino) == (info.st_dev, info.st_ino):
            return True
        _unlink(temporary, target_dir)
        return False

    def publish(
        self, directories: Sequence[Item], items: Sequence[Item], view: View, lease: Callable[[], float], stop: Stop
    ) -> None:
        """Make everything visible. Raises `LeaseLost` before the first thing that the lease does not cover any more.

        May be called again after that (with another lease): what is visible already is not touched again.
        """
        touched: Set[Tuple[str, Tuple[str, ...]]] = set()
        for some, act in ((directories, _make_directory), (items, _rename)):
            for item in some:
                assert isinstance(item, LocalItem)
                if not item.done:
                    self._visible(item, lease, stop, act)
                    if act is _rename:
                        touched.add((item.root.real, (*item.parts, *item.missing[:-1])))
        if self._durable:
            for real, parts in touched:
                self._sync(real, parts)

    def _visible(
        self, item: LocalItem, lease: Callable[[], float], stop: Stop, act: Callable[[LocalItem], None]
    ) -> None:
        stop.check()
        if lease() <= 0:
            raise LeaseLost("the publish lease ran out before %s was stored" % printable(item.entry.url))
        try:
            act(item)
        except (IsADirectoryError, NotADirectoryError, FileExistsError):
            raise _refused(item.entry, "has become a directory where a file is to be, or the reverse") from None
        except FileNotFoundError:
            raise StagingError(
                "output %s: its temporary file or its directory was removed by somebody before it was published."
                % printable(item.entry.path),
                transient=True,
            ) from None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise _refused(item.entry, "has become a symbolic link") from None
            raise os_fault(error, "output %s could not be stored" % printable(item.entry.path)) from error
        item.done = True

    @staticmethod
    def _sync(real: str, parts: Sequence[str]) -> None:
        try:
            handle = os.open("/".join([real, *parts]), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return  # removed by its owner in this moment: nothing is left to make durable
        try:
            os.fsync(handle)
        except OSError:
            return  # a file system that has no such thing for directories
        finally:
            os.close(handle)

    def discard(self, traces: Sequence[str], stop: Stop) -> List[str]:
        """Remove temporary files by their absolute paths; what is gone, or is not such a name, is left alone."""
        left: List[str] = []
        for path in traces:
            name = path.rpartition("/")[2]
            if not path.startswith("/") or not is_temporary(name):
                continue
            try:
                root, parts = self._roots.belongs(path)
                parent = _open(root, parts[:-1])
            except PathRefused:
                continue  # the root is not ours any more
            except OSError as error:
                if passing(error):
                    left.append(path)
                continue  # else the directory is gone
            try:
                _unlink(name, parent)
            except OSError as error:
                if passing(error):
                    _log.warning("the temporary file %s of an output is left for now: %s", path, error)
                    left.append(path)
                else:
                    _log.error("the temporary file %s of an output stays there, remove it by hand: %s", path, error)
            finally:
                os.close(parent)
        return left


def _refused(entry: Entry, why: str) -> StagingError:
    return StagingError("output %s: its url %s %s." % (printable(entry.path), printable(entry.url), why))


def _open(root: RootDir, parts: Sequence[str]) -> int:
    base = root.open()
    try:
        return open_dir(base, parts)
    finally:
        os.close(base)


def _make(root: RootDir, parts: Sequence[str], missing: Sequence[str]) -> int:
    """Open a directory, making what is missing with the modes that the umask leaves."""
    here = _open(root, parts)
    for name in missing:
        try:
            with contextlib.suppress(FileExistsError):
                # made by another output, or by somebody else: opened below, never through a link
                os.mkdir(name, 0o777, dir_fd=here)
            inner = open_dir(here, [name])
        finally:
            os.close(here)
        here = inner
    return here


def _make_directory(item: LocalItem) -> None:
    os.close(_make(item.root, item.parts, item.missing))


def _rename(item: LocalItem) -> None:
    base = _open(item.root, item.parts)
    try:
        final = _make(item.root, item.parts, item.missing[:-1])
        try:
            os.rename(item.temporary, item.missing[-1], src_dir_fd=base, dst_dir_fd=final)
        finally:
            os.close(final)
        # Both names of one file (a second run after a crash): rename then does nothing, and leaves both.
        _unlink(item.temporary, base)
    finally:
        os.close(base)


def _unlink(name: str, parent: int) -> None:
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return
