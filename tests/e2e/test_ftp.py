"""Inputs and outputs on FTP servers, end to end; what a killed agent leaves there; where the password is not."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.beds.ftp import PASSWORD, Servers, Site
from tests.e2e.harness import Gateway, contents_below, gateway_of, sh, wait_for

pytestmark = pytest.mark.timeout(240)

IN_URL = "lab%3Asecret%2F1"


@pytest.fixture(scope="module")
def site(ftp: Servers) -> Site:
    found: Site = ftp.vsftpd("explicit")
    return found


@pytest.fixture(scope="module")
def gateway(
    bubblewrap: object, tmp_path_factory: pytest.TempPathFactory, ftp: Servers, site: Site
) -> Generator[Gateway]:
    base = tmp_path_factory.mktemp("ftp")
    (base / "password").write_text(PASSWORD + "\n")
    authority = base / "authority.pem"
    authority.write_text(ftp.certificate.read_text().partition("-----BEGIN PRIVATE")[0])
    credential = {
        "name": "lab",
        "prefix": site.url(""),
        "user": site.user,
        "password_file": str(base / "password"),
        "ca_file": str(authority),
    }
    with gateway_of(
        base,
        "bubblewrap",
        CREDENTIALS=json.dumps([credential]),
        URL_POLICY__ALLOWED_HOSTS="127.0.0.1,::1",
    ) as started:
        yield started


def test_files_and_trees_both_ways_by_a_named_credential(gateway: Gateway, site: Site) -> None:
    (site.root / "tree/sub").mkdir(parents=True)
    (site.root / "tree/sub/b c").write_text("from a tree\n")
    (site.root / "one").write_text("from a file\n")
    task = gateway.run(
        sh("cat /in/one '/in/tree/sub/b c'; mkdir -p /out/d/e; cat /in/one > /out/d/e/f", stdout="/out/stdout"),
        inputs=[
            {"path": "/in/one", "url": site.url("one"), "type": "FILE"},
            {"path": "/in/tree", "url": site.url("tree"), "type": "DIRECTORY"},
        ],
        outputs=[
            {"path": "/out/stdout", "url": site.url("done/stdout"), "type": "FILE"},
            {"path": "/out/d", "url": site.url("done/d"), "type": "DIRECTORY"},
        ],
    )
    assert task["state"] == "COMPLETE", task
    assert (site.root / "done/stdout").read_text() == "from a file\nfrom a tree\n"
    assert (site.root / "done/d/e/f").read_text() == "from a file\n"
    assert {item["url"]: int(item["size_bytes"]) for item in task["logs"][0]["outputs"]} == {
        site.url("done/stdout"): 24,
        site.url("done/d/e/f"): 12,
    }
    assert not list(site.root.rglob(".tesgate-*"))


def test_an_agent_that_is_killed_in_an_upload_leaves_nothing(gateway: Gateway, ftp: Servers) -> None:
    server = ftp.faulty()
    server.set(hold=[1 << 20])
    url = server.url("run/o").replace("://", f"://lab:{IN_URL}@")
    task_id = gateway.submit(
        {
            "executors": [sh("mkdir /out; head -c 16777216 /dev/zero > /out/o")],
            "outputs": [{"path": "/out/o", "url": url, "type": "FILE"}],
        }
    )
    parts = wait_for("the upload to be halfway", lambda: list(server.root.glob(".tesgate-*.part")))
    wait_for("bytes of it", lambda: parts[0].stat().st_size > 0)
    assert not (server.root / "run").exists()
    gateway.kill_agent()
    task = gateway.wait(task_id)
    assert task["state"] == "COMPLETE", task
    assert {str(path.relative_to(server.root)) for path in server.root.rglob("*")} == {"run", "run/o"}
    assert (server.root / "run/o").stat().st_size == 16777216
    assert [item["url"] for item in task["logs"][0]["outputs"]] == [server.url("run/o")]


@pytest.mark.parametrize(("code", "state", "busy"), [(0, "SYSTEM_ERROR", 4), (7, "EXECUTOR_ERROR", 4)])
def test_what_cannot_become_visible_is_removed(
    gateway: Gateway, ftp: Servers, code: int, state: str, busy: int
) -> None:
    """After either verdict, and where the server is too busy to remove it at first: nobody else knows the name."""
    server = ftp.faulty()
    server.set(answers={"RNTO": ["550 not this name"], "DELE": ["450 busy"] * busy})
    task = gateway.run(
        sh(f"mkdir /out; echo x > /out/o; exit {code}"),
        outputs=[{"path": "/out/o", "url": server.url(f"never/{code}"), "type": "FILE"}],
    )
    assert task["state"] == state
    assert [line for line in task["logs"][-1]["system_logs"] if "550" in line], task
    assert any(line.startswith("DELE ") for line in server.log())
    wait_for("it to be removed", lambda: not list(server.root.rglob(".tesgate-*")))


def test_the_password_is_nowhere(gateway: Gateway, site: Site) -> None:
    """Not in a view, a log, a file of gateway and agent, the database, the agent's command line or environment."""
    (site.root / "taken").mkdir(exist_ok=True)
    (site.root / "taken/x").write_text("x")
    task = gateway.run(sh("echo x > /out/x"), outputs=[{"path": "/out/x", "url": site.url("taken"), "type": "FILE"}])
    assert task["state"] == "SYSTEM_ERROR"
    assert [line for line in task["logs"][0]["system_logs"] if "a directory is there" in line], task
    assert PASSWORD not in json.dumps(task)
    gateway.rows("CHECKPOINT")
    postgres = (gateway.data / "postgres").resolve()
    places = [gateway.data, postgres, gateway.scratch, gateway.log_path.parent]
    for path, content in contents_below(*places):
        assert path.name == "password" or PASSWORD.encode() not in content, path
    agent = gateway.agent()
    assert agent is not None
    for name in ("cmdline", "environ"):
        if os.geteuid() == 0:
            assert PASSWORD.encode() not in Path(f"/proc/{agent.pid}/{name}").read_bytes()


def test_a_password_in_a_url_is_shown_to_its_owner_alone(gateway: Gateway, ftp: Servers) -> None:
    server = ftp.faulty()
    url = server.url("missing").replace("://", f"://lab:{IN_URL}@")
    task = gateway.run(sh("true"), inputs=[{"path": "/x", "url": url, "type": "FILE"}])
    assert task["state"] == "SYSTEM_ERROR"
    assert task["inputs"][0]["url"] == url, "it is the caller's own document"
    said = json.dumps(task["logs"])
    assert "there is no such file or directory on the server" in said and "secret" not in said
    for path in gateway.log_path.parent.glob("*.log"):
        assert "secret" not in path.read_text()
    assert "secret" not in (gateway.data / "agent.log").read_text()
