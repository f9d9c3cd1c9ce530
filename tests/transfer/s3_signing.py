"""Answers a runner's questions about object stores as the gateway does, from real servers, within the test's process.

The tests of whole tasks go through the gateway itself (tests/e2e). Here requests must lead through a proxy that breaks
them, end early, or change between two questions: `Signing` signs for any address, and each test turns its knobs.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, unquote

import botocore.config
import botocore.exceptions
import botocore.session

from tesgate.runner.access import AccessAnswer, AccessRequest, Fault, Found, Page, Signed
from tesgate.runner.gateway import Unavailable

__all__ = ["Signing", "client_of"]


def client_of(url: str, key: str = "testing", secret: str = "testing-secret") -> Any:
    """A blocking client of one S3 server."""
    return botocore.session.get_session().create_client(
        "s3",
        region_name="us-east-1",
        endpoint_url=url,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        config=botocore.config.Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            proxies={},
        ),
    )


class Signing:
    """What is signed may lead to a proxy in front of the server that is asked."""

    def __init__(self, direct: Any, via: Any) -> None:
        """Two clients: of the server, and of the address that is signed for."""
        self.client = direct
        self.signer = via
        self.expires = 300
        self.claimed: float | None = None
        """What the answers say of `expires`."""
        self.part_size = 5 << 20
        self.algorithm: str | None = "crc32"
        self.leased = True
        self.away = 0
        """So many questions meet a gateway that is not there."""
        self.before: Callable[[AccessRequest], None] = lambda request: None
        self.asked: list[str] = []
        self.lock = threading.Lock()
        self.checksums = True

    def __call__(self, request: AccessRequest) -> AccessAnswer:
        with self.lock:
            if self.away:
                self.away -= 1
                raise Unavailable("the gateway is away")
            self.before(request)
            kinds = ("look", "page", "store", "begin", "parts", "complete", "abort")
            self.asked.append(next(kind for kind in kinds if getattr(request, kind)))
            return self._answer(request)

    def _answer(self, request: AccessRequest) -> AccessAnswer:
        answer = AccessAnswer()
        answer.found = [self.look(url) for url in request.look]
        if request.page is not None:
            answer.page = self.page(request.page.url, request.page.after, request.page.limit)
        for question in request.store:
            bucket, key = parted(question.url)
            answer.signed.append(self.put(bucket, key, question.checksum))
            answer.faults.append(None if self.leased else Fault(f"{question.url}: there is no lease.", "lease"))
        for upload in request.begin:
            bucket, key = parted(upload.url)
            more = {"ChecksumAlgorithm": self.algorithm.upper()} if self.algorithm else {}
            made = self.client.create_multipart_upload(Bucket=bucket, Key=key, **more)
            upload.id, upload.part_size, upload.algorithm = made["UploadId"], self.part_size, self.algorithm
            answer.uploads.append(upload)
        if (parts := request.parts) is not None:
            bucket, key = parted(parts.url)
            for index, number in enumerate(parts.numbers):
                more = {f"Checksum{(self.algorithm or '').upper()}": parts.checksums[index]} if parts.checksums else {}
                answer.signed.append(
                    self._presign(
                        "upload_part", "PUT", more, Bucket=bucket, Key=key, UploadId=parts.id, PartNumber=number
                    )
                )
        for completion in request.complete:
            bucket, key = parted(completion.url)
            if not self.leased:
                completion.fault = Fault(f"{completion.url}: there is no lease.", "lease")
            else:
                every = [{"PartNumber": at, "ETag": etag} for at, etag in enumerate(completion.etags, 1)]
                for part, checksum in zip(every, completion.checksums, strict=False):
                    part[f"Checksum{(self.algorithm or '').upper()}"] = checksum
                try:
                    self.client.complete_multipart_upload(
                        Bucket=bucket, Key=key, UploadId=completion.id, MultipartUpload={"Parts": every}
                    )
                    completion.done = True
                except self.client.exceptions.ClientError as error:
                    if error.response["Error"]["Code"] != "NoSuchUpload":
                        raise
                    completion.fault = Fault(f"{completion.url}: NoSuchUpload.", "missing")
            answer.completions.append(completion)
        for upload in request.abort:
            bucket, key = parted(upload.url)
            self.client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload.id)
            answer.uploads.append(upload)
        return answer

    def look(self, url: str) -> Found:
        bucket, key = parted(url)
        try:
            head = self.client.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
        except botocore.exceptions.ClientError:
            page = self.client.list_objects_v2(Bucket=bucket, Prefix=key.rstrip("/") + "/", MaxKeys=1)
            if page.get("KeyCount"):
                return Found(url, "directory")
            return Found(url, fault=Fault(f"{url} does not exist.", "missing"))
        found = self._found(url, bucket, key, head["ContentLength"], head["ETag"])
        for name in ("crc32", "crc32c", "crc64nvme", "sha1", "sha256") if self.checksums else ():
            value = head.get(f"Checksum{name.upper()}")
            # moto calls no checksum of parts COMPOSITE.
            whole = "-" not in head["ETag"] or head.get("ChecksumType") == "FULL_OBJECT"
            if value and whole:
                found.checksum[name] = value
        return found

    def page(self, url: str, after: str | None, limit: int) -> Page:
        bucket, key = parted(url)
        prefix = key.rstrip("/") + "/" if key else ""
        more = {"ContinuationToken": after} if after else {}
        listed = self.client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=limit, **more)
        page = Page(after=listed.get("NextContinuationToken"))
        for each in listed.get("Contents", []):
            name = each["Key"][len(prefix) :]
            page.names.append(name)
            shown = f"s3://{bucket}/{quote(each['Key'])}"
            page.objects.append(self._found(shown, bucket, each["Key"], each["Size"], each["ETag"]))
        return page

    def put(self, bucket: str, key: str, checksum: dict[str, str]) -> Signed:
        more = {"ChecksumCRC32": checksum["crc32"]} if self.algorithm and "crc32" in checksum else {}
        return self._presign("put_object", "PUT", more, Bucket=bucket, Key=key)

    def _found(self, url: str, bucket: str, key: str, size: int, etag: str) -> Found:
        found = Found(url, size=size, etag=etag, get=self._presign("get_object", "GET", {}, Bucket=bucket, Key=key))
        plain = etag.strip('"')
        if self.checksums and len(plain) == 32:
            found.checksum["md5"] = base64.b64encode(bytes.fromhex(plain)).decode()
        return found

    def _presign(self, name: str, method: str, more: dict[str, str], **parameters: Any) -> Signed:
        url = self.signer.generate_presigned_url(name, Params={**parameters, **more}, ExpiresIn=self.expires)
        headers = {f"x-amz-checksum-{key[8:].lower()}": value for key, value in more.items()}
        signed = unquote(url.partition("X-Amz-SignedHeaders=")[2].partition("&")[0]).split(";")
        headers = {name: value for name, value in headers.items() if name in signed}  # the others are in the query
        return Signed(method, url, headers, self.expires if self.claimed is None else self.claimed)


def parted(url: str) -> tuple[str, str]:
    bucket, _, key = url.partition("://")[2].partition("/")
    return bucket, unquote(key)
