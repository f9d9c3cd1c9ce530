"""The secret key of an object store is in the gateway and nowhere else: looked for while a task's bytes are moving."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.beds.s3 import Servers
from tests.e2e.harness import Gateway, contents_below, gateway_of, sh, wait_for
from tests.transfer.s3_bed import Objects, Stand

SIGNATURE = b"X-Amz-Signature"
LOOK = "env; cat /proc/*/environ /proc/*/cmdline /.tesgate/* /.tesgate/control/* 2>/dev/null; true"


def memory_holds(pid: int, *words: bytes) -> list[bytes]:
    """Which of the words are in the writable memory of a process."""
    found = set()
    with open(f"/proc/{pid}/maps", encoding="utf-8") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            place, rights, *_ = line.split()
            if not rights.startswith("rw"):
                continue
            begin, end = (int(word, 16) for word in place.split("-"))
            try:
                memory.seek(begin)
                data = memory.read(end - begin) or b""
            except OSError:
                continue  # it was given back meanwhile
            found |= {word for word in words if word in data}
    return sorted(found)


@pytest.fixture
def canary(monkeypatch: pytest.MonkeyPatch) -> str:
    """A word that no other process knows: the gateway reads it from its environment, beside the real key."""
    word = f"canary{secrets.token_hex(12)}"
    monkeypatch.setenv("E2E_S3_CANARY", word)
    return word


@pytest.fixture
def stand(s3: Servers) -> Iterator[Stand]:
    made = Stand(s3.seaweed.url)
    yield made
    made.close()


@pytest.fixture
def gateway(
    bubblewrap: object,
    s3: Servers,
    stand: Stand,
    canary: str,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Gateway]:
    """It debugs, and has a second endpoint whose keys are the canary."""
    monkeypatch.setenv("E2E_S3_ID", s3.seaweed.access_key)
    monkeypatch.setenv("E2E_S3_SECRET", s3.seaweed.secret_key)
    endpoints = [
        {
            "name": "bed",
            "url": stand.proxy.url,
            "buckets": [stand.bucket],
            "access_key_id": "env:E2E_S3_ID",
            "secret_access_key": "env:E2E_S3_SECRET",
        },
        {
            "name": "wrong",
            "url": s3.seaweed.url,
            "access_key_id": "env:E2E_S3_ID",
            "secret_access_key": "env:E2E_S3_CANARY",
        },
    ]
    settings = {"S3__ENDPOINTS": json.dumps(endpoints), "TELEMETRY__LOG_LEVEL": "debug"}
    with gateway_of(tmp_path_factory.mktemp("s3"), "bubblewrap", **settings) as started:
        yield started


def test_the_secret_key_is_the_gateways_alone(
    gateway: Gateway, stand: Stand, s3: Servers, canary: str, tmp_path: Path
) -> None:
    objects = Objects(tmp_path, stand)
    objects.store("in", b"hello\n")
    words = (s3.seaweed.secret_key.encode(), canary.encode())

    # A request that its store refuses: the error, its traceback and its logs are made of signed requests.
    refused = gateway.run(sh("true"), inputs=[{"path": "/in", "url": "s3://another-bucket/x", "type": "FILE"}])
    assert refused["state"] == "SYSTEM_ERROR", refused
    assert any("does not accept the gateway's secret key" in line for line in refused["logs"][0]["system_logs"]), (
        refused
    )

    fault = objects.fault("stall", path="/in$", at=2)
    held = objects.proxy.held
    task_id = gateway.submit(
        {
            "executors": [sh(LOOK, stdout="/out/seen")],
            "inputs": [{"path": "/in", "url": objects.url("in"), "type": "FILE"}],
            "outputs": [{"path": "/out/seen", "url": objects.url("seen"), "type": "FILE"}],
        }
    )
    wait_for("a download to hang", held.is_set)
    agent = gateway.agent()
    assert agent is not None
    # First what needs the download to hang: it does so for 60 seconds, and the search through files takes its time.
    if os.geteuid() == 0:
        # That it can be found at all: the runner does hold the presigned request that it is just sending.
        assert memory_holds(agent.pid, SIGNATURE, *words) == [SIGNATURE]
        for process in (agent, *agent.children(recursive=True)):
            beside(process, words)
    everywhere(gateway, words)
    objects.proxy.release.set()
    task = gateway.wait(task_id)
    assert task["state"] == "COMPLETE" and fault.times == 0, task
    everywhere(gateway, words)
    for shown in (json.dumps(task).encode(), json.dumps(refused).encode(), objects.stored("seen")):
        assert not [word for word in (*words, SIGNATURE) if word in shown]
    if os.geteuid() == 0:
        assert memory_holds(agent.pid, *words) == []


def everywhere(gateway: Gateway, words: tuple[bytes, ...]) -> None:
    """Look into files of gateway and agent, their database too: neither keys, nor what is signed with them."""
    gateway.rows("CHECKPOINT")
    postgres = (gateway.data / "postgres").resolve()
    for path, content in contents_below(gateway.data, postgres, gateway.scratch, gateway.log_path.parent):
        assert not [word for word in (*words, SIGNATURE) if word in content], path


def beside(process: psutil.Process, words: tuple[bytes, ...]) -> None:
    """Look at what everybody, or everybody of the same user, may read of a process."""
    for name in ("cmdline", "environ"):
        try:
            content: Any = Path(f"/proc/{process.pid}/{name}").read_bytes()
        except OSError:
            continue  # it has ended
        assert not [word for word in (*words, SIGNATURE) if word in content], (process, name)
