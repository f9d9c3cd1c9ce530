"""Configuration: what can be set (`schema`), where it is read from (`load`), its reference page (`reference`)."""

from tesgate.config.compute import AgentPool, AgentSettings, Defaults, RuntimeSettings
from tesgate.config.credentials import Credential
from tesgate.config.drs import DrsHost, DrsSettings
from tesgate.config.keeping import ControlSettings, LogSettings, PoolSettings, RetentionSettings, RetrySettings
from tesgate.config.load import check_bind, is_loopback, load_settings
from tesgate.config.reference import reference_page, settings_schema
from tesgate.config.s3 import S3Endpoint, S3Grant, S3Settings
from tesgate.config.schema import Settings
from tesgate.config.serving import (
    AuthSettings,
    CorsSettings,
    DialectSettings,
    Limits,
    ServerSettings,
    ServiceSettings,
    TelemetrySettings,
)
from tesgate.config.storage import FileRoot, UrlPolicySettings

__all__ = [
    "AgentPool",
    "AgentSettings",
    "AuthSettings",
    "ControlSettings",
    "CorsSettings",
    "Credential",
    "Defaults",
    "DialectSettings",
    "DrsHost",
    "DrsSettings",
    "FileRoot",
    "Limits",
    "LogSettings",
    "PoolSettings",
    "RetentionSettings",
    "RetrySettings",
    "RuntimeSettings",
    "S3Endpoint",
    "S3Grant",
    "S3Settings",
    "ServerSettings",
    "ServiceSettings",
    "Settings",
    "TelemetrySettings",
    "UrlPolicySettings",
    "check_bind",
    "is_loopback",
    "load_settings",
    "reference_page",
    "settings_schema",
]
