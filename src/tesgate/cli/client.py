"""A small TES client: finds the API below a base URL, and turns every fault into one sentence and an exit code."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import httpx

from tesgate.cli.failure import Exit, Failure

__all__ = ["DEFAULT_URL", "TERMINAL", "TesClient", "Unreachable", "credentials"]

DEFAULT_URL = "http://127.0.0.1:8000"
TERMINAL = frozenset({"COMPLETE", "EXECUTOR_ERROR", "SYSTEM_ERROR", "CANCELED"})
_PREFIXES = ("/ga4gh/tes/v1", "/v1", "")


class Unreachable(Failure):
    """The server did not answer, or said that it cannot now: the same request may be sent again."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, Exit.SERVER)


def credentials(token_file: Path | None = None, user: str | None = None) -> httpx.Auth | None:
    """Basic where `user` is given (password: TESGATE_PASSWORD), else a bearer token from the file or TESGATE_TOKEN."""
    if user is not None:
        return httpx.BasicAuth(user, os.environ.get("TESGATE_PASSWORD", ""))
    token = os.environ.get("TESGATE_TOKEN", "").strip()
    if token_file is not None:
        try:
            token = token_file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not text"
            raise Failure(f"{token_file}: the token cannot be read ({why}); check --token-file.") from None
        if not token:
            raise Failure(f"{token_file}: the file is empty; write the token into it, or leave --token-file out.")
    return _Bearer(token) if token else None


class _Bearer(httpx.Auth):
    def __init__(self, token: str) -> None:
        self._token = token

    def auth_flow(self, request: httpx.Request) -> Iterator[httpx.Request]:  # type: ignore[override]
        request.headers["authorization"] = f"Bearer {self._token}"
        yield request


class TesClient:
    """Speaks to one TES server; `url` is its base, with or without ``/ga4gh/tes/v1``."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        auth: httpx.Auth | None = None,
        timeout: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = (url if "://" in url else "http://" + url).rstrip("/")
        self._auth = auth
        self._http = httpx.Client(
            timeout=timeout,
            transport=transport,
            headers={"accept": "application/json"},
            # Without TLS there is nothing to verify, and reading the authorities takes a while.
            verify=not self.url.startswith("http://"),
        )
        self._base: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    @property
    def base(self) -> str:
        """The URL that ``/tasks`` is appended to; found at first use."""
        if self._base is None:
            self._probe()
        assert self._base is not None
        return self._base

    def service_info(self) -> dict[str, Any]:
        """Ask for service info, and find the base by it."""
        return self._probe()

    def _probe(self) -> dict[str, Any]:
        prefixes = ("",) if self.url.endswith("/v1") else _PREFIXES
        for prefix in prefixes:
            response = self._send("GET", self.url + prefix + "/service-info")
            if response.status_code in (404, 405, 406):
                continue
            document = self._json(response)
            self._base = self.url + prefix
            return document
        raise Failure(
            f"{self.url} answers, but not as a TES server: no service-info was found there; check --url.", Exit.SERVER
        )

    def create(self, document: dict[str, Any]) -> str:
        """Submit a task; answer its id."""
        answer = self._call("POST", "/tasks", json=document, headers={"idempotency-key": uuid.uuid4().hex})
        task_id = answer.get("id")
        if not isinstance(task_id, str) or not task_id:
            raise Failure(f"{self.url} took the task but answered no id; it may not be a TES server.", Exit.SERVER)
        return task_id

    def get(self, task_id: str, view: str = "MINIMAL") -> dict[str, Any]:
        """Read one task."""
        return self._call("GET", f"/tasks/{quote(task_id, safe='')}", params={"view": view}, task_id=task_id)

    def cancel(self, task_id: str) -> None:
        """Ask for an end."""
        self._call("POST", f"/tasks/{quote(task_id, safe='')}:cancel", task_id=task_id)

    def list(
        self,
        *,
        view: str = "BASIC",
        state: str | None = None,
        name_prefix: str | None = None,
        tags: dict[str, str] | None = None,
        limit: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Tasks page by page, newest first, at most `limit`."""
        params: list[tuple[str, str]] = [("view", view)]
        params += [("state", state)] if state else []
        params += [("name_prefix", name_prefix)] if name_prefix else []
        for key, value in (tags or {}).items():
            params += [("tag_key", key), ("tag_value", value)]
        token = ""
        while limit is None or limit > 0:
            size = 256 if limit is None else min(limit, 256)
            page = [*params, ("page_size", str(size)), *([("page_token", token)] if token else [])]
            answer = self._call("GET", "/tasks", params=page)
            tasks = answer.get("tasks") or []
            yield from tasks[:limit]
            limit = None if limit is None else limit - len(tasks)
            following = answer.get("next_page_token") or ""
            if not tasks or not following or following == token:
                return
            token = following

    def log_bytes(self, task_id: str, attempt: int, executor: int, stream: str, offset: int) -> bytes | None:
        """Bytes of a log from `offset` on (an extension route of tesgate); None where the server has no such route.

        `attempt` and `executor` are indexes into ``logs[]`` and ``logs[].logs[]`` (the route counts attempts from 1).
        Empty: nothing new.
        """
        path = f"/tasks/{quote(task_id, safe='')}/logs/{attempt + 1}/{executor}/{stream}"
        headers = {"accept": "text/plain, */*"}
        if offset:
            headers["range"] = f"bytes={offset}-"
        response = self._send("GET", self.base + path, headers=headers)
        if response.status_code in (404, 405, 501):
            return None
        if response.status_code in (204, 416):
            return b""
        self._check(response)
        # A server that does not know ranges sends everything again.
        return response.content[offset:] if response.status_code == 200 else response.content

    def extension(self, method: str, path: str) -> dict[str, Any]:
        """A route of tesgate beside TES."""
        root = self.url
        for prefix in _PREFIXES:
            root = root.removesuffix(prefix)
        response = self._send(method, root + "/tesgate/v1" + path)
        if response.status_code == 403:
            raise Failure(f"{self.url} refused{_message(response)}", Exit.SERVER)
        if response.status_code == 404 and "agent" in _message(response):
            raise Failure(_message(response).removeprefix(": "), Exit.NOT_FOUND)
        return self._json(response)

    def _call(self, method: str, path: str, *, task_id: str | None = None, **kwargs: Any) -> dict[str, Any]:
        return self._json(self._send(method, self.base + path, **kwargs), task_id)

    def _send(self, method: str, url: str, **kwargs: Any) -> httpx.Response:
        try:
            return self._http.request(method, url, auth=self._auth or httpx.USE_CLIENT_DEFAULT, **kwargs)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol):
            raise Failure(f"{self.url!r} is not a URL; write --url like {DEFAULT_URL}.") from None
        except httpx.ConnectError as error:
            raise Unreachable(
                f"No server answers at {self.url} ({error}); start one with `tesgate serve`, or give --url"
                " (TESGATE_URL)."
            ) from None
        except httpx.TimeoutException:
            raise Unreachable(f"{self.url} did not answer in time; try again, or look at the server's log.") from None
        except httpx.HTTPError as error:
            raise Unreachable(f"The connection to {self.url} broke ({error}); try again.") from None

    def _json(self, response: httpx.Response, task_id: str | None = None) -> dict[str, Any]:
        self._check(response, task_id)
        try:
            document = response.json()
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise Failure(f"{response.url} did not answer with a JSON object; is it a TES server?", Exit.SERVER)
        return document

    def _check(self, response: httpx.Response, task_id: str | None = None) -> None:
        code = response.status_code
        if code < 300:
            return
        said = _message(response)
        if code == 404 and task_id is not None:
            raise Failure(
                f"No task {task_id!r} is known at {self.url}; `tesgate task list` shows those that are.", Exit.NOT_FOUND
            )
        if code in (401, 403):
            raise Failure(
                f"{self.url} refused the credentials ({code}{said}); set TESGATE_TOKEN or give --token-file.",
                Exit.SERVER,
            )
        if code >= 500 or code == 429:
            raise Unreachable(f"{self.url} cannot answer now ({code}{said}); try again in a moment.")
        raise Failure(f"{self.url} refused the request ({code}{said}).", Exit.SERVER)


def _message(response: httpx.Response) -> str:
    """What the server said, as far as it is one of the usual shapes."""
    try:
        document = response.json()
    except ValueError:
        return ""
    if isinstance(document, dict):
        document = next((document[key] for key in ("msg", "message", "error", "detail") if document.get(key)), "")
    return f": {str(document)[:500]}" if document else ""
