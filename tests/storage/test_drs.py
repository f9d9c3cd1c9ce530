"""DRS ids of inputs, on a server that speaks the specification: what they lead to, and what is refused."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from tesgate.config import DrsHost, DrsSettings, S3Settings
from tesgate.runner.access import ListQuestion
from tesgate.runner.plan import UrlPolicy
from tesgate.storage.drs.names import NameRefused, parse_drs
from tesgate.store.database import Database
from tests.beds.s3 import Servers
from tests.storage.drs_server import DrsServer, serving
from tests.storage.s3_world import World, client_of, endpoint_of, made, new_bucket, send

HERE = {"url": "https://data.example.org/x", "headers": ["Authorization: Bearer of-the-url"]}


@dataclass
class Place:
    world: World
    drs: DrsServer

    def configure(self, *, policy: UrlPolicy | None = None, **host: Any) -> None:
        """`drs://here/…` is the server."""
        hosts = [DrsHost(host="here", url=f"http://{self.drs.host}", **host)]
        self.world.drs = DrsSettings(hosts=hosts, registry=f"http://{self.drs.host}")
        self.world.policy = policy or UrlPolicy(allowed_hosts=["127.0.0.1"])
        self.world.__post_init__()


@pytest_asyncio.fixture
async def place(database: Database) -> AsyncGenerator[Place]:
    async with serving() as drs:
        world = World(await made(database), None, None, "none", S3Settings())  # type: ignore[arg-type]
        place = Place(world, drs)
        place.configure()
        yield place
        await world.close()


async def test_an_id_leads_to_an_access_url(place: Place) -> None:
    drs = place.drs
    drs.blob("a b", b"hello", access_methods=[{"type": "https", "access_url": HERE}])
    drs.blob("by-id", b"hello", access_methods=[{"type": "gs", "access_id": "g"}, {"type": "https", "access_id": "h"}])
    drs.access["by-id", "h"] = {"url": "https://data.example.org/signed?key=1"}
    drs.blob("tape", b"hello", access_methods=[{"type": "htsget", "access_id": "x"}])
    drs.later, drs.broken = 1, 1
    names = ["drs://here/a%20b", "drs://here/by-id", "drs://drs.test:by-id", "drs://here/tape", "drs://here/none"]
    ask = await place.world.task(inputs=names)
    direct, by_id, compact, tape, none = (await ask(look=names)).found
    assert (direct.kind, direct.moved_to, direct.size, direct.fault) == ("elsewhere", HERE["url"], 5, None)
    assert direct.headers == {"Authorization": "Bearer of-the-url"}
    assert base64.b64decode(direct.checksum["md5"]).hex() == "5d41402abc4b2a76b9719d911017c592"
    assert by_id.moved_to == compact.moved_to == "https://data.example.org/signed?key=1"
    assert tape.fault is not None and tape.fault.kind == "refused" and "htsget" in tape.fault.sentence
    assert none.fault is not None and none.fault.kind == "missing"
    assert all(one.url == name for one, name in zip((direct, by_id, compact, tape, none), names, strict=True))


async def test_bundles_are_listed_with_those_in_them(place: Place) -> None:
    drs = place.drs
    for name in ("one", "two", "three"):
        drs.blob(
            name, b"hello", access_methods=[{"type": "https", "access_url": {"url": f"https://d.example.org/{name}"}}]
        )
    drs.blob(
        "inner", b"", contents=[{"name": "2.txt", "id": "two"}, {"name": "3.txt", "drs_uri": ["drs://here/three"]}]
    )
    drs.blob("outer", b"", contents=[{"name": "1 .txt", "id": "one"}, {"name": "in", "id": "inner"}])
    ask = await place.world.task(inputs=[("drs://here/outer", "DIRECTORY")])
    assert (await ask(look=["drs://here/outer"])).found[0].kind == "directory"
    names, after, urls = [], None, []
    while True:
        page = (await ask(page=ListQuestion("drs://here/outer", after, 2))).page
        assert page is not None and page.fault is None and len(page.names) <= 2
        names += page.names
        urls += [(one.url, one.moved_to) for one in page.objects]
        after = page.after
        if after is None:
            break
    assert names == ["1 .txt", "in/2.txt", "in/3.txt"]
    assert urls[0] == ("drs://here/outer/1%20.txt", "https://d.example.org/one")
    (again,) = (await ask(look=["drs://here/outer/in/3.txt"])).found
    assert again.moved_to == "https://d.example.org/three"
    (other,) = (await ask(look=["drs://here/one"])).found
    assert other.fault is not None and "no input" in other.fault.sentence


async def test_entries_with_paths_for_names_are_refused(place: Place) -> None:
    place.drs.blob("one", b"hello", access_methods=[{"type": "https", "access_url": HERE}])
    names = ["../x", "a/b", "..", "", "a\0b"]
    for number, name in enumerate(names):
        place.drs.blob(f"evil{number}", b"", contents=[{"name": name, "id": "one"}])
    urls = [f"drs://here/evil{number}" for number in range(len(names))]
    ask = await place.world.task(inputs=[(url, "DIRECTORY") for url in urls])
    for url in urls:
        page = (await ask(page=ListQuestion(url))).page
        assert page is not None and page.fault is not None and not page.objects


async def test_a_bundle_in_itself_ends(place: Place) -> None:
    place.drs.blob("loop", b"", contents=[{"name": "again", "id": "loop"}])
    ask = await place.world.task(inputs=[("drs://here/loop", "DIRECTORY")])
    page = (await ask(page=ListQuestion("drs://here/loop"))).page
    assert page is not None and page.fault is not None and "deep" in page.fault.sentence


async def test_tokens_go_to_their_host_alone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    drs = place.drs
    monkeypatch.setenv("DRS_TOKEN", "sesame")
    drs.token = "sesame"
    drs.blob("closed", b"hello", access_methods=[{"type": "https", "access_url": HERE}])
    ask = await place.world.task(inputs=["drs://here/closed"])
    (found,) = (await ask(look=["drs://here/closed"])).found
    assert found.fault is not None and "token" in found.fault.sentence
    place.configure(token="env:DRS_TOKEN")
    assert (await ask(look=["drs://here/closed"])).found[0].moved_to == HERE["url"]
    place.configure(token="env:DRS_TOKEN", who=["bob", "group:lab"])
    (found,) = (await ask(look=["drs://here/closed"])).found
    assert found.fault is not None and "alice" in found.fault.sentence and "sesame" not in found.fault.sentence
    async with serving() as other:
        drs.redirect = f"http://{other.host}/ga4gh/drs/v1/objects/closed"
        place.configure(token="env:DRS_TOKEN")
        await ask(look=["drs://here/closed"])
        assert sum(other.asked.values()) == 1 and not other.tokens


async def test_addresses_that_the_policy_refuses_are_not_asked(place: Place) -> None:
    place.configure(policy=UrlPolicy(allowed_hosts=[place.drs.host]))
    ask = await place.world.task(inputs=["drs://here/x"])
    hosts = ["127.0.0.1:9", "[::1]", "[fe80::1%25lo]", "2130706433", "169.254.169.254", "0x7f000001"]
    for target in [*(f"http://{host}/x" for host in hosts), "file:///etc/passwd"]:
        place.drs.redirect = target
        (found,) = (await ask(look=["drs://here/x"])).found
        assert found.fault is not None and found.fault.kind == "refused", (target, found)


async def test_names_that_resolve_to_private_addresses_are_not_asked(place: Place) -> None:
    place.configure(policy=UrlPolicy())
    ask = await place.world.task(inputs=["drs://localhost/x", "drs://here/x"])
    for found in (await ask(look=["drs://localhost/x", "drs://here/x"])).found:
        assert found.fault is not None and "loopback" in found.fault.sentence
    assert not place.drs.asked


async def test_an_object_in_a_store_that_is_configured_is_read_from_there(
    place: Place, s3: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with client_of(s3.seaweed) as client:
        bucket = new_bucket()
        await client.create_bucket(Bucket=bucket)
        await client.put_object(Bucket=bucket, Key="x", Body=b"hello")
        place.world.settings = S3Settings(endpoints=[endpoint_of(s3.seaweed, monkeypatch)])
        place.configure()
        methods = [{"type": "https", "access_url": HERE}, {"type": "s3", "access_url": {"url": f"s3://{bucket}/x"}}]
        place.drs.blob("both", b"hello", access_methods=methods)
        ask = await place.world.task(inputs=["drs://here/both"])
        (found,) = (await ask(look=["drs://here/both"])).found
        assert found.kind == "file" and found.get is not None and send(found.get)[:2] == (200, b"hello")


def test_uris_are_read() -> None:
    assert parse_drs("drs://h.org/a%2Fb").id == "a/b"
    assert parse_drs("drs://h.org:8443/x").host == "h.org:8443"
    assert (parse_drs("drs://drs.42:acc").namespace, parse_drs("drs://pro/ns:acc").provider) == ("drs.42", "pro")
    assert parse_drs("drs://h/b/c/d").path == ("c", "d")
    for wrong in (
        "drs://",
        "drs://h",
        "drs://h/",
        "drs:///x",
        "drs://h/x?y",
        "drs://u@h/x",
        "drs://h/b/../c",
        "drs://h/b/%2e%2e",
    ):
        with pytest.raises(NameRefused):
            parse_drs(wrong)
