"""The real Snakemake, unchanged, through its TES executor and an S3 server: `/v1`, by py-tes 0.4.2."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import beds
from tests.beds import snakemake as bed
from tests.e2e.harness import Gateway, gateway_of

# Its executor asks for the first time 40 seconds after it started, whatever one tells it.
pytestmark = pytest.mark.timeout(240)

# Two tasks side by side; the last rule runs where Snakemake does, with what the tasks stored.
SNAKEFILE = """
localrules: all, summary

rule all:
    input: "summary.txt"

rule count:
    input: "{name}.txt"
    output: "{name}.count"
    shell: "wc -l < {input} > {output}"

rule summary:
    input: "a.count", "b.count"
    output: "summary.txt"
    shell: "cat {input} > {output}"
"""


SIGNED = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=none"
"""Enough for moto, which tells nobody's objects from somebody's by the header alone."""


@pytest.fixture(scope="module")
def snakemake(docker: Any) -> Generator[bed.Snakemake]:
    with beds.standing("snakemake", partial(bed.serving, docker.socket)) as found:
        yield found


@pytest.fixture(scope="module")
def gateway(docker: Any, tmp_path_factory: pytest.TempPathFactory) -> Generator[Gateway]:
    with gateway_of(tmp_path_factory.mktemp("gateway"), "docker", socket=docker.socket) as started:
        yield started


def test_a_workflow_on_s3(gateway: Gateway, snakemake: bed.Snakemake, tmp_path: Path) -> None:
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    with httpx.Client(base_url=snakemake.s3, trust_env=False, headers={"Authorization": SIGNED}) as s3:
        s3.put("/smk").raise_for_status()
        s3.put("/smk/a.txt", content=b"1\n2\n3\n").raise_for_status()
        s3.put("/smk/b.txt", content=b"1\n").raise_for_status()
        command = ["snakemake", "--executor", "tes", "--tes-url", f"http://127.0.0.1:{gateway.port}", "--jobs", "4"]
        command += ["--default-storage-provider", "s3", "--default-storage-prefix", "s3://smk", "--cores", "4"]
        command += ["--storage-s3-endpoint-url", snakemake.s3, "--storage-s3-region", "us-east-1"]
        command += ["--container-image", bed.IMAGE, "--seconds-between-status-checks", "1"]
        environment = {
            "PATH": f"{snakemake.bin}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "SNAKEMAKE_STORAGE_S3_ACCESS_KEY": "test",
            "SNAKEMAKE_STORAGE_S3_SECRET_KEY": "test",
        }
        with (tmp_path / "said").open("w") as said:
            ended = subprocess.run(
                command,
                cwd=tmp_path,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                timeout=200,
                check=False,
            ).returncode
        shown = (tmp_path / "said").read_text()[-4000:]
        tasks = gateway.client.get("/tasks", params={"view": "FULL"}).json()["tasks"]
        assert ended == 0, shown + "\n".join(log["stderr"] for task in tasks for log in task["logs"][0]["logs"])
        assert s3.get("/smk/summary.txt").text == "3\n1\n"
    assert [task["state"] for task in tasks] == ["COMPLETE"] * 2
    for task in tasks:
        assert task["inputs"][0]["path"] == "/tmp/run_snakemake.sh" and task["logs"][0]["logs"][0]["exit_code"] == 0
