"""Credentials by profiles: a role of another profile, a program, a web identity, a file that is exchanged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from tesgate.config import S3Endpoint
from tesgate.runner.transfer import s3faults
from tesgate.storage.s3 import credentials
from tesgate.storage.s3.store import ObjectStore
from tests.beds.s3 import Servers
from tests.storage.s3_world import client_of, new_bucket, send

ROLE = "arn:aws:iam::123456789012:role/reader"
PROFILES = f"""\
[profile base]
aws_access_key_id = base-id
aws_secret_access_key = base-secret
[profile role]
region = us-east-1
role_arn = {ROLE}
source_profile = base
[profile web]
region = us-east-1
role_arn = {ROLE}
web_identity_token_file = %(here)s/token
[profile program]
credential_process = /bin/cat %(here)s/answer.json
"""


EXPECTED = {"base": "base-id", "role": None, "web": None, "program": "program-id", None: "variable-id"}
"""The key's id that requests are signed with; None: one that STS has made."""


async def test_each_way_signs_what_a_store_takes(s3: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config").write_text(PROFILES % {"here": tmp_path}, "utf-8")
    (tmp_path / "token").write_text("a.web.token", "utf-8")
    answer = {"Version": 1, "AccessKeyId": "program-id", "SecretAccessKey": "s", "SessionToken": "t"}
    (tmp_path / "answer.json").write_text(json.dumps(answer), "utf-8")
    for name, value in {
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_ENDPOINT_URL_STS": s3.moto.url,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ACCESS_KEY_ID": "variable-id",
        "AWS_SECRET_ACCESS_KEY": "variable-secret",
    }.items():
        monkeypatch.setenv(name, value)
    async with client_of(s3.moto) as client:
        bucket = new_bucket()
        await client.create_bucket(Bucket=bucket)
        await client.put_object(Bucket=bucket, Key="a", Body=b"hello")
    for profile, id in EXPECTED.items():
        store = ObjectStore(S3Endpoint(name="some", url=s3.moto.url, profile=profile))
        try:
            async with store.signer(bucket) as signer:
                signed = signer.sign("GET", "a", span=60)
        finally:
            await store.close()
        assert send(signed)[:2] == (200, b"hello"), profile
        assert ("X-Amz-Security-Token=" in signed.url) == (profile in ("role", "web", "program")), profile
        if id is None:
            assert not any(word in signed.url for word in EXPECTED.values() if word), profile
        else:
            assert f"X-Amz-Credential={id}%2F" in signed.url


async def test_a_file_that_was_exchanged_is_read_before_a_runner_gives_up(s3: Servers, tmp_path: Path) -> None:
    # A runner whose request is refused asks for another, waits, and asks once more.
    assert credentials.LOOK_AGAIN < s3faults.RENEWAL_PAUSE
    file = tmp_path / "credentials"

    def write(id: str) -> None:
        file.with_suffix(".new").write_text(f"[default]\naws_access_key_id={id}\naws_secret_access_key=s\n", "utf-8")
        file.with_suffix(".new").rename(file)

    store = ObjectStore(S3Endpoint(name="some", url=s3.moto.url, credentials_file=file, region="us-east-1"))

    async def signed() -> Any:
        async with store.signer("bucket") as signer:
            return signer.sign("PUT", "a", span=60).url

    try:
        write("first")
        assert "first" in await signed()
        write("second")
        with anyio.fail_after(30):
            while "second" not in await signed():
                await anyio.sleep(0.05)
    finally:
        await store.close()
