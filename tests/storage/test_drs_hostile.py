"""DRS servers that answer what no specification has: a fault, and the gateway is well."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tesgate.config import DrsHost, DrsSettings
from tesgate.runner.access import Found, ListQuestion, Page
from tesgate.runner.plan import UrlPolicy
from tesgate.services.drs import DrsAnswers
from tesgate.storage.drs import resolver as resolving
from tesgate.storage.drs.resolver import Resolver
from tesgate.storage.drs.web import MOST_BYTES, MOST_VALUES, JsonWeb, WebFault
from tests.storage.drs_server import DrsServer, serving

WHO: dict[str, Any] = {"owner": "alice", "groups": ()}
URL = "https://data.example.org/x"


async def nothing(url: str) -> Found | None:
    return None


class Asked:
    """The answers of a resolver whose ``drs://here/`` is a server."""

    def __init__(self, server: DrsServer, **host: Any) -> None:
        hosts = [DrsHost(host="here", url=f"http://{server.host}", **host)]
        self.web = JsonWeb(UrlPolicy(allowed_hosts=[server.host]))
        self.resolver = Resolver(DrsSettings(hosts=hosts, registry=None), self.web)
        self.answers = DrsAnswers(self.resolver)

    async def look(self, id: str) -> Found:
        until = time.monotonic() + 20
        return await self.answers.look(f"drs://here/{id}", **WHO, until=until, read=nothing)

    async def page(self, id: str, after: str | None = None, limit: int = 1000) -> Page:
        question = ListQuestion(f"drs://here/{id}", after, limit)
        return await self.answers.page(question, **WHO, until=time.monotonic() + 20, read=nothing)


@pytest.mark.parametrize("host", ["127\u30020\u30020\u30021", "1\uff12\uff17.0.0.1", "127\u20240.0.1"])
async def test_hosts_that_fold_into_addresses_are_judged_as_what_they_become(host: str) -> None:
    async with serving() as server, serving() as inner:
        asked = Asked(server)
        server.redirect = f"http://{host}:{inner.port}/meta-data"
        found = await asked.look("x")
        assert found.fault is not None and found.fault.kind == "refused" and "loopback" in found.fault.sentence
        with pytest.raises(WebFault, match="loopback"):
            await asked.web.get(f"http://{host}:{inner.port}/x", until=time.monotonic() + 5)
        assert not inner.asked
        await asked.resolver.close()


async def test_answers_that_are_too_much_are_not_parsed() -> None:
    async with serving() as server:
        asked = Asked(server)
        server.blob("long", b"", name="x" * MOST_BYTES)
        server.blob("many", b"", junk=[[]] * (MOST_VALUES // 2 + 1))
        for id, words in (("long", f"{MOST_BYTES} bytes"), ("many", f"{MOST_VALUES} values")):
            found = await asked.look(id)
            assert found.fault is not None and found.fault.kind == "refused" and words in found.fault.sentence
        await asked.resolver.close()


async def test_what_is_remembered_is_bounded_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolving, "KEPT_BYTES", 40_000)
    monkeypatch.setattr(resolving, "KEPT_OBJECT", 20_000)
    methods = [{"type": "https", "access_url": {"url": URL + "y" * 10_000}}]
    async with serving() as server:
        asked = Asked(server)
        for number in range(6):
            server.blob(f"o{number}", b"", access_methods=methods, aliases=["z" * 50_000])
            await asked.look(f"o{number}")
        server.blob("huge", b"", contents=[{"name": f"{number:03}", "id": "o0"} for number in range(200)])
        assert (await asked.look("huge")).kind == (await asked.look("huge")).kind == "directory"
        await asked.look("o5")
        await asked.look("o0")
        times = {path.rpartition("/")[2]: count for path, count in server.asked.items()}
        assert (times["o5"], times["o0"], times["huge"]) == (1, 2, 2)
        await asked.resolver.close()


async def test_malformed_answers_are_faults() -> None:
    way = {"type": "https", "access_url": {"url": URL}}
    good = {**way, "access_url": {"url": URL, "headers": [5, "A: b"]}}
    async with serving() as server:
        asked = Asked(server)
        malformed: tuple[dict[str, Any], ...] = (
            {"access_methods": 5},
            {"access_methods": [{"type": "https", "access_url": "https://[x"}]},
            {"access_methods": [{"type": "https", "access_url": {"url": f"{URL}\ud800"}}]},
            {"access_methods": [{"type": ["https"], "access_id": 7}]},
        )
        for number, more in enumerate(malformed):
            server.blob(f"bad{number}", b"", **more)
            found = await asked.look(f"bad{number}")
            assert found.fault is not None and found.fault.kind == "refused", more
        server.blob("good", b"", access_methods=[7, good], contents=5, checksums=[5], size=True)
        found = await asked.look("good")
        assert (found.moved_to, found.headers, found.size) == (URL, {"A": "b"}, None)
        server.blob("one", b"", access_methods=[way])
        entries: tuple[dict[str, Any], ...] = (
            {"contents": 5},
            {"drs_uri": 7},
            {"id": 5},
            {"drs_uri": [5, "drs://u:v"]},
            {"id": "\ud800"},
            {"drs_uri": ["drs://here/\ud800"]},
        )
        for number, entry in enumerate(entries):
            server.blob(f"bundle{number}", b"", contents=[{"name": "a", **entry}])
            assert (await asked.page(f"bundle{number}")).fault is not None, entry
        server.blob("half", b"", contents=[{"name": "\ud800", "id": "one"}])
        assert (await asked.page("half")).fault is not None
        server.blob("twice", b"", contents=[{"name": "a", "id": "one"}] * 2)
        assert (await asked.page("twice")).fault is not None
        server.redirect = "http://[x"
        found = await asked.look("x")
        assert found.fault is not None and found.fault.kind == "refused" and "no URL" in found.fault.sentence
        await asked.resolver.close()


async def test_a_token_that_is_not_there_at_the_moment_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DRS_TOKEN", raising=False)
    async with serving() as server:
        asked = Asked(server, token="env:DRS_TOKEN")
        found = await asked.look("x")
        assert found.fault is not None and found.fault.kind == "passing" and not server.asked
        await asked.resolver.close()


async def test_a_page_asks_for_what_it_has_alone() -> None:
    methods = [{"type": "https", "access_url": {"url": URL}}]
    async with serving() as server:
        asked = Asked(server)
        for number in range(60):
            server.blob(f"o{number:02}", b"", access_methods=methods)
        listed = [{"name": f"{number:02}", "id": f"o{number:02}"} for number in range(60)]
        server.blob("inner", b"", contents=listed[20:40])
        outer = [*listed[40:], {"name": "20", "id": "inner"}, *reversed(listed[:20])]
        server.blob("outer", b"", contents=outer)
        names: list[str] = []
        after = None
        while True:
            before = server.asked.total()
            page = await asked.page("outer", after, 10)
            assert page.fault is None and len(page.names) <= 10
            assert server.asked.total() - before <= 10 + 2 * resolving.AT_ONCE + 2
            names += page.names
            after = page.after
            if after is None:
                break
        inside = [f"20/{number:02}" for number in range(20, 40)]
        assert names == [
            *(f"{number:02}" for number in range(20)),
            *inside,
            *(f"{number:02}" for number in range(40, 60)),
        ]
        assert max(server.asked.values()) == 1
        await asked.resolver.close()


async def test_a_server_that_fails_within_a_page_ends_it_there() -> None:
    async with serving() as server:
        asked = Asked(server)
        for id in ("a", "b", "c"):
            server.blob(id, b"", access_methods=[{"type": "https", "access_id": id}])
            server.access[id, id] = {"url": f"{URL}/{id}"}
        server.blob("all", b"", contents=[{"name": id, "id": id} for id in ("a", "b", "c")])
        server.down.add("/ga4gh/drs/v1/objects/b/access/b")
        page = await asked.page("all")
        assert (page.names, page.after, page.fault) == (["a"], "a", None)
        server.down.clear()
        assert (await asked.page("all", "a")).names == ["b", "c"]
        await asked.resolver.close()
