"""What answers of object stores mean; clients that answer as told stand in for botocore's."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError

from tesgate.config import S3Endpoint
from tesgate.storage.s3.store import ObjectStore, StoreFault


class Client:
    """Answers HEAD of a bucket by the statuses and headers that it is given, one after the other."""

    def __init__(self, *answers: tuple[int, dict[str, str]]) -> None:
        self.answers = list(answers)

    async def head_bucket(self, Bucket: str) -> Any:  # noqa: N803  botocore's name
        status, headers = self.answers.pop(0)
        said = {"ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers}}
        if status != 200:
            raise ClientError({"Error": {"Code": str(status), "Message": ""}, **said}, "HeadBucket")
        return said


async def test_a_region_is_remembered_only_when_the_store_has_named_it(monkeypatch: pytest.MonkeyPatch) -> None:
    store = ObjectStore(S3Endpoint(name="aws", anonymous=True))
    client = Client((503, {}), (403, {}), (301, {"x-amz-bucket-region": "eu-west-1"}))

    async def given(region: str) -> Client:
        return client

    monkeypatch.setattr(store, "_client", given)
    with pytest.raises(StoreFault) as caught:
        await store._region("b")
    assert caught.value.passing
    assert [await store._region("b") for _ in range(3)] == ["us-east-1", "eu-west-1", "eu-west-1"]
