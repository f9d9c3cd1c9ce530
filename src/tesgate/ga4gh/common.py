"""Documents that all GA4GH interfaces share: service info and the error body."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Document", "ErrorBody", "Organization", "Service", "ServiceType"]


class Document(BaseModel):
    """Base of all wire documents. Unknown fields are ignored and never shown again."""

    model_config = ConfigDict(extra="ignore")


class Organization(Document):
    """Who runs the service."""

    name: str = Field(description="Name of the organization responsible for the service.")
    url: str = Field(description="Website of the organization.", json_schema_extra={"format": "uri"})


class ServiceType(Document):
    """Which interface this is."""

    group: str = Field(description="Namespace in reverse domain name format; `org.ga4gh` for GA4GH interfaces.")
    artifact: str = Field(description="Name of the interface.")
    version: str = Field(description="Version of the interface (not of the product).")


class Service(Document):
    """GA4GH service info 1.0.0."""

    id: str = Field(description="Unique id of this service, reverse domain name notation recommended.")
    name: str = Field(description="Name of this service for people.")
    type: ServiceType
    description: str | None = Field(default=None, description="What the service offers.")
    organization: Organization
    contactUrl: str | None = Field(
        default=None,
        description="URL or `mailto:` of whom to ask.",
        json_schema_extra={"format": "uri"},
    )
    documentationUrl: str | None = Field(
        default=None,
        description="Where the service is described.",
        json_schema_extra={"format": "uri"},
    )
    createdAt: str | None = Field(
        default=None,
        description="When the service was first deployed, RFC 3339.",
        json_schema_extra={"format": "date-time"},
    )
    updatedAt: str | None = Field(
        default=None,
        description="When the service was last updated, RFC 3339.",
        json_schema_extra={"format": "date-time"},
    )
    environment: str | None = Field(default=None, description="Such as `prod`, `test` or `dev`.")
    version: str = Field(description="Version of the product.")


class ErrorBody(Document):
    """Every answer that is not 2xx has this body."""

    msg: str = Field(description="What is wrong and what to do.")
    status_code: int = Field(description="The HTTP status again.")
