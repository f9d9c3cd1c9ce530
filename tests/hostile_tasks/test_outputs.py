"""What a task may leave at the places of its outputs: nothing outside is touched, nothing hangs, all is said."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tesgate.errors import BadRequest
from tesgate.runner.removal import remove_tree
from tests.beds.images import BUSYBOX
from tests.hostile_tasks.conftest import Site
from tests.hostile_tasks.words import codes, output, said
from tests.runner.gateway_fake import wait_for


def test_links_lead_nowhere_outside(site: Site) -> None:
    """Absolute, relative, by `..`, dangling, in loops, to the host, to the scratch: what is stored lay in the task."""
    secret = site.root.parent / "links-secret"
    secret.write_text("host secret\n")
    inside = site.write("links-in-root", "a file of the root\n")
    up = "../" * 40
    site_dir = site.bench.scratch / "attempts"
    script = f"""cd /work/d; echo mine > real; ln -s real good; ln -s /work/d/real absolute; ln -s ../d/real round
        ln -s {secret} a-secret; ln -s {up}{secret} b-secret; ln -s {inside} c-root; ln -s /etc/shadow d-shadow
        ln -s /proc/self/root/etc/passwd e-proc; ln -s nothing f-dangling; ln -s g-loop g-loop; ln -s . h-here
            ln -s .. i-up
        ln -s {site_dir} j-scratch; ln -s /proc/self/fd/0 k-fd; ln -s /dev/zero l-zero; ln -s /.tesgate/control m-ours
        mkdir sub; ln -s {up}etc sub/n-etc; ln -s / o-top; cd /work; ln -s {secret} direct; rmdir dir; ln -s d dir"""
    body = site.run(
        script,
        outputs=[
            output("/work/d", site.url("links"), type="DIRECTORY"),
            output("/work/direct", site.url("links-direct")),
            output("/work/dir/real", site.url("links-through")),
            output("/work/d/*-*", site.url("links-globbed"), path_prefix="/work/d"),
            output("/work/d/**", site.url("links-deep"), path_prefix="/work/d"),
        ],
    )
    assert body["state"] == "COMPLETE", said(body)
    for name in ("real", "good", "absolute", "round"):
        assert site.output("links/" + name) == "mine\n"
    assert site.output("links-through") == "mine\n"
    for path in site.root.rglob("links*/**/*"):
        assert not path.is_symlink(), path
        if path.is_file():
            assert path.read_text() == "mine\n", path
    assert not (site.root / "links-direct").exists()
    assert secret.read_text() == "host secret\n"
    for name in ("a-secret", "f-dangling", "g-loop", "l-zero"):
        assert f"/work/d/{name} " in said(body)


def test_special_files_are_named_and_nothing_hangs(site: Site) -> None:
    """FIFOs, sockets, devices (where the sandbox lets one make them at all), and a FIFO as the output itself."""
    script = "cd /work/d; mkfifo fifo; mkfifo /work/pipe; mknod disk b 254 0; mknod null c 1 3; echo kept > kept; true"
    body = site.run(
        script,
        outputs=[
            output("/work/d", site.url("special"), type="DIRECTORY"),
            output("/work/pipe", site.url("special-pipe")),
        ],
    )
    assert body["state"] == "COMPLETE", said(body)
    assert os.listdir(site.root / "special") == ["kept"]
    assert "/work/d/fifo is neither a file nor a directory" in said(body)
    assert "/work/pipe is neither a file nor a directory" in said(body)


def test_modes_owners_and_set_id_bits_are_not_carried_over(site: Site) -> None:
    script = """cd /work/d; echo x > f; chmod 000 f; mkdir closed; echo y > closed/in; chmod 000 closed
        cp /bin/busybox suid 2>/dev/null || cp /bin/true suid; chmod 6755 suid; echo z > wide; chmod 7777 wide
        mkdir sticky; chmod 7777 sticky; echo s > sticky/s"""
    body = site.run(script, outputs=[output("/work/d", site.url("modes"), type="DIRECTORY")])
    assert body["state"] == "COMPLETE", said(body)
    assert site.output("modes/f") == "x\n"
    assert site.output("modes/closed/in") == "y\n"
    for path in (site.root / "modes").rglob("*"):
        mode = path.stat()
        assert not mode.st_mode & 0o7022, (path, oct(mode.st_mode))
        assert mode.st_uid == os.geteuid()
    assert stat.S_IMODE((site.root / "modes/suid").stat().st_mode) == 0o755


def test_hard_links_share_nothing_and_change_nothing(site: Site) -> None:
    """The peer published and changed an input that was hard-linked under a volume or a directory output."""
    first = site.write("hard-one", "original one\n", 0o666)
    second = site.write("hard-two", "original two\n", 0o666)
    tree = site.write("hard-tree/in", "original tree\n", 0o666)
    volume = site.write("hard-volume", "original volume\n", 0o666)
    names = (first, second, tree, volume)
    before = [(path.stat().st_ino, path.stat().st_nlink) for path in names]
    script = """cd /work/out
        for name in one two tree/in /vol/in; do echo changed >> $name; chmod 777 $name
            ln $name linked-$(basename $name)-$$; done
        echo changed >> /in/read-only; chmod 777 /in/read-only; ln /in/read-only /work/out/stolen
            ln -s /in/read-only also
        mv one moved; rm two; ln tree/in twin; true"""
    body = site.run(
        script,
        inputs=[
            {"url": site.url("hard-one"), "path": "/work/out/one"},
            {"url": site.url("hard-two"), "path": "/work/out/two"},
            {"url": site.url("hard-tree"), "path": "/work/out/tree", "type": "DIRECTORY"},
            {"url": site.url("hard-volume"), "path": "/vol/in"},
            {"url": site.url("hard-one"), "path": "/in/read-only"},
        ],
        volumes=["/vol"],
        outputs=[output("/work/out", site.url("hard-out"), type="DIRECTORY")],
    )
    assert body["state"] == "COMPLETE", said(body)
    assert [path.read_text().split()[0] for path in names] == ["original"] * 4
    assert ["changed" in path.read_text() for path in names] == [False] * 4
    stored = [path for path in (site.root / "hard-out").rglob("*") if path.is_file()]
    assert site.output("hard-out/moved") == "original one\nchanged\n"
    assert site.output("hard-out/also") == "original one\n"
    assert not (site.root / "hard-out/stolen").exists()
    inodes = [path.stat().st_ino for path in stored]
    assert len(set(inodes)) == len(inodes), "two outputs are one file"
    assert not set(inodes) & {inode for inode, _ in before}
    site.bench.gateway.gone_from_have(site.keys[-1])
    assert [path.stat().st_ino for path in names] == [inode for inode, _ in before]


def test_names_of_every_kind(sandbox: Site) -> None:
    """Newlines, wildcards, backslashes, percent signs, invalid UTF-8, leading dashes, 255 bytes, our own names."""
    names = [
        b"-rf", b"--help", b"a\nb", b"%2e%2e", b"%", b"*", b"?", b"[a]", b"{a,b}",
        b"back\\slash", b"\xff\xfe", b"\x01\x1b",
        b" ", b"...", b".hidden", b"n" * 255, "ü😀".encode(), b"a'b\"c`d$(e)", b"#frag?query", b"journal", b"plan.json",
    ]  # fmt: skip
    document = sandbox.document("", inputs=[{"content": "placeholder", "path": "/in/other"}])
    listing = sandbox.write("names-list", b"".join(name + b"\0" for name in names))
    document["inputs"].append({"url": listing.as_uri(), "path": "/in/names"})
    document["executors"][0]["command"] = ["/bin/sh", "-c", "cd /work/d && xargs -0 touch -- < /in/names"]
    document["outputs"] = [
        output("/work/d", sandbox.url("names"), type="DIRECTORY"),
        output("/work/d/[*]", sandbox.url("names-star"), path_prefix="/work/d"),
        output("/work/d/\\?", sandbox.url("names-question"), path_prefix="/work/d"),
        output("/work/d/%2e%2e", sandbox.url("names-percent")),
    ]
    body = sandbox.end(sandbox.submit(document))
    assert codes(body) == [0], said(body)
    assert body["state"] == "COMPLETE", said(body)
    assert sorted(os.listdir(os.fsencode(sandbox.root / "names"))) == sorted(names)
    assert os.listdir(sandbox.root / "names-star") == ["*"]
    assert len(body["outputs"]) == len(names) + 3
    for found in body["outputs"]:
        (found["url"] + found["path"]).encode()  # no half surrogates: neither JSON nor PostgreSQL takes them


def test_paths_deeper_than_any_path_may_be_are_left_and_removed(sandbox: Site) -> None:
    """No recursion, no descriptor a level, no path of the whole depth: neither in storing nor in removing."""
    part = "/".join("d" * 500)
    nest = f"mkdir -p t/{part}; for i in 1 2; do mkdir -p n/{part} && mv t n/{part}/d && mv n t || exit 9; done"
    body = sandbox.run(
        f"cd /work/rest; {nest}; chmod 000 t",
        outputs=[output("/work/rest", sandbox.url("deep"), type="DIRECTORY")],
    )
    assert body["state"] == "COMPLETE", said(body)
    assert "nested more than 200 directories deep" in said(body)
    sandbox.bench.gateway.gone_from_have(sandbox.keys[-1])
    wait_for(lambda: not sandbox.bench.attempts(), "the tree of 1,500 levels to be removed")
    remove_tree(str(sandbox.root / "deep"))


def test_a_sparse_file_stays_sparse(sandbox: Site) -> None:
    """1 TB of holes costs the task nothing, and must cost the site nothing."""
    root = os.statvfs(sandbox.root)
    free = root.f_bavail * root.f_frsize
    script = "cd /work; truncate -s 1T huge; echo end >> huge; truncate -s 1T again; ln again twin"
    body = sandbox.run(
        script,
        outputs=[output("/work/huge", sandbox.url("huge")), output("/work/again", sandbox.url("again"))],
    )
    assert body["state"] == "COMPLETE", said(body)
    for name, size in (("huge", (1 << 40) + 4), ("again", 1 << 40)):
        found = (sandbox.root / name).stat()
        assert found.st_size == size
        assert found.st_blocks * 512 < 1 << 20
        (sandbox.root / name).unlink()
    assert free > 0
    assert [item["size_bytes"] for item in body["outputs"]] == [(1 << 40) + 4, 1 << 40]


def test_a_shorter_output_leaves_nothing_of_a_longer_file(sandbox: Site) -> None:
    """The peer kept the old tail. A link or a directory in the way is not written through either."""
    sandbox.write("shorter", "a long text that was there before\n")
    elsewhere = sandbox.write("elsewhere", "untouched\n")
    (sandbox.root / "linked").symlink_to(elsewhere)
    (sandbox.root / "outside").symlink_to("/etc")
    (sandbox.root / "dir").mkdir()
    body = sandbox.run(
        "echo short > /work/x; cp /work/x /work/y",
        outputs=[output("/work/x", sandbox.url("shorter")), output("/work/y", sandbox.url("linked"))],
    )
    assert body["state"] == "COMPLETE", said(body)
    assert sandbox.output("shorter") == "short\n"
    assert elsewhere.read_text() == "untouched\n"
    assert not (sandbox.root / "linked").is_symlink()
    for name, why in (("outside/x", "leads out of"), ("dir", "is a directory"), ("shorter/x", "through a file")):
        body = sandbox.run("echo x > /work/x", outputs=[output("/work/x", sandbox.url(name))])
        assert body["state"] == "SYSTEM_ERROR"
        assert why in said(body)
    assert not Path("/etc/x").exists()


def test_outputs_outside_of_the_roots(sandbox: Site) -> None:
    secret = sandbox.root.parent / "root-sibling"
    secret.mkdir()
    urls = [
        "file:///etc/cron.d/x", (sandbox.root / "../root-sibling/x").as_posix(), sandbox.url("") + "-sibling/x",
        sandbox.url("..") + "/root-sibling/x", f"file://{sandbox.root}/%2e%2e/root-sibling/x", f"file://other{sandbox.root}/x",
        "-oProxyCommand=x", "file:x", "x",
    ]  # fmt: skip
    # Where a server's name leads is known when something is stored there.
    key = sandbox.submit(sandbox.document("echo x > /work/x", outputs=[output("/work/x", "http://127.0.0.1/x")]))
    assert sandbox.end(key)["state"] == "SYSTEM_ERROR"
    keys = [sandbox.submit(sandbox.document("echo x > /work/x", outputs=[output("/work/x", url)])) for url in urls]
    for key in keys:
        body = sandbox.end(key)
        assert body["state"] == "SYSTEM_ERROR"
        assert codes(body) == [], "refused before anything runs"
    assert list(secret.iterdir()) == []
    with pytest.raises(BadRequest, match="NUL"):
        sandbox.plan(sandbox.document("true", outputs=[output("/work/x", f"file://{sandbox.root}/a%00b")]))


def test_patterns_that_blow_regular_expressions_up(sandbox: Site) -> None:
    """Such as shells and `fnmatch` of old took hours for; here a name costs its length times the pattern's."""
    names = ["a" * 250, "a" * 250 + "b", "ab" * 120]
    patterns = [
        "*a" * 60 + "*c", "*" * 200 + "c", "*?" * 100 + "c", "**a**a**a**a**a**a**a**a**c",
        "*[a-b]*[!c]*[a]*[a]*[a]*[a]*[a]*c",
        "{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}*", "[[[[[[*", "{{{{{{*,", "\\*\\" * 50 + "*", "*a" * 60,
    ]  # fmt: skip
    script = "cd /work/d; " + "; ".join("touch " + name for name in names)
    document = sandbox.document(script)
    document["outputs"] = [
        output("/work/d/" + pattern, sandbox.url(f"patterns-{n}"), path_prefix="/work/d")
        for n, pattern in enumerate(patterns)
    ]
    body = sandbox.end(sandbox.submit(document), 60)
    assert body["state"] == "COMPLETE", said(body)
    assert sorted(os.listdir(sandbox.root / f"patterns-{len(patterns) - 1}")) == [names[0]]


def test_path_prefix_does_not_lead_anywhere_else(sandbox: Site) -> None:
    document = sandbox.document("cd /work/d; mkdir s; touch a s/b")
    document["outputs"] = [
        output("/work/d/*", sandbox.url("prefix"), path_prefix="/work/d"),
        output("/work/d/s/*", sandbox.url("prefix-part"), path_prefix="/work/d/"),
        output("/work/d/s/?", sandbox.url("prefix-text"), path_prefix="/wor"),
    ]
    body = sandbox.end(sandbox.submit(document))
    assert body["state"] == "COMPLETE", said(body)
    found = [path for path in sandbox.root.glob("prefix*/**/*") if path.is_file()]
    assert sorted(str(path.relative_to(sandbox.root)) for path in found) == [
        "prefix-part/s/b", "prefix-text/k/d/s/b", "prefix/a", "prefix/s/b",
    ]  # fmt: skip


def test_many_entries_that_cannot_be_stored_are_counted_not_listed(sandbox: Site) -> None:
    """A line for each would be the task's log; a few and their number are enough."""
    script = "cd /work/d; seq 1 3000 | sed 's,^,/nowhere/l,' | xargs ln -s -t .; echo x > x"
    body = sandbox.run(script, outputs=[output("/work/d", sandbox.url("many-links"), type="DIRECTORY")])
    assert body["state"] == "COMPLETE", said(body)
    assert os.listdir(sandbox.root / "many-links") == ["x"]
    assert len(body["snapshot"]["system_logs"]) < 50
    assert "2980 more times" in said(body)


def test_many_files(sandbox: Site) -> None:
    document = sandbox.document("cd /work/d; seq 1 1000 | xargs touch")
    document["executors"][0]["image"] = BUSYBOX
    document["outputs"] = [output("/work/d", sandbox.url("many"), type="DIRECTORY")]
    body = sandbox.end(sandbox.submit(document), 100)
    assert body["state"] == "COMPLETE", said(body)
    assert len(os.listdir(sandbox.root / "many")) == 1000
