"""What FTP servers answer and how connections end, as half a sentence each, and whether trying again can help."""

from __future__ import annotations

import ftplib
import re
import socket
import ssl
from typing import Optional, Tuple

from .connect import Unresolved
from .policy import AddressRefused
from .urls import printable

__all__ = ["FtpPassing", "FtpRefused", "code_of", "explain", "is_full"]

_CODES = {
    421: ("the server takes no more sessions now, or ends this one (421)", True),
    425: ("the server could not open the data connection (425)", True),
    426: ("the server broke the transfer off (426)", True),
    430: ("the server did not take the user and its password (430); check the credentials", False),
    434: ("the server cannot be reached behind its gateway (434)", True),
    450: ("the server says that the file is busy (450)", True),
    451: ("the server had an error of its own (451)", True),
    452: ("the server has no room left now (452)", True),
    522: ("the server refused the TLS of the data connection (522)", False),
    530: ("the server did not take the user and its password (530); check the credentials", False),
    532: ("the server asks for an account besides the user (532), which is not served", False),
    534: ("the server refused TLS (534)", False),
    550: ("the server says that there is no such file, or that this user may not use it (550)", False),
    551: ("the server cannot use this kind of file (551)", False),
    552: ("the user's room on the server is used up (552); free some or ask for more", False),
    553: ("the server does not allow this name (553); choose another one, or check who may write there", False),
}
_FULL_HOUSE = re.compile(r"too many|maximum|limit|already connected|try (?:again )?later", re.IGNORECASE)
_WANTS_TLS = re.compile(r"encrypt|\b(?:TLS|SSL|AUTH)\b", re.IGNORECASE)


class FtpPassing(Exception):
    """A fault that another try may not meet; `why` is half a sentence."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class FtpRefused(Exception):
    """A fault that another try would meet again; `why` is half a sentence."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


def code_of(error: BaseException) -> int:
    """Return the code of a server's answer; 0 for what is none."""
    if not isinstance(error, (ftplib.error_temp, ftplib.error_perm)):
        return 0
    found = re.match(r"[0-9]{3}", str(error))
    return int(found.group()) if found else 0


def is_full(error: BaseException) -> bool:
    """Say whether a server refused a session because it has too many."""
    code = code_of(error)
    return code == 421 or (code == 530 and _FULL_HOUSE.search(str(error)) is not None)


def explain(error: BaseException, secret: Optional[str] = None) -> Optional[Tuple[str, bool]]:
    """Say what happened and whether it may pass; None for an exception that is no fault of a transfer.

    `secret` is taken out of what the server said.
    """
    if isinstance(error, FtpPassing):
        return error.why, True
    if isinstance(error, FtpRefused):
        return error.why, False
    code = code_of(error)
    if code:
        return _answer(error, code, secret)
    if isinstance(error, Unresolved):
        return "the name %s could not be resolved" % error.host, error.passing
    if isinstance(error, AddressRefused):
        return "%s, which is refused; an administrator can allow it (allowed_hosts)" % error.why, False
    if isinstance(error, ssl.SSLCertVerificationError):
        why = "the server's certificate was not accepted (%s)" % printable(error.verify_message or "it does not fit")
        return why + "; its authority can be named in the gateway's credentials (ca_file)", False
    if isinstance(error, ssl.SSLError):
        return "the TLS connection failed (%s)" % (error.reason or "cut"), True
    if isinstance(error, (ftplib.error_proto, ftplib.error_reply, ftplib.Error, UnicodeError)):
        return "the server does not speak FTP as it should", True
    if isinstance(error, socket.timeout):
        return "the server fell silent", True
    if isinstance(error, EOFError):
        return "the server closed the connection", True
    if isinstance(error, OSError):
        return "the connection failed (%s)" % (error.strerror or type(error).__name__), True
    return None


def _answer(error: BaseException, code: int, secret: Optional[str]) -> Tuple[str, bool]:
    text = str(error)
    why, passing = _CODES.get(code, ("the server answered %d" % code, 400 <= code < 500))
    if code in (530, 430, 421):
        # Not its words: they may hold what was sent. But some say with 530 that they are full.
        if code == 530 and is_full(error):
            return "the server takes no more sessions now (530)", True
        if code == 530 and _WANTS_TLS.search(text):
            return "the server wants TLS (530); the gateway's credential for it can ask for that (tls)", False
        return why, passing
    words = " ".join(re.sub(r"[^\x20-\x7e]", " ", text.splitlines()[0][4:]).split())[:80] if len(text) > 4 else ""
    if secret and secret in words:
        words = ""
    return ("%s: %s" % (why, words.rstrip(".")) if words else why), passing
