"""Configuration: what can be set (`schema`), where it is read from (`load`), its reference page (`reference`)."""

from tesgate.config.load import check_bind, is_loopback, load_settings
from tesgate.config.reference import reference_page, settings_schema
from tesgate.config.schema import (
    AgentSettings,
    AuthSettings,
    ControlSettings,
    CorsSettings,
    Defaults,
    FileRoot,
    Limits,
    LogSettings,
    PoolSettings,
    RetentionSettings,
    RetrySettings,
    RuntimeSettings,
    ServerSettings,
    ServiceSettings,
    Settings,
    TelemetrySettings,
    UrlPolicySettings,
)

__all__ = [
    "AgentSettings",
    "AuthSettings",
    "ControlSettings",
    "CorsSettings",
    "Defaults",
    "FileRoot",
    "Limits",
    "LogSettings",
    "PoolSettings",
    "RetentionSettings",
    "RetrySettings",
    "RuntimeSettings",
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
