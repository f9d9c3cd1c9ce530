"""Command, environment, image, workdir and streams that look like options or shell: argv and nothing else."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tesgate.errors import BadRequest
from tests.beds.images import BUSYBOX
from tests.hostile_tasks.conftest import Site
from tests.hostile_tasks.words import codes, output, said, stdout

WORDS = [
    "-v", "--privileged", "--", "-", "--control", "/.tesgate/control", "$HOME", "`id`", "$(id)", ";", "|| true", "&&",
    "{{.Image}}", "%s%n", "a b", "", "'", '"', "\\", "\\n", "line\nbreak", "\ttab", "\r", "*", "/*", "~",
    "<x", ">y", "#",
    "ü€😀", "\x7f", "\x1b[31m", "a" * 100_000,
]  # fmt: skip
ENVIRONMENT = {
    "LINE": "one\ntwo", "EQUALS": "a=b=c", "EMPTY": "", "-v": "option", "a b": "space", "$(id)": "name",
    "LD_PRELOAD": "/work/evil.so", "BASH_FUNC_ls%%": "() { :; }", "IFS": ",", "HOME": "/nowhere", "ü": "ä", "A\nB": "x",
}  # fmt: skip
ODD = "{{7*7}} %(x)s ${HOME} $(id) ' \" \\ \u202e \x1b[0m --privileged"


def test_words_environment_and_workdir_arrive_as_they_are(site: Site) -> None:
    """Through gateway, plan, engine and exec, byte for byte; none of them is anybody's option, shell or template."""
    script = 'pwd; for word; do printf "%s" "$word" | wc -c; done; printf "%s|" "$@" > words'
    workdir = "/work/-v $(id)\n%s//{{.}}/./x/"
    document = site.document("", "", name=ODD, description=ODD, tags={ODD: ODD})
    document["executors"][0].update(command=["/bin/sh", "-c", script, "sh", *WORDS], workdir=workdir)
    # A shell would leave out what is no identifier: the first program of the command shows what it was given.
    document["executors"][1].update(command=["/bin/cat", "/proc/self/environ"], env=ENVIRONMENT, stdout="/work/environ")
    place = "/work/-v $(id)\n%s/{{.}}/x"
    document["outputs"] = [
        output(place + "/words", site.url("words")),
        output("/work/environ", site.url("environ")),
    ]
    body = site.end(site.submit(document))
    assert codes(body) == [0, 0], said(body)
    shown = stdout(body)
    assert shown.startswith(place + "\n")
    assert [int(line) for line in shown[len(place) :].split()] == [len(word.encode()) for word in WORDS]
    assert (site.root / "words").read_bytes() == b"".join(word.encode() + b"|" for word in WORDS)
    pairs = (site.root / "environ").read_bytes().decode().rstrip("\0").split("\0")
    found = dict(pair.partition("=")[::2] for pair in pairs)
    assert {name: value for name, value in found.items() if name not in ("PATH", "PWD", "HOSTNAME")} == ENVIRONMENT


def test_a_program_that_looks_like_an_option_or_a_script_is_merely_not_found(sandbox: Site) -> None:
    programs = ["--privileged", "-c", "$(touch /work/pwned)", "sh -c id", "/bin/sh -c id", "a\nb", "--"]
    document = sandbox.document(*programs)
    for executor, program in zip(document["executors"], programs, strict=True):
        executor.update(command=[program, "--version"], ignore_error=True)
    body = sandbox.end(sandbox.submit(document))
    assert codes(body) == [127] * len(programs), said(body)


@pytest.mark.parametrize("name", ["", "A=B", "=", "A\0B"])
def test_names_that_no_environment_can_hold_are_refused(sandbox: Site, name: str) -> None:
    document = sandbox.document("true")
    document["executors"][0]["env"] = {name: "x"}
    with pytest.raises(BadRequest, match="is no name of a variable"):
        sandbox.plan(document)


@pytest.mark.parametrize(
    "image", ["-v /:/host busybox", "--privileged", "-v", "busybox --privileged", "a\nb", "a\0b", "\tbusybox", ""]
)
def test_an_image_with_spaces_or_options_is_refused(sandbox: Site, image: str) -> None:
    """The peer split it like a shell: ``-v /host/secret:/host busybox`` mounted a folder of the host."""
    document = sandbox.document("true")
    document["executors"][0]["image"] = image
    with pytest.raises(BadRequest, match="image"):
        sandbox.plan(document)


def test_an_image_of_odd_characters_is_nobodys_path_or_query(docker_site: Site) -> None:
    images = [
        "../../etc", "a/../../b", "busybox;id", "$(id)", "http://x/y", "x@sha256:zz", "UPPER", "a?b=c&d", "%2e%2e%2fx",
        "a#b", "tesgate-test/busybox:latest?fromSrc=-", "a" * 5000, ODD.replace(" ", "_").replace("\x1b", ""),
    ]  # fmt: skip
    keys = []
    for image in images:
        document = docker_site.document("true")
        document["executors"][0]["image"] = image
        keys.append(docker_site.submit(document, pull_policy="never"))
    for key in keys:
        body = docker_site.end(key)
        assert body["state"] == "SYSTEM_ERROR"
        assert not body["snapshot"]["executors"]


def test_a_workdir_through_a_link_stays_in_the_container(sandbox: Site) -> None:
    """A link that an executor made leads within its own view, to whatever is called so there."""
    secret = sandbox.root.parent / "workdir-secret"
    secret.mkdir()
    document = sandbox.document(
        f"cd /work; rm -r link top; ln -s {secret} link; ln -s / top", "", "", volumes=["/work"]
    )
    document["executors"][1].update(command=["/bin/pwd"], workdir="/work/link/inner", ignore_error=True)
    document["executors"][2].update(command=["/bin/sh", "-c", "pwd -P"], workdir="/work/top/work/inner")
    body = sandbox.end(sandbox.submit(document))
    assert body["state"] == "COMPLETE", said(body)
    assert stdout(body, 2) == "/work/inner\n"
    assert list(secret.iterdir()) == []


def test_streams_on_odd_places(sandbox: Site) -> None:
    """On each other, on inputs, on links, on /proc and /dev: an ending in good order, and the host is not touched."""
    victim = sandbox.write("streams-victim", "untouched\n")
    refused = [125, 126]
    cases: list[tuple[dict[str, Any], list[int]]] = [
        ({"stdout": "/work/same", "stderr": "/work/same"}, [0]),
        ({"stdin": "/work/missing"}, refused),
        ({"stdin": "/work"}, [0, 1, *refused]),
        ({"stdout": "/work"}, refused),
        ({"stdout": "/in/file"}, [0, *refused]),
        ({"stdout": "/dev/null", "stderr": "/dev/full"}, [0]),
        ({"stdout": "/dev/full"}, [0]),
        ({"stdin": "/dev/zero"}, [0]),
        ({"stdin": "/proc/self/environ"}, [0] if os.geteuid() == 0 else [0, *refused]),
        ({"stdin": "/proc/1/mem"}, [0, 1, *refused]),
        ({"stdout": "/proc/sysrq-trigger"}, refused),
        ({"stdout": "/proc/self/oom_score_adj"}, [0, *refused]),
        ({"stdout": "/work/link"}, refused),
        ({"stdout": "/work/dangling/x"}, refused),
        ({"stdout": "/work/fifo"}, refused),
        ({"stdin": "/work/fifo"}, [0]),
        ({"stdout": "/work/loop"}, refused),
        ({"stdout": "/work/ours"}, [0, 125, 126]),
    ]
    prepare = (
        f"cd /work; rmdir dangling; ln -s {victim} link; ln -s /nowhere/at/all dangling; mkfifo fifo; ln -s loop loop; "
        "ln -s /.tesgate/control/result ours"
    )
    document = sandbox.document(prepare, volumes=["/work"])
    document["inputs"] = [{"content": "read only\n", "path": "/in/file"}]
    command = ["/bin/sh", "-c", "echo out; head -c 3 > /dev/null; exit 0"]
    for streams, _ in cases:
        document["executors"].append({"image": BUSYBOX, "command": command, "ignore_error": True, **streams})
    body = sandbox.end(sandbox.submit(document, executor_timeout=60.0))
    assert body["state"] == "COMPLETE", said(body)
    ended = zip(cases, codes(body)[1:], strict=True)
    assert [(streams, code) for (streams, wanted), code in ended if code not in wanted] == [], said(body)
    assert victim.read_text() == "untouched\n"


def test_stream_paths_of_ours_are_refused(sandbox: Site) -> None:
    for name in ("stdin", "stdout", "stderr", "workdir"):
        for path in (
            "/.tesgate/control/result",
            "/.tesgate",
            "/x/../.tesgate/exec",
            "relative",
            "/a\0b",
            "//.//.tesgate/x",
        ):
            document = sandbox.document("true")
            document["executors"][0][name] = path
            with pytest.raises(BadRequest, match=name):
                sandbox.plan(document)
