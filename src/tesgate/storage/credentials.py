"""Which named credential serves a URL of a task, and what it holds right now: the answer to `AccessRequest.login`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

from tesgate.config import Credential
from tesgate.errors import ConfigError
from tesgate.runner.access import Fault, Login

__all__ = ["Credentials"]

_PORTS = {"ftp": 21, "ftps": 990, "http": 80, "https": 443}
_MOST_BYTES = 64 << 10
_Place = tuple[str, str, int]


@dataclass(frozen=True)
class _Known:
    place: _Place
    parts: tuple[bytes, ...]
    credential: Credential


class Credentials:
    """Of one deployment. Files are read for each answer, so that they may rotate; nothing is kept."""

    def __init__(self, credentials: Iterable[Credential]) -> None:
        known: list[_Known] = []
        for item in credentials:
            place, parts = _taken_apart(item.prefix)
            if parts is None:
                raise ConfigError(f"credentials: the prefix of {item.name} holds `..`; write it without")
            known.append(_Known(place, parts, item))
        self._known = sorted(known, key=lambda one: len(one.parts), reverse=True)

    def login(self, url: str, *, owner: str, groups: Sequence[str] = ()) -> Login:
        """Who to be for one URL of a task of `owner`; without a credential of theirs the answer is empty.

        Reads small files. A credential that cannot be read now is a passing `Fault`, never a login as somebody else.
        """
        login = Login(url)
        try:
            place, parts = _taken_apart(url)
        except ValueError:
            return login  # not a URL: whoever uses it says so
        near = [one for one in self._known if one.place == place]
        if near and parts is None:
            # It may lead out of the prefix that it begins with. An agent refuses such a path as well.
            login.fault = Fault(f"{_shown(url)} holds a `..` component; write the path without it.")
            return login
        for one in near:
            if parts is not None and parts[: len(one.parts)] == one.parts and _may_use(one.credential, owner, groups):
                return self._filled(login, one.credential)
        return login

    @staticmethod
    def _filled(login: Login, credential: Credential) -> Login:
        try:
            if credential.user is not None:
                login.user = credential.user
                if credential.password is not None:
                    login.password = credential.password.get_secret_value()
                elif credential.password_file is not None:
                    login.password = _line(credential.password_file)
            login.headers = {name: value.get_secret_value() for name, value in credential.headers.items()}
            for name, path in credential.header_files.items():
                login.headers[name] = _line(path)
            login.options = _options(credential)
        except (OSError, ValueError) as error:
            # Which file it is concerns the operator, not the task's owner.
            why = error.strerror if isinstance(error, OSError) else str(error)
            return Login(
                login.url,
                fault=Fault(
                    f"{_shown(login.url)} needs the credential {credential.name}, which the gateway cannot read now "
                    f"({why}); tell its operator.",
                    kind="passing",
                ),
            )
        return login


def _options(credential: Credential) -> dict[str, str]:
    """What `tesgate.runner.transfer.ftplogin` reads."""
    options: dict[str, str] = {}
    if credential.prefix[:3].lower() == "ftp":
        options["tls"] = credential.tls or ("never" if credential.user is None else "required")
    if credential.ca_file is not None:
        options["ca"] = credential.ca_file.read_text("ascii")
    if credential.sessions is not None:
        options["sessions"] = str(credential.sessions)
    return options


def _may_use(credential: Credential, owner: str, groups: Sequence[str]) -> bool:
    if not credential.owners and not credential.groups:
        return True
    return owner in credential.owners or any(group in credential.groups for group in groups)


def _taken_apart(url: str) -> tuple[_Place, tuple[bytes, ...] | None]:
    """Origin and components of the path, decoded once; None for the components where one is ``..``.

    Raises ValueError.
    """
    found = urlsplit(url)
    scheme = found.scheme.lower()
    place = (scheme, (found.hostname or "").rstrip("."), found.port or _PORTS.get(scheme, 0))
    web = scheme in ("http", "https")
    # FTP has neither queries nor fragments: their marks are part of the name.
    raw = unquote_to_bytes(found.path[1:] if web else url.partition("//")[2].partition("/")[2])
    # An encoded slash counts as one: a server takes it for one. At the beginning FTP leaves the login directory by it.
    parts = [part for part in raw.split(b"/") if part not in (b"", b".")]
    if b".." in parts or (b".." in raw and b"\\" in raw):
        return place, None
    return place, ((b"/",) if raw.startswith(b"/") and not web else ()) + tuple(parts)


def _line(path: Path) -> str:
    """Content of a file without the end of its line. Raises OSError, ValueError."""
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES)
    text = data.decode("utf-8").rstrip("\r\n")
    if not text or {"\0", "\r", "\n"} & set(text):
        raise ValueError("its file must hold one line")
    return text


def _shown(url: str) -> str:
    head, mark, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{head}{mark}{host.rpartition('@')[2]}{slash}{path.partition('?')[0]}"
