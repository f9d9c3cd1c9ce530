"""Sends one file, or one part of it, to an object store by presigned requests: tried again, renewed, verified."""

from __future__ import annotations

import os
from typing import Callable, Dict, Optional, Sequence, Union

from ..access import Fault
from .connect import HttpSettings
from .faults import StagingError
from .s3access import Presigned
from .s3faults import RENEWAL_PAUSE, Expired, Pauses, Trouble, refusal
from .s3http import Connections, NotTrusted
from .s3sums import Digest, Sum
from .s3wire import Answer, Broken, FilePart
from .threads import Stop

__all__ = ["Changed", "NoLease", "Sender", "checked", "is_checked"]

_BUFFER = 256 << 10
_RENEWALS = 3


class NoLease(Exception):
    """The gateway signs nothing without the publish lease."""


class Changed(Exception):
    """The file is not the one that was looked at."""


def checked(handle: int, offset: int, size: int, sums: Sequence[Sum], stop: Stop) -> None:
    """Compute checksums of bytes of an open file. Raises `Changed` where it has become shorter, `Stopped`, OSError."""
    room = memoryview(bytearray(min(_BUFFER, size or 1)))
    end = offset + size
    while offset < end:
        stop.check()
        count = os.preadv(handle, [room[: min(len(room), end - offset)]], offset)
        if not count:
            raise Changed
        for each in sums:
            each.update(room[:count])
        offset += count


def is_checked(signed_headers: Dict[str, str]) -> bool:
    """Say whether the store compares the body with a checksum itself."""
    return any(name.lower().startswith("x-amz-checksum-") for name in signed_headers) or any(
        name.lower() == "content-md5" for name in signed_headers
    )


class Sender:
    """Sends bodies with the connections of one stop. Safe in many threads."""

    def __init__(
        self,
        *,
        connections: Connections,
        settings: HttpSettings,
        stop: Stop,
        lease: Optional[Callable[[], float]] = None,
    ) -> None:
        """`lease`: seconds after which nothing may be sent any more."""
        self._lease = lease
        self._connections = connections
        self._settings = settings
        self._stop = stop

    def send(
        self,
        shown: str,
        body: Union[bytes, FilePart],
        first: Presigned,
        renew: Callable[[], Union[Presigned, Fault]],
        check: Callable[[], None],
    ) -> str:
        """PUT a body; returns its ETag. `shown` names the output; `renew` gives another request for the same.

        Raises `StagingError`, `Stopped`, `NoLease`, and what `check` raises, which is called between pieces.
        """
        pauses = Pauses(self._settings, self._stop)
        renewals = 0
        used = first
        while True:
            check()
            if not used.is_fresh:
                used = self._renewed(shown, renew)
            try:
                return self._once(used, body, check)
            except Broken as error:
                trouble = Trouble(error.why)
            except Trouble as error:
                trouble = error
            except Expired as error:
                renewals += 1
                if renewals > _RENEWALS:
                    raise StagingError(
                        "output %s could not be stored: %s." % (shown, error.why), transient=error.renewing
                    ) from None
                if renewals > 1 and error.renewing:
                    self._stop.wait(RENEWAL_PAUSE)
                used = self._renewed(shown, renew)
                continue
            except NotTrusted:
                raise StagingError(
                    "output %s could not be stored: the certificate of the store is not accepted; "
                    "give the agent its authority (--ca-file)." % shown
                ) from None
            except StagingError as error:
                raise StagingError(
                    "output %s could not be stored: %s." % (shown, error.sentence), transient=error.transient
                ) from None
            if not pauses.after(trouble):
                raise StagingError(
                    "output %s could not be stored: %s (tried %d times)." % (shown, trouble.why, pauses.failures),
                    transient=True,
                )

    @staticmethod
    def _renewed(shown: str, renew: Callable[[], Union[Presigned, Fault]]) -> Presigned:
        made = renew()
        if isinstance(made, Presigned):
            return made
        raise fault_of(shown, made)

    def _once(self, used: Presigned, body: Union[bytes, FilePart], check: Callable[[], None]) -> str:
        signed = used.signed
        with self._connections.request("PUT", signed.url, signed.headers, body, check, self._lease) as answer:
            if answer.status not in (200, 201, 204):
                raise refusal(answer)
            etag = answer.headers.get("etag", "")
            encrypted = _is_encrypted(answer)
            _drained(answer)
        if not encrypted and not is_checked(used.signed.headers):
            self._compare(etag, body)
        return etag

    def _compare(self, etag: str, body: Union[bytes, FilePart]) -> None:
        """Where the store checks nothing, its ETag is the MD5 of what it has (or, encrypted, of something else)."""
        plain = etag.strip('"').lower()
        if len(plain) != 32 or not all(char in "0123456789abcdef" for char in plain):
            return
        digest = Digest("md5")
        if isinstance(body, bytes):
            digest.update(body)
        else:
            checked(body.handle, body.offset, body.size, [digest], self._stop)
        if digest.hex() != plain:
            raise Trouble("the store has other bytes than were sent")


def fault_of(shown: str, fault: Fault) -> Exception:
    """The error of an output that has no request."""
    if fault.kind == "lease":
        return NoLease()
    return StagingError(
        "output %s could not be stored: %s" % (shown, fault.sentence), transient=fault.kind == "passing"
    )


def _is_encrypted(answer: Answer) -> bool:
    """Say whether what was stored is encrypted in a way that makes of its ETag no MD5, though it looks like one.

    https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html: by SSE-C and SSE-KMS; SSE-S3 (AES256) leaves it.
    """
    return answer.headers.get("x-amz-server-side-encryption", "").startswith("aws:kms") or (
        "x-amz-server-side-encryption-customer-algorithm" in answer.headers
    )


def _drained(answer: Answer) -> None:
    """Read what is left of an answer, so that its connection can be used again; it is short or empty."""
    room = memoryview(bytearray(4096))
    for _ in range(64):
        if not answer.read_into(room):
            return
