"""Tar streams of an engine, read and written by hand: nothing in a tar is believed, no link is ever followed."""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from contextlib import contextmanager, suppress
from typing import IO, Iterator, List, Tuple

__all__ = ["UnsafePath", "extract", "open_directory", "pack", "parts_of"]

_DEEPEST = 100
_CHUNK = 1 << 18
_ZEROS = bytes(_CHUNK)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class UnsafePath(ValueError):
    """A path that leads where it must not: above the root, through a link, or too deep."""


def parts_of(path: str) -> List[str]:
    """The components of `path`; raises `UnsafePath` for ``..``, NUL and more than 100 components."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in path or len(parts) > _DEEPEST:
        raise UnsafePath("%r is not a path below the root" % path[:200])
    return parts


@contextmanager
def open_directory(root: str, parts: List[str], *, create: bool) -> Iterator[int]:
    """A descriptor of ``root/parts``, opened component by component without following links.

    `create`: make what is missing. Raises `UnsafePath` where a component is a link or no directory, else `OSError`.
    """
    current = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts:
            if create:
                with suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=current)
            try:
                following = os.open(part, _DIRECTORY, dir_fd=current)
            except NotADirectoryError:
                raise UnsafePath("%r in %r is a link or no directory" % (part, "/".join(parts))) from None
            except OSError as error:
                if error.errno == errno.ELOOP:
                    raise UnsafePath("%r in %r is a link" % (part, "/".join(parts))) from None
                raise
            os.close(current)
            current = following
        yield current
    finally:
        os.close(current)


def extract(stream: IO[bytes], root: str, target: str) -> List[str]:
    """Write a tar stream below `root`, its single top entry becoming `root` + `target`; returns notes.

    Regular files, directories, symbolic links (as links) and hard links within the stream are made; whatever else is
    left out with a note. Permission bits are kept without set-uid, set-gid and sticky, and so that the owner can
    read; owners are kept where we are root. Existing files are replaced.
    """
    base = parts_of(target)
    if not base:
        raise UnsafePath("%r is not a path below the root" % target)
    notes: List[str] = []
    directories: List[Tuple[List[str], int]] = []
    with tarfile.open(fileobj=stream, mode="r|", errorlevel=0) as archive:
        while True:
            member = archive.next()
            if member is None:
                break
            archive.members.clear()  # type: ignore[attr-defined] # it would remember every entry of the stream
            try:
                inner = parts_of(member.name)[1:]
                place = base + inner
                if len(place) > _DEEPEST:
                    raise UnsafePath("%r is too deep" % member.name[:200])
                if member.isdir():
                    with open_directory(root, place, create=True) as here:
                        _own(member, here)
                    directories.append((place, member.mode & 0o777 | 0o700))
                    continue
                with open_directory(root, place[:-1], create=True) as parent:
                    _one(archive, member, root, base, parent, place[-1], notes)
            except UnsafePath as error:
                notes.append("Left out of the collected files: %s." % error)
    for place, mode in reversed(directories):
        with open_directory(root, place, create=False) as here:
            os.fchmod(here, mode)
    return notes


def _one(
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    root: str,
    base: List[str],
    parent: int,
    name: str,
    notes: List[str],
) -> None:
    if not (member.isreg() or member.issym() or member.islnk()):
        notes.append("Left out of the collected files: %r is a device, pipe or socket." % member.name[:200])
        return
    try:
        if stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
            raise UnsafePath("%r would replace a directory" % member.name[:200])
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        pass
    if member.issym():
        os.symlink(member.linkname, name, dir_fd=parent)
        if os.geteuid() == 0:
            os.chown(name, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
        return
    if member.islnk():
        # The name of the other entry is relative to the tar, whose top entry is ours: resolve it as we resolve names.
        other = base + parts_of(member.linkname)[1:]
        with open_directory(root, other[:-1], create=False) as elsewhere:
            os.link(other[-1], name, src_dir_fd=elsewhere, dst_dir_fd=parent, follow_symlinks=False)
        return
    source = archive.extractfile(member)
    assert source is not None
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, 0o600, dir_fd=parent)
    try:
        while True:
            chunk = source.read(_CHUNK)
            if not chunk:
                break
            if chunk == _ZEROS[: len(chunk)]:
                os.lseek(descriptor, len(chunk), os.SEEK_CUR)  # the engine has filled a hole: it becomes one again
            else:
                _write(descriptor, chunk)
        os.ftruncate(descriptor, member.size)
        _own(member, descriptor)
        os.fchmod(descriptor, member.mode & 0o777 | 0o600)
        os.utime(descriptor, (member.mtime, member.mtime))
    finally:
        os.close(descriptor)


def _own(member: tarfile.TarInfo, descriptor: int) -> None:
    if os.geteuid() == 0:
        os.fchown(descriptor, member.uid, member.gid)


def _write(descriptor: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(descriptor, view) :]


def pack(root: str, paths: List[str]) -> Iterator[bytes]:
    """A tar stream of ``root + path`` for each of `paths` (those that exist), named relative to `root`.

    Only what is listed is in it, and what lies below; parents are not, so that an image's own directories stay as
    they are. Raises `UnsafePath` where the way to a path leads through a link.
    """
    for path in paths:
        parts = parts_of(path)
        if not parts:
            continue
        try:
            with open_directory(root, parts[:-1], create=False) as parent:
                yield from _pack_one(parent, parts[-1], "/".join(parts), 0)
        except FileNotFoundError:
            continue
    yield b"\0" * (2 * tarfile.BLOCKSIZE)


def empty_directories(paths: List[str]) -> Iterator[bytes]:
    """A tar stream of empty directories that everybody may write, in the order given."""
    for path in paths:
        info = tarfile.TarInfo("/".join(parts_of(path)))
        info.type, info.mode = tarfile.DIRTYPE, 0o777
        yield _head(info)
    yield b"\0" * (2 * tarfile.BLOCKSIZE)


def _pack_one(parent: int, name: str, shown: str, depth: int) -> Iterator[bytes]:
    found = os.lstat(name, dir_fd=parent)
    info = tarfile.TarInfo(shown)
    info.mode, info.uid, info.gid = found.st_mode & 0o777, found.st_uid, found.st_gid
    info.mtime = int(found.st_mtime)
    if stat.S_ISLNK(found.st_mode):
        info.type, info.linkname = tarfile.SYMTYPE, os.readlink(name, dir_fd=parent)
        yield _head(info)
    elif stat.S_ISDIR(found.st_mode) and depth < _DEEPEST:
        info.type = tarfile.DIRTYPE
        yield _head(info)
        here = os.open(name, _DIRECTORY, dir_fd=parent)
        try:
            for inner in sorted(os.listdir(here)):
                yield from _pack_one(here, inner, shown + "/" + inner, depth + 1)
        finally:
            os.close(here)
    elif stat.S_ISREG(found.st_mode):
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            info.size = os.fstat(descriptor).st_size
            yield _head(info)
            yield from _content(descriptor, info.size)
        finally:
            os.close(descriptor)


def _head(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _content(descriptor: int, size: int) -> Iterator[bytes]:
    """Exactly `size` bytes, padded to whole blocks, whatever happens to the file meanwhile."""
    left = size
    while left > 0:
        chunk = os.read(descriptor, min(_CHUNK, left)) or b"\0" * min(_CHUNK, left)
        left -= len(chunk)
        yield chunk
    rest = size % tarfile.BLOCKSIZE
    if rest:
        yield b"\0" * (tarfile.BLOCKSIZE - rest)
