"""One configured endpoint: its clients, what a request to it may cost in time, and what its errors mean."""

from __future__ import annotations

import gc
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import structlog
from aiobotocore.config import AioConfig
from botocore import UNSIGNED
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    ParamValidationError,
)
from botocore.exceptions import (
    ConnectionError as BotoConnectionError,
)
from botocore.loaders import create_loader

from tesgate.config import S3Endpoint
from tesgate.runner.access import Signed
from tesgate.storage.s3.credentials import Credentials, NoCredentials
from tesgate.storage.s3.heads import SPAN, Heads
from tesgate.storage.s3.hosts import is_in_host
from tesgate.storage.s3.regions import USUAL, Regions, named_in
from tesgate.storage.s3.signing import Keys, Presigner, encoded_path

__all__ = ["ObjectStore", "StoreFault"]

log = structlog.get_logger(__name__)

SKEW = 2.0
"""Seconds that two clocks may differ without its being a difference."""
STALE = frozenset(
    ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken", "InvalidAccessKeyId",
     "SignatureDoesNotMatch", "InvalidClientTokenId", "RequestExpired")
)  # fmt: skip
"""Codes after which keys are read anew once: they may have rotated."""
PASSING = frozenset(
    ("SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "Throttling", "ThrottlingException",
     "TooManyRequests", "TooManyRequestsException", "RequestLimitExceeded", "BandwidthLimitExceeded",
     "OperationAborted", "RequestTimeTooSkewed", "NoCredentials", "ExpiredToken", "ExpiredTokenException",
     "TokenRefreshRequired", "BotoCoreError", "500", "502", "503", "504", "429")
)  # fmt: skip
"""Codes of what may be otherwise in a moment; of credentials, those that are being renewed elsewhere."""
MISSING = frozenset(("NoSuchKey", "NoSuchBucket", "NoSuchUpload", "404", "NotFound"))


class StoreFault(Exception):
    """A request that failed. `code` is the store's word; `why` completes a sentence that begins with the URL."""

    def __init__(self, code: str, why: str, *, nothing_done: bool = False) -> None:
        super().__init__(why)
        self.code = code
        self.why = why
        self.nothing_done = nothing_done
        """It was asked for once, and refused: nothing can have come of it."""

    @property
    def missing(self) -> bool:
        """There is no such thing."""
        return self.code in MISSING

    @property
    def passing(self) -> bool:
        """Asking again in a moment may help."""
        return self.code in PASSING


class ObjectStore:
    """Requests to one endpoint, and presigned ones for others to send. Clients are made when they are first needed."""

    def __init__(self, endpoint: S3Endpoint, *, clock: Callable[[], float] = time.time) -> None:
        self.endpoint = endpoint
        self.name = endpoint.name
        self._credentials = Credentials(endpoint)
        self._forgotten = 0
        self._clock = clock
        self._offset = 0.0
        self._lock = anyio.Lock()
        self._presigner = Presigner()
        self._loader = create_loader()
        self._stack = AsyncExitStack()
        self._clients: dict[str, Any] = {}
        self._heads = Heads(endpoint, self._stack)
        self._regions = Regions(endpoint=endpoint.name, configured=endpoint.region)

    @property
    def renewals(self) -> int:
        """How often keys were read anew, or another region was learnt, because the store did not take a request."""
        return self._forgotten + self._regions.learnt

    async def close(self) -> None:
        """Let go of connections."""
        await self._stack.aclose()
        self._clients.clear()

    async def call(self, operation: str, bucket: str, **arguments: Any) -> Any:
        """One request. Raises `StoreFault`."""
        done_before = False
        for last in (False, True):
            try:
                client = await self._client(await self._region(bucket))
                answer = await getattr(client, operation)(Bucket=bucket, **self._payer(), **arguments)
                self._learn(answer)
                if done_before:
                    meta = answer.setdefault("ResponseMetadata", {})
                    meta["RetryAttempts"] = meta.get("RetryAttempts", 0) + 1
                return answer
            except ClientError as error:
                fault = self._fault(error, bucket)
                self._learn(error.response)
                if done_before:
                    fault.nothing_done = False
                done_before = done_before or not fault.nothing_done
                if last or fault.code not in STALE | {"RequestTimeTooSkewed"}:
                    raise fault from None
                self._credentials.forget()
                self._forgotten += 1
            except NoCredentials as error:
                why = f"{error} (endpoint {self.name})"
                raise StoreFault("NoCredentials", why, nothing_done=True) from None
            except NoCredentialsError:
                why = f"no credentials were found (endpoint {self.name})"
                raise StoreFault("NoCredentials", why, nothing_done=True) from None
            except (BotoConnectionError, HTTPClientError, OSError) as error:
                raise StoreFault("503", f"endpoint {self.name} cannot be reached ({type(error).__name__})") from None
            except ParamValidationError as error:
                raise StoreFault(
                    "InvalidRequest",
                    f"endpoint {self.name} cannot be asked for this ({type(error).__name__})",
                    nothing_done=not done_before,
                ) from None
            except BotoCoreError as error:
                raise StoreFault(
                    "BotoCoreError",
                    f"endpoint {self.name} gave an answer that is not understood ({type(error).__name__})",
                ) from None
        raise AssertionError("unreachable")

    async def head(self, bucket: str, key: str) -> Any:
        """One object's `head_object`, with its checksums. Raises `StoreFault`."""
        async with self.signer(bucket) as signer:
            signed = signer.sign("HEAD", key, span=SPAN, headers={"x-amz-checksum-mode": "ENABLED"})
        found = await self._heads.ask(signed)
        if found is None:
            return await self.call("head_object", bucket, Key=key, ChecksumMode="ENABLED")
        self._learn(found)
        if found["ResponseMetadata"]["HTTPStatusCode"] == 404:
            raise StoreFault("404", f"endpoint {self.name} answered 404")
        return found

    @asynccontextmanager
    async def signer(self, bucket: str) -> AsyncIterator[Signer]:
        """What signs requests for objects of a bucket, without further I/O. Raises `StoreFault`."""
        region = await self._region(bucket)
        client = await self._client(region)
        try:
            keys = await self._credentials.keys()
        except NoCredentials as error:
            raise StoreFault("NoCredentials", f"{error} (endpoint {self.name})") from None
        yield Signer(
            base=str(client.meta.endpoint_url).rstrip("/"),
            virtual=is_in_host(bucket, style=self.endpoint.style, url=self.endpoint.url),
            bucket=bucket,
            region=str(client.meta.region_name),
            keys=keys,
            clock=lambda: self._clock() + self._offset,
            headers={"x-amz-request-payer": "requester"} if self.endpoint.requester_pays else {},
            presigner=self._presigner,
        )

    # inside

    def _payer(self) -> dict[str, str]:
        return {"RequestPayer": "requester"} if self.endpoint.requester_pays else {}

    async def _region(self, bucket: str) -> str:
        """Where a bucket is: a request that is signed for another region is refused. Asked for once."""
        known = self._regions.known(bucket)
        if known is not None:
            return known
        endpoint = self.endpoint
        if endpoint.anonymous and endpoint.url is not None:
            return endpoint.region or USUAL  # nothing is signed
        client = await self._client(endpoint.region or USUAL)
        # An answer to HEAD has no words, and not every store names its region in a header; a listing's refusal says it.
        for operation, arguments in (("head_bucket", {}), ("list_objects_v2", {"MaxKeys": 1})):
            try:
                answer = await getattr(client, operation)(Bucket=bucket, **arguments)
                self._learn(answer)
            except ClientError as error:
                answer = error.response
                self._learn(answer)
                if (fault := self._fault(error, bucket)).passing:
                    raise fault from None
            except NoCredentials as error:
                raise StoreFault("NoCredentials", f"{error} (endpoint {self.name})") from None
            except (BotoCoreError, OSError) as error:
                raise StoreFault("503", f"endpoint {self.name} cannot be reached ({type(error).__name__})") from None
            if answer.get("ResponseMetadata", {}).get("HTTPStatusCode") not in (301, 400) or named_in(answer):
                break
        known = self._regions.known(bucket)  # a refusal has named it
        if known is None and endpoint.region is None and endpoint.url is None:
            known = named_in(answer)
            if known is None:
                return USUAL  # perhaps not: nothing is remembered, for Amazon names it as soon as it can
        if known is None and answer.get("ResponseMetadata", {}).get("HTTPStatusCode") != 200:
            known = endpoint.region or USUAL
            self._regions.guess(bucket, known)
            return known
        known = known or endpoint.region or USUAL
        self._regions.note(bucket, known)
        return known

    async def _client(self, region: str) -> Any:
        known = self._clients.get(region)
        if known is not None:
            return known
        async with self._lock:
            client = self._clients.get(region)
            if client is None:
                endpoint = self.endpoint
                if not self._clients:
                    # Some megabytes of JSON, read and parsed here and not while everybody waits.
                    await anyio.to_thread.run_sync(_warm, self._loader)
                options: dict[str, Any] = {"signature_version": UNSIGNED if endpoint.anonymous else "s3v4"}
                style = {"auto": "virtual" if endpoint.url is None else "path"}.get(endpoint.style, endpoint.style)
                context = self._credentials.session(self._loader).create_client(
                    "s3",
                    region_name=region,
                    endpoint_url=endpoint.url,
                    verify=None if endpoint.ca_file is None else str(endpoint.ca_file),
                    config=AioConfig(
                        connect_timeout=5,
                        read_timeout=12,
                        max_pool_connections=32,
                        s3={"addressing_style": style},
                        retries={"mode": "standard", "total_max_attempts": 4},
                        request_checksum_calculation="when_required",
                        response_checksum_validation="when_required",
                        **options,
                    ),
                )
                client = self._clients[region] = await self._stack.enter_async_context(context)
                client.meta.events.register_first("needs-retry.s3", self._regions.heed)
                # Its models are some 70,000 values that stay: see `tesgate.app.serve`.
                gc.freeze()
            return client

    def _learn(self, answer: Any) -> None:
        """Take the server's clock for what is signed, where it differs: it judges what is expired."""
        date = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
        if not date:
            return
        try:
            offset = parsedate_to_datetime(date).timestamp() - self._clock()
        except (TypeError, ValueError):
            return
        self._offset = offset if abs(offset) > SKEW else 0.0

    def _fault(self, error: ClientError, bucket: str) -> StoreFault:
        said = error.response.get("Error", {})
        meta = error.response.get("ResponseMetadata", {})
        code = str(said.get("Code") or meta.get("HTTPStatusCode") or "Unknown")
        code = code if code.replace("_", "").isalnum() and len(code) < 60 else "Unknown"
        region = named_in(error.response)
        sentences = {
            "NoSuchBucket": f"there is no bucket {bucket} at endpoint {self.name}",
            "AccessDenied": f"endpoint {self.name} denies access to the gateway's account",
            "403": f"endpoint {self.name} denies access to the gateway's account",
            "InvalidAccessKeyId": f"endpoint {self.name} does not know the gateway's key; check its credentials",
            "SignatureDoesNotMatch": f"endpoint {self.name} does not accept the gateway's secret key; check it",
            "AuthorizationHeaderMalformed": f"endpoint {self.name} does not take requests signed for this region; "
            f"set its `region`{f' to {region}' if region else ''}",
            "PermanentRedirect": f"bucket {bucket} is elsewhere than endpoint {self.name}"
            f"{f', in the region {region}' if region else ''}; set its `region` or `url`",
            "ExpiredToken": f"the gateway's credentials for endpoint {self.name} have expired; renew them",
        }
        nothing_done = 400 <= meta.get("HTTPStatusCode", 0) < 500 and not meta.get("RetryAttempts")
        sentence = sentences.get(code) or f"endpoint {self.name} answered {code}"
        return StoreFault(code, sentence, nothing_done=nothing_done)


def _warm(loader: Any) -> None:
    for kind in ("service-2", "endpoint-rule-set-1", "paginators-1"):
        loader.load_service_model("s3", kind)
    for name in ("endpoints", "partitions", "sdk-default-configuration", "_retry"):
        loader.load_data(name)


class Signer:
    """Signs requests for one bucket, with the keys of this moment."""

    def __init__(
        self,
        *,
        base: str,
        virtual: bool,
        bucket: str,
        region: str,
        keys: Keys | None,
        clock: Callable[[], float],
        headers: dict[str, str],
        presigner: Presigner,
    ) -> None:
        parts = urlsplit(base)
        host = f"{bucket}.{parts.netloc}" if virtual else parts.netloc
        self._base = f"{parts.scheme}://{host}"
        self._root = parts.path + ("/" if virtual else f"/{bucket}/")
        self._region = region
        self._keys = keys
        self._clock = clock
        self._headers = headers
        self._presigner = presigner

    @property
    def anonymous(self) -> bool:
        """Nothing is signed, so nothing can be stored."""
        return self._keys is None

    def sign(
        self,
        method: str,
        key: str,
        *,
        span: float,
        query: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Signed:
        """A request for `key` that the server takes for `span` seconds (rounded down, at most seven days)."""
        sent = {**self._headers, **(headers or {})}
        now = self._clock()
        if self._keys is None:
            path = encoded_path(self._root + key)
            return Signed(method=method, url=self._base + path, headers=sent, expires_in=span)
        if self._keys.expires is not None:
            span = min(span, self._keys.expires - time.time())
        seconds = max(1, min(int(span), 604_800))
        url = self._presigner.presign(
            method=method,
            base=self._base,
            path=self._root + key,
            keys=self._keys,
            region=self._region,
            now=now,
            expires_in=seconds,
            query=query,
            headers=sent,
        )
        return Signed(method=method, url=url, headers=sent, expires_in=float(seconds))
