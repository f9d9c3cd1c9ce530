"""What a task's URLs allow to be asked about is what lies below them, found without going through all of them."""

from __future__ import annotations

from typing import Any

from tesgate.services.named import urls_of
from tesgate.storage.s3.urls import parse

KEYS = ["", "/", "a", "a/", "a//", "a/b", "a/b/c", "ab", "/a", "a//b", "a/b//c/", "%61/b", "b"]
URLS = [f"{scheme}://{bucket}/{key}" for scheme in ("s3", "gs") for bucket in ("one", "two") for key in KEYS]


def items(urls: list[str], type: str = "FILE") -> list[dict[str, Any]]:
    return [{"url": url, "type": type} for url in urls]


def test_lookups_find_what_a_walk_through_all_finds() -> None:
    for named in (URLS, *([url] for url in URLS)):
        urls = urls_of({"inputs": items(named), "outputs": items(named)})
        for url in URLS:
            at = parse(url)
            above = {parse(one) for one in named if at.below(parse(one))}
            assert set(urls.outputs(at)) == above, (named, url)
            assert dict(urls.inputs(at)) == dict.fromkeys(above, False), (named, url)


def test_a_url_that_is_also_declared_as_a_directory_is_one() -> None:
    declared = [*items(["s3://one/a"]), *items(["s3://one/a"], "DIRECTORY"), *items(["s3://one/%61"])]
    urls = urls_of({"inputs": [*declared, {"url": "s3://one/c", "content": "x"}], "outputs": [{"url": "s3://["}, {}]})
    assert urls.inputs(parse("s3://one/a/b")) == [(parse("s3://one/a"), True)]
    assert not urls.inputs(parse("s3://one/c")) and not urls.has("s3://one/c") and not urls.has("")


def test_a_question_looks_at_its_own_ancestors_alone() -> None:
    urls = urls_of({"inputs": items([f"s3://one/k/{number}" for number in range(1000)])})
    looked: list[object] = []

    class Counted(dict[Any, Any]):
        def get(self, key: Any, default: Any = None) -> Any:
            looked.append(key)
            return super().get(key, default)

        def __iter__(self) -> Any:
            raise AssertionError("all of them were gone through")

        items = values = keys = __iter__  # type: ignore[assignment]

    urls._inputs = Counted(urls._inputs)
    assert len(urls.inputs(parse("s3://one/k/77/x"))) == 1 and len(looked) == 4


def test_ids_and_words_are_found_below_what_is_named() -> None:
    reads = ["drs://h/b", "drs://h/c/d", "drs://ns:acc", "drs://", "ftp://h/dir/", "https://h/x"]
    urls = urls_of({"inputs": items(reads), "outputs": items(["ftp://out/y", "drs://h/z"])})
    for url in ("drs://h/b", "DRS://H/b/c/d", "drs://h/c/d/e", "drs://NS:acc/x", "drs://h/%62"):
        assert urls.reads_drs(url), url
    for url in ("drs://h/bc", "drs://h/c", "drs://h:8/b", "drs://ns:ac", "drs://h/z", "drs://", "drs://h/b/../c"):
        assert not urls.reads_drs(url), url
    assert all(map(urls.has_above, ("ftp://h/dir/", "ftp://h/dir/x/y", "https://h/x/", "ftp://out/y/z")))
    assert not any(map(urls.has_above, ("ftp://h/dirt/x", "ftp://h/", "https://h/x", "ftp://out/yz")))
    assert urls.has("ftp://h/dir/") and not urls.has("ftp://h/dir")
