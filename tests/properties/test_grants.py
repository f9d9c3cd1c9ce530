"""Grants against hostile names: whatever a store makes of a name, it stays below what was granted."""

from __future__ import annotations

import posixpath
from urllib.parse import quote

from hypothesis import given
from hypothesis import strategies as st

from tesgate.storage.s3.urls import UrlRefused, covers, parse

WORDS = [
    "user",
    "user2",
    "use",
    "USER",
    "usér",
    "use\u0301r",
    "ｕser",
    "..",
    ".",
    "",
    "%2e%2e",
    "%2F",
    "*",
    "{owner}",
    "a b",
]
"""Neighbours of ``user``, look-alikes, one that differs in normalization alone, and what paths and URLs are made of."""
part = st.sampled_from(WORDS)
keys = st.lists(part, max_size=6).map("/".join)
raw = st.one_of(
    keys,
    keys.map(quote),
    keys.map(lambda key: quote(quote(key, safe=""), safe="")),
    keys.map(lambda key: key.replace("/", "%2F")),
    keys.map(lambda key: key.replace("/", "\\")),
)
buckets = st.sampled_from(
    ["b", "bkt", "bkt2", "BKT", "bkt@other", "bkt:80", "bkt%2f..", "", "..", "bkt.", "böt", "b?t", "b#t"]
)
owners = st.sampled_from(["user", "user2", "..", "", "a/b", "*", "{group}", "use\u0301r"])


def meant(bucket: str, key: str) -> str:
    """What a store that keeps objects as files looks for."""
    return posixpath.normpath("/" + bucket + "/" + key)


@given(
    bucket=buckets,
    rest=raw,
    owner=owners,
    grant=st.sampled_from(["bkt/user", "bkt/user/", "bkt/{owner}/", "bkt/{owner}"]),
)
def test_what_a_grant_covers_lies_below_it(bucket: str, rest: str, owner: str, grant: str) -> None:
    try:
        at = parse(f"s3://{bucket}/{rest}")
    except UrlRefused:
        return
    if not covers([grant], at.bucket, at.key, {"owner": owner, "group": None}):
        return
    base = "/" + grant.replace("{owner}", owner).rstrip("/")
    there = meant(at.bucket, at.key)
    assert there == base or there.startswith(base + "/")
    # What is listed for it lies there, too.
    assert meant(at.bucket, at.prefix + "x").startswith(base + "/")
    assert at.prefix


@given(bucket=buckets, rest=raw)
def test_a_url_that_is_taken_names_one_bucket_and_one_key(bucket: str, rest: str) -> None:
    try:
        at = parse(f"s3://{bucket}/{rest}")
    except UrlRefused:
        return
    assert at.bucket == bucket and not set("@:/%?#\\") & set(at.bucket)
    assert not {".", ".."} & set(at.key.split("/"))
    assert parse(at.url()) == at, "it says the same when it is written again"
