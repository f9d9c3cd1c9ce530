"""Logs tell no secrets; metrics have a registry of their own."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Generator

import pytest
import structlog

from tesgate.telemetry import Metrics, configure_logging, redact, redact_url


@pytest.fixture
def log() -> Generator[io.StringIO]:
    root = logging.getLogger()
    before, configured = (root.handlers[:], root.level), structlog.get_config()
    stream = io.StringIO()
    configure_logging(form="json", stream=stream)
    yield stream
    root.handlers, root.level = before[0], before[1]
    root.setLevel(before[1])
    structlog.configure(**configured)


SECRETS = ("tgu_abcDEF-123", "hunter2", "AKIASIGNATURE", "dXNlcjpwYXNz")


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("s3://user:hunter2@host/key?X-Amz-Signature=AKIASIGNATURE", "s3://***@host/key?***"),
        ("postgresql://u:hunter2@h:5432/db", "postgresql://***@h:5432/db"),
        ("see https://h/a?sig=AKIASIGNATURE and https://h/b", "see https://h/a?*** and https://h/b"),
        ("Authorization: Bearer tgu_abcDEF-123", "Authorization: Bearer ***"),
        ("basic dXNlcjpwYXNz", "basic ***"),
        ("token tga_x.y-z!", "token tga_***!"),
        ("tgt_01h.1.abc", "tgt_***"),
        ("ftp://u:hun@hunter2@host/x", "ftp://***@host/x"),
        ("'ftp://u:hun/hunter2@host/x' failed", "'ftp://***@host/x' failed"),
        ("ftp://u:8/hunter2?#@host:21", "ftp://***@host:21"),
        ("s3://bucket/me@example.org/x", "s3://bucket/me@example.org/x"),
        ("https://host:8443/x y@z", "https://host:8443/x y@z"),
        ("X-Amz-Signature=AKIASIGNATURE&X-Amz-Date=1", "X-Amz-Signature=***&X-Amz-Date=1"),
        ("x-amz-credential=AKIASIGNATURE/x, Signature=AKIASIGNATURE", "x-amz-credential=*** Signature=***"),
        ("AWSAccessKeyId=1&Signature=AKIASIGNATURE", "AWSAccessKeyId=1&Signature=***"),
        ("X-Amz-Security-Token=AKIASIGNATURE", "X-Amz-Security-Token=***"),
        ("the basic information", "the basic information"),
    ],
)
def test_redaction(text: str, safe: str) -> None:
    assert redact(text) == safe
    assert "hunter2" not in redact_url(text)
    assert not any(secret in redact(text) for secret in SECRETS)


def test_every_way_into_the_log_is_redacted(log: io.StringIO) -> None:
    logger = structlog.get_logger("tesgate.test")
    url = "s3://u:hunter2@h/k?s=AKIASIGNATURE"
    logger.info("staged %s", url, url=url, headers={"Authorization": "dXNlcjpwYXNz"}, token="tgu_abcDEF-123", n=5)
    logger.info(
        "nested", parts=[{"password": "hunter2", "url": url}], raw=b"Bearer tgu_abcDEF-123", path=ValueError(url)
    )
    logging.getLogger("some.library").warning("got %s", url)
    try:
        raise RuntimeError(f"cannot open {url}")
    except RuntimeError:
        logger.exception("failed")
        logging.getLogger("some.library").exception("failed too")
    text = log.getvalue()
    for secret in SECRETS:
        assert secret not in text
    lines = [json.loads(line) for line in text.splitlines()]
    assert len(lines) == 5 and lines[0]["n"] == 5 and lines[0]["level"] == "info"
    assert "RuntimeError" in lines[3]["exception"] and "RuntimeError" in lines[4]["exception"]


def test_two_gateways_in_one_process_do_not_mix() -> None:
    first, second = Metrics(), Metrics()
    first.tasks_total.labels("COMPLETE", "pool").inc()
    assert b'tesgate_tasks_total{backend="pool",state="COMPLETE"} 1.0' in first.render()[0]
    assert b"COMPLETE" not in second.render()[0]
