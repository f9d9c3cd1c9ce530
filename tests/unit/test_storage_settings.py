"""Rules over several settings of object stores; no message quotes a secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tesgate.config import S3Grant, Settings, load_settings
from tesgate.errors import ConfigError

KEYS = {"access_key_id": "env:ID", "secret_access_key": "file:/secret"}


def lines(*endpoints: dict[str, Any], **more: Any) -> list[str]:
    return Settings(s3={"endpoints": [{"name": "e", **endpoint} for endpoint in endpoints]}, **more).check()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("endpoint", "word"),
    [
        ({"access_key_id": "env:ID"}, "belong together"),
        ({**KEYS, "anonymous": True}, "exclude"),
        ({**KEYS, "profile": "x"}, "exclude"),
        ({"anonymous": True, "role_arn": "arn"}, "role_arn"),
        ({"external_id": "env:X"}, "role_arn"),
        ({"kms_key_id": "k"}, "aws:kms"),
        ({"ca_file": "ca.pem"}, "absolute"),
        ({"anonymous": True, "access": [{"write": ["*"]}]}, "written"),
    ],
)
def test_what_does_not_go_together_is_named(endpoint: dict[str, Any], word: str) -> None:
    (line,) = lines(endpoint)
    assert line.startswith("s3.endpoints.e") and word in line


def test_what_goes_together() -> None:
    good = [KEYS, {"profile": "x", "credentials_file": "/x"}, {"anonymous": True}, {"role_arn": "arn", "profile": "x"}]
    assert [lines(one) for one in good] == [[]] * len(good)
    assert lines({}, auth={"mode": "tokens"}) and not lines({"access": [{"read": ["*"]}]}, auth={"mode": "tokens"})
    assert "two endpoints" in lines({}, {})[0]


@pytest.mark.parametrize("name", ["access_key_id", "secret_access_key", "session_token", "external_id"])
def test_a_secret_where_its_place_should_be_is_refused_and_not_quoted(name: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"s3:\n  endpoints:\n    - name: e\n      {name}: AKIASECRETSECRET\n", "utf-8")
    with pytest.raises(ConfigError) as raised:
        load_settings(file)
    assert name in str(raised.value) and "env:NAME" in str(raised.value)
    assert "AKIASECRET" not in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "s3:\n  endpoints:\n    - {{name: e, url: '{}'}}\n",
        "s3:\n  endpoints:\n    - {{name: e, role_arn: a, sts_url: '{}'}}\n",
        "drs:\n  hosts:\n    - {{host: '{}'}}\n",
        "drs:\n  hosts:\n    - {{host: h, url: '{}'}}\n",
        "drs:\n  registry: '{}'\n",
    ],
)
@pytest.mark.parametrize("url", ["https://me:hun@t//er2@h.example.org/x?sig=hunter2", "me:hunter2@h.example.org"])
def test_a_password_in_an_address_is_not_quoted(text: str, url: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text.format(url), "utf-8")
    with pytest.raises(ConfigError) as raised:
        load_settings(file)
    said = str(raised.value)
    assert "h.example.org" in said and "er2" not in said and "me:" not in said


@pytest.mark.parametrize("name", ["", "s3://bucket/x", "/bucket", "a*b", "*/{owner}"])
def test_grants_have_the_form_of_buckets(name: str) -> None:
    for use in ("read", "write"):
        with pytest.raises(ValueError, match="must be names such as"):
            S3Grant.model_validate({use: [name]})
    S3Grant(read=["bucket", "bucket/{owner}/", "lab-*"], write=["*"])
