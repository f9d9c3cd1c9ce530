"""What stores say of the gateway's keys and regions, and ETags that look like an MD5 and are none."""

from __future__ import annotations

import pytest

from tesgate.runner.transfer import s3object, s3put
from tesgate.runner.transfer.faults import StagingError
from tests.transfer.s3_bed import Objects, random_bytes


@pytest.fixture(autouse=True)
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (s3object, s3put):
        monkeypatch.setattr(module, "RENEWAL_PAUSE", 0.05)


@pytest.mark.parametrize("times", [1, 2])
def test_keys_that_are_exchanged_in_the_middle(objects: Objects, times: int) -> None:
    """The first renewal may still be signed with the old ones."""
    data = objects.store("in", random_bytes(70_000))
    fault = objects.fault("revoked", path="/in$", times=times)
    assert objects.stage("in").read_bytes() == data
    objects.write("/out/file", data)
    put = objects.fault("revoked", method="PUT", path="/file$", times=times)
    objects.put(objects.output("/out/file", "file"))
    assert objects.stored("file") == data
    assert fault.times == put.times == 0


def test_keys_that_stay_unknown_leave_the_task_to_another_attempt(objects: Objects) -> None:
    objects.store("in", b"1")
    objects.fault("revoked", path="/in$", times=-1)
    with pytest.raises(StagingError, match="InvalidAccessKeyId") as caught:
        objects.stage("in")
    assert caught.value.transient
    objects.write("/out/file")
    objects.fault("revoked", method="PUT", path="/file$", times=-1)
    with pytest.raises(StagingError, match="InvalidAccessKeyId") as caught:
        objects.put(objects.output("/out/file", "file"))
    assert caught.value.transient


@pytest.mark.parametrize("words", ["<Region>eu-central-1</Region>", "; expecting &#34;eu-central-1&#34;"])
def test_the_right_region_is_told(objects: Objects, words: str) -> None:
    objects.store("in", b"1")
    objects.fault("region", path="/in$", words=words)
    with pytest.raises(StagingError, match=r"region of this bucket \(the store names eu-central-1\)") as caught:
        objects.stage("in")
    assert not caught.value.transient


@pytest.mark.parametrize("size", [1000, 200_000])
def test_the_etag_of_what_is_encrypted_by_kms_is_not_compared(objects: Objects, size: int) -> None:
    objects.signing.algorithm = None
    data = random_bytes(size)
    objects.write("/out/file", data)
    fault = objects.fault("sealed", method="PUT")
    objects.put(objects.output("/out/file", "file"))
    assert fault.times == 0 and len(objects.proxy.requests("PUT")) == 1
    assert objects.stored("file") == data
