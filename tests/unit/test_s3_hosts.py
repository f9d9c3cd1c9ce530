"""A bucket's name goes where botocore puts it: else the gateway would look at one bucket and sign for another."""

from __future__ import annotations

from urllib.parse import urlsplit

import botocore.config
import botocore.exceptions
import botocore.session
import pytest

from tesgate.config import S3Endpoint, S3Settings
from tesgate.storage.s3.endpoints import Endpoints
from tesgate.storage.s3.hosts import is_in_host
from tesgate.storage.s3.signing import Presigner
from tesgate.storage.s3.store import Signer
from tesgate.storage.s3.urls import UrlRefused, parse

BUCKETS = [
    "bucket", "BUCKET", "Bucket", "a_b_c", "a.b.c", "ab", "a" * 63, "a" * 64, "abc-", "a..b", "192.168.1.1", "abc.",
    "x-y-z", "xn--abc", "a.-b", "a--b", "1.2.3",
]  # fmt: skip


@pytest.mark.parametrize(
    ("style", "url"),
    [
        ("virtual", None),
        ("path", None),
        ("virtual", "https://minio.example.org:9000"),
        ("virtual", "http://minio.example.org"),
        ("virtual", "http://127.0.0.1:9000"),
    ],
)
def test_as_botocore(style: str, url: str | None) -> None:
    client = botocore.session.get_session().create_client(
        "s3",
        region_name="eu-west-1",
        endpoint_url=url,
        aws_access_key_id="id",
        aws_secret_access_key="secret",
        config=botocore.config.Config(signature_version="s3v4", s3={"addressing_style": style}),
    )
    compared = 0
    for bucket in BUCKETS:
        try:
            made = urlsplit(client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "key"}))
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
            continue  # no request can be made of it
        ours = is_in_host(bucket, style=style, url=url)  # type: ignore[arg-type]
        if url == "http://127.0.0.1:9000" and "." in bucket:
            assert not ours, "an address has no names below it, whatever botocore thinks"
            continue
        signer = Signer(
            base=f"{made.scheme}://{urlsplit(url or 'https://s3.eu-west-1.amazonaws.com').netloc}",
            virtual=ours,
            bucket=bucket,
            region="eu-west-1",
            keys=None,
            clock=lambda: 0.0,
            headers={},
            presigner=Presigner(),
        )
        there = urlsplit(signer.sign("GET", "key", span=1).url)
        assert (there.netloc, there.path) == (made.netloc, made.path), bucket
        compared += 1
    assert compared > 10


def test_a_bucket_in_capitals_is_not_the_gateways_own_in_disguise() -> None:
    """A host name has no case: ``LOGS.s3.amazonaws.com`` is the bucket ``logs``."""
    for bucket in ("LOGS", "lOgs"):
        assert not is_in_host(bucket, style="auto", url=None)
        assert not is_in_host(bucket, style="virtual", url="https://minio.example.org")
    assert is_in_host("logs", style="auto", url=None)


@pytest.mark.parametrize("key", ["/secret/x", "//secret//x", "secret//x", "secret///", "/secret"])
def test_slashes_lead_past_no_endpoint(key: str) -> None:
    """Stores that keep objects as files read all of these as ``secret/x``: another endpoint's, with other rights."""
    strict = S3Endpoint.model_validate({"name": "strict", "buckets": ["lab/secret/"], "access": [{"who": ["alice"]}]})
    lax = S3Endpoint.model_validate({"name": "lax", "access": [{"read": ["*"], "write": ["*"]}]})
    endpoints = Endpoints(S3Settings(endpoints=[strict, lax]))
    with pytest.raises(UrlRefused):
        endpoints.find(parse(f"s3://lab/{key}"), "read", owner="bob", groups=())
    for fine in ("s3://lab//open/x", "s3://lab/open//x", "s3://lab/secrets//x", "s3://other//secret/x"):
        assert endpoints.find(parse(fine), "read", owner="bob", groups=()).name == "lax"
