"""The gateway's own TLS: its certificate, read again when the file changes, without losing a connection."""

from __future__ import annotations

import ssl
from pathlib import Path

import anyio.to_thread
import structlog

from tesgate.config import ServerSettings
from tesgate.errors import ConfigError

__all__ = ["Certificate"]

log = structlog.get_logger(__name__)


class Certificate:
    """A TLS context that follows its files. Connections that are open keep what they began with."""

    def __init__(self, *, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        """Raises `ConfigError` where the files cannot be used."""
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._seen = self._stamp()
        self._refused: object = None
        try:
            self._context = self._loaded()
        except _UNUSABLE as error:
            raise ConfigError(
                f"server.tls_certificate: {certificate} with the key {key} cannot be used ({_why(error)}); both must "
                "be PEM, belong together, and be readable for this user"
            ) from None

    @classmethod
    def of(cls, settings: ServerSettings) -> Certificate | None:
        """As the settings say; None: plain HTTP. Raises `ConfigError`."""
        if settings.tls_certificate is None or settings.tls_key is None:
            return None
        return cls(certificate=settings.tls_certificate, key=settings.tls_key, client_ca=settings.tls_client_ca)

    def current(self) -> ssl.SSLContext:
        """What the next handshake is to use."""
        return self._context

    async def once(self) -> bool:
        """Look at the files, and take what is new and fits together."""
        await anyio.to_thread.run_sync(self.look)
        return False

    def look(self) -> bool:
        """Read the files if they are others than before; True: a new certificate is shown from now on."""
        stamp = self._stamp()
        if stamp == self._seen:
            return False
        try:
            # A context of its own: one that is in use would keep the authorities that have left the file, and the
            # sessions of their clients; and a certificate beside the key of another would break each handshake.
            self._context = self._loaded()
        except _UNUSABLE as error:
            # Perhaps only one of the files has been written yet: the next look sees.
            if stamp != self._refused:
                self._refused = stamp
                log.warning("the new certificate cannot be used yet, the old one stays", error=_why(error))
            return False
        self._seen = stamp
        log.info("the certificate was read again", file=str(self._certificate))
        return True

    def _loaded(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(self._certificate, self._key, password=_no_passphrase)
        if self._client_ca is not None:
            context.load_verify_locations(self._client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _stamp(self) -> tuple[object, ...]:
        """What changes when a file is written or replaced."""
        stamps: list[object] = []
        for path in (self._certificate, self._key, self._client_ca):
            try:
                found = path.stat() if path is not None else None
            except OSError:
                found = None
            stamps.append(None if found is None else (found.st_ino, found.st_size, found.st_mtime_ns))
        return tuple(stamps)


_UNUSABLE = (OSError, ValueError)
"""`ssl.SSLError` is an OSError."""


def _no_passphrase() -> str:
    raise ValueError("the key has a passphrase, and nobody is here to give it")


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "not PEM").lower().replace("_", " ")
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
