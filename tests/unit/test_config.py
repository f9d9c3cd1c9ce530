"""Settings: their sources, their errors, their page."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from pydantic import ValidationError

from tesgate.config import Settings, check_bind, load_settings, reference_page, settings_schema
from tesgate.errors import ConfigError

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("TESGATE_"):
            monkeypatch.delenv(name)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return path


def faults(**kwargs) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_settings(**kwargs)
    return caught.value.lines


def test_the_first_source_wins(tmp_path, monkeypatch) -> None:
    path = write(tmp_path, "server: {port: 1, host: 127.0.0.2}\nretries: {max_attempts: 7}\nlimits:\n")
    monkeypatch.setenv("TESGATE_SERVER__PORT", "2")
    assert load_settings(path).server.port == 2
    settings = load_settings(path, overrides={"server": {"port": 3}})
    assert (settings.server.port, settings.server.host, settings.retries.max_attempts) == (3, "127.0.0.2", 7)
    monkeypatch.setenv("TESGATE_CONFIG", str(path))
    assert load_settings().retries.max_attempts == 7
    assert Settings().server.port == 8000, "a bare Settings() reads nothing"


def test_lists_and_tables_in_variables(monkeypatch) -> None:
    monkeypatch.setenv("TESGATE_ROLES", "api")
    monkeypatch.setenv("TESGATE_CORS__ALLOW_ORIGINS", "https://a.example, https://b.example")
    monkeypatch.setenv("TESGATE_URL_POLICY__ALLOWED_HOSTS", '["10.0.0.0/8"]')
    monkeypatch.setenv("TESGATE_FILE_ROOTS", '[{"name": "data", "path": "/data"}]')
    monkeypatch.setenv("TESGATE_AGENT__LABELS", '{"a": "b"}')
    settings = load_settings()
    assert settings.roles == ["api"]
    assert settings.cors.allow_origins == ["https://a.example", "https://b.example"]
    assert settings.url_policy.allowed_hosts == ["10.0.0.0/8"]
    assert settings.file_roots[0].path == Path("/data")
    assert settings.agent.labels == {"a": "b"}


def test_every_fault_is_named_with_its_fix(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TESGATE_SERVER__PORT", "99999")
    lines = faults(
        config=write(
            tmp_path,
            "auth: {mode: basic}\nsevrer: {}\nlimits: {max_content_bytes: 1000}\n"
            "file_roots: [{name: 'A b', path: rel}]\nretries: {max_atempts: 3}\n",
        )
    )
    text = "\n".join(lines)
    assert (
        "server.port: must be between 0 and 65535 (you gave 99999); "
        "set it with --port, TESGATE_SERVER__PORT or server.port in the file" in lines
    )
    assert "auth.mode: must be 'none' or 'tokens' (you gave basic)" in text
    assert "sevrer: there is no such setting (did you mean 'server'?)" in text
    assert "limits.max_content_bytes: must be at least 131072" in text
    assert "file_roots[0].path: must be an absolute path" in text
    assert "retries.max_atempts: there is no such setting (did you mean 'max_attempts'?)" in text
    assert "file_roots[0].name: must look like" in text
    assert len(lines) == 7


def test_faults_of_the_sources_themselves(tmp_path, monkeypatch) -> None:
    assert "nowhere.yaml: cannot be read" in faults(config=tmp_path / "nowhere.yaml")[0]
    assert "is not YAML in line 3" in faults(config=write(tmp_path, "a: 1\nb: [\n"))[0]
    assert "must hold settings" in faults(config=write(tmp_path, "- a\n"))[0]
    monkeypatch.setenv("TESGATE_SEVER__PORT", "1")
    assert faults() == ["TESGATE_SEVER__PORT: there is no group 'sever' (did you mean 'server'?); remove or correct it"]
    monkeypatch.delenv("TESGATE_SEVER__PORT")
    monkeypatch.setenv("TESGATE_FILE_ROOTS", "[")
    assert faults()[0].startswith("TESGATE_FILE_ROOTS: ")
    monkeypatch.delenv("TESGATE_FILE_ROOTS")
    monkeypatch.setenv("TESGATE_PORT_8000_TCP", "tcp://10.0.0.1")  # Kubernetes sets such for a service `tesgate`
    load_settings()


def test_a_secret_is_not_shown(monkeypatch) -> None:
    lines = faults(overrides={"database_url": {"password": "hunter2"}})
    assert "hunter2" not in "".join(lines)
    assert "database_url" in lines[0]


def test_the_database_s_url_may_stand_in_a_file(tmp_path, monkeypatch) -> None:
    secret = write(tmp_path, "postgresql://user:hunter2@host/db\n")
    assert load_settings(None, {"database_url_file": secret}).database_url == "postgresql://user:hunter2@host/db"
    monkeypatch.setenv("TESGATE_DATABASE_URL_FILE", str(secret))
    assert load_settings().database_url == "postgresql://user:hunter2@host/db"
    assert "give one of them" in faults(overrides={"database_url": "postgresql://host/db"})[0]
    secret.write_text("hunter2")
    assert "database_url: must be a URL" in faults()[0] and "hunter2" not in "".join(faults())
    secret.unlink()
    assert "cannot be read (No such file or directory)" in faults()[0]


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        ({"database": {"min_size": 5, "max_size": 2}}, "database.min_size"),
        ({"control": {"trust_window": 20}}, "control.trust_window"),
        ({"cors": {"allow_origins": ["*"], "allow_credentials": True}}, "cors.allow_credentials"),
        ({"file_roots": [{"name": "a", "path": "/a"}, {"name": "a", "path": "/b"}]}, "the name 'a'"),
        ({"logs": {"tail_bytes": 2000, "max_bytes": 1000}}, "logs.tail_bytes"),
        ({"server": {"port": "x"}}, "must be a whole number"),
        ({"control": {"heartbeat": float("inf")}}, "control.heartbeat"),
        ({"deployment_id": "UPPER"}, "deployment_id"),
        ({"roles": []}, "roles"),
    ],
)
def test_rules(overrides, word) -> None:
    assert word in "\n".join(faults(overrides=overrides))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost"])
def test_loopback_is_open(host) -> None:
    check_bind(host, Settings())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "", "localhost.example.org"])
def test_an_open_gateway_stays_on_loopback(host) -> None:
    with pytest.raises(ConfigError, match="--allow-unauthenticated-network"):
        check_bind(host, Settings())
    check_bind(host, Settings(auth={"allow_unauthenticated_network": True}))
    check_bind(host, Settings(auth={"mode": "tokens"}))


def test_the_page_and_the_schema_are_the_settings() -> None:
    assert (DOCS / "configuration.md").read_text("utf-8") == reference_page(), "run tools/export_config.py"
    schema = json.loads((DOCS / "configuration.schema.json").read_text("utf-8"))
    assert schema == settings_schema(), "run tools/export_config.py"
    example = reference_page().split("```yaml\n")[1].split("```")[0]
    jsonschema.validate(yaml.safe_load(example), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"server": {"prot": 1}}, schema)


def test_every_setting_says_what_it_is() -> None:
    from pydantic import BaseModel

    for name, info in Settings.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            assert kind.__doc__
            for inner, field in kind.model_fields.items():
                assert field.description, f"{name}.{inner}"
        else:
            assert info.description, name


def test_the_data_directory_follows_xdg(monkeypatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/x")
    assert Settings().data_dir == Path("/x/tesgate")
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert Settings().data_dir == Path.home() / ".local" / "share" / "tesgate"


@pytest.mark.parametrize("path", ["opt", "/", "/opt/../etc", "/proc", "/etc/ssl", "/run/x", "/tmp/x", "//opt"])
def test_what_a_sandbox_cannot_show(path: str) -> None:
    with pytest.raises(ValidationError, match="sandbox_paths"):
        Settings(runtime={"sandbox_paths": ["/opt", path]})
