"""The access route's service on two real S3 servers: what is answered, and that servers take what was signed."""

from __future__ import annotations

import base64
import zlib

from tesgate.runner.access import Completion, ListQuestion, PartsQuestion, StoreQuestion, Upload
from tests.storage.s3_world import World, send

MIB = 1 << 20


def crc32(data: bytes) -> str:
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


async def test_a_file_is_found_and_read(world: World) -> None:
    await world.put("in/with space/ü.txt", body=b"0123456789")
    url = world.url("in/with%20space/%C3%BC.txt")
    ask = await world.task(inputs=[url, world.url("in/none")])
    found, none = (await ask(look=[url, world.url("in/none")])).found
    assert (found.fault, found.kind, found.size, found.url) == (None, "file", 10, url)
    assert none.fault is not None and none.fault.kind == "missing" and "does not exist" in none.fault.sentence
    assert found.get is not None and found.get.expires_in > 60
    assert send(found.get)[:2] == (200, b"0123456789")
    assert send(found.get, range="bytes=2-4")[:2] == (206, b"234")


async def test_directories_are_listed_page_by_page(world: World) -> None:
    keys = [f"d/{at:03}" for at in range(25)] + ["d/e/f g.txt", "d/plus+%20", "d/empty/"]
    await world.put(*keys[:-1])
    # A directory for versitygw, which is refused with bytes.
    await world.put(keys[-1], body=b"" if world.server.name == "versity" else b"hello")
    ask = await world.task(inputs=[(world.url("d"), "DIRECTORY")])
    (found,) = (await ask(look=[world.url("d")])).found
    assert found.kind == "directory" and found.get is None
    names, after = [], None
    while True:
        page = (await ask(page=ListQuestion(world.url("d"), after, 10))).page
        assert page is not None and page.fault is None and len(page.names) <= 10
        names += page.names
        if "e/f g.txt" in page.names:
            one = page.objects[page.names.index("e/f g.txt")]
            assert one.url == world.url("d/e/f%20g.txt") and one.get is not None and send(one.get)[1] == b"hello"
        after = page.after
        if after is None:
            break
    assert names == [key[2:] for key in sorted(keys)]


async def test_a_put_is_stored_under_the_lease_only(world: World) -> None:
    ask = await world.task(outputs=[world.url("out")])
    question = StoreQuestion(world.url("out/a.txt"), 3, {"crc32": crc32(b"abc")})
    answer = await ask(store=[question])
    assert answer.faults[0] is not None and answer.faults[0].kind == "lease" and not answer.signed[0].url
    await ask.take_lease()
    answer = await ask(store=[question])
    assert not answer.faults
    assert answer.signed[0].expires_in <= 30
    assert send(answer.signed[0], b"abc")[0] == 200
    assert await world.get("out/a.txt") == b"abc"


async def test_an_upload_from_begin_to_end(world: World) -> None:
    ask = await world.task(outputs=[world.url("out/big")])
    url, data = world.url("out/big"), bytes(range(256)) * (6 * MIB // 256)
    (upload,) = (await ask(begin=[Upload(url, size=len(data))])).uploads
    assert upload.fault is None and upload.id and upload.part_size == 5 * MIB
    (again,) = (await ask(begin=[Upload(url, id=upload.id)])).uploads
    assert (again.id, again.part_size, again.size, again.fault) == (upload.id, upload.part_size, len(data), None)
    pieces = [data[: 5 * MIB], data[5 * MIB :]]
    sums = [crc32(piece) for piece in pieces] if upload.algorithm else []
    answer = await ask(parts=PartsQuestion(url, upload.id, [1, 2], sums, [len(piece) for piece in pieces]))
    assert not answer.faults
    sent = [send(signed, piece) for signed, piece in zip(answer.signed, pieces, strict=True)]
    assert [status for status, _, _ in sent] == [200, 200]
    last = Completion(url, upload.id, [headers["etag"] for _, _, headers in sent], sums, len(data))
    (done,) = (await ask(complete=[last])).completions
    assert done.fault is not None and done.fault.kind == "lease" and not done.done
    await ask.take_lease()
    (done,) = (await ask(complete=[last])).completions
    assert done.fault is None and done.done
    (done,) = (await ask(complete=[last])).completions
    assert done.done
    assert await world.get("out/big") == data
