"""What `serve` hands on to the agent that it starts."""

from __future__ import annotations

from tesgate.app.serve import _named_secrets
from tesgate.config import DrsHost, DrsSettings, S3Endpoint, S3Settings, Settings


def test_every_variable_that_holds_a_secret_is_kept_from_the_agent() -> None:
    store = S3Endpoint(name="e", access_key_id="env:ID", secret_access_key="file:/key", external_id="env:OUTER")
    server = DrsHost(host="drs.example.org", token="env:DRS_TOKEN")
    settings = Settings(s3=S3Settings(endpoints=[store]), drs=DrsSettings(hosts=[server]))
    assert sorted(_named_secrets(settings)) == ["DRS_TOKEN", "ID", "OUTER"]
