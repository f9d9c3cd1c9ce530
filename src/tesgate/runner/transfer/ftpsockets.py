"""What an FTP session's connections wait for: bounded by the kernel, and ended by a stop."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

from .threads import Stop

__all__ = ["Watch", "be_patient"]


def be_patient(sock: socket.socket, seconds: float) -> None:
    """Have the kernel bound each wait of a connection in the clear, which then ends with BlockingIOError.

    A timeout of Python's costs a poll before every call; with several threads each is a turn of the interpreter's lock.
    """
    whole = max(seconds, 0.001)
    span = struct.pack("@ll", int(whole), int(whole % 1 * 1_000_000))
    sock.settimeout(None)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, span)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, span)


class Watch:
    """Shuts a connection down when a stop comes, from whichever thread, without touching its TLS state.

    Unlike `connect.Guard` it has no descriptor of its own: there is one for each small file, and Python's `dup` would
    turn the kernel's patience off.
    """

    def __init__(self, sock: socket.socket, stop: Stop) -> None:
        self._lock = threading.Lock()
        self._sock = sock
        self._open = True
        self._stop = stop
        self._number = stop.add(self._shutdown)

    def follow(self, sock: socket.socket) -> None:
        """The connection is another object now, which may have been stopped meanwhile. Raises `Stopped`."""
        with self._lock:
            self._sock = sock
        self._stop.check()

    def _shutdown(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            if self._open:
                # Not the method of a TLS socket, which would forget its state under the thread that uses it.
                socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of it. Only then may it be closed."""
        self._stop.remove(self._number)
        with self._lock:
            self._open = False
