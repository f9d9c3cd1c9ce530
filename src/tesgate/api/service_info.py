"""What this service says about itself, to clients of each version of TES."""

from __future__ import annotations

from typing import Any

from tesgate import __version__
from tesgate.api.context import ApiContext
from tesgate.config import Settings
from tesgate.ga4gh import tes
from tesgate.ga4gh.common import Organization

__all__ = ["OLD_VERSION", "oldest_service_info", "service_info", "storage_prefixes"]

OLD_VERSION = "1.0.0"
"""TES at ``/v1``."""


def storage_prefixes(settings: Settings) -> list[str]:
    """Beginnings of URLs that tasks may name here, such as ``file:///data``.

    Clients compare them with their own URLs as text (Toil does, to find out whether its job store can be mounted): so
    paths stand as they are, without percent signs.
    """
    return [f"file://{root.path}" for root in settings.file_roots]


def service_info(context: ApiContext, *, old: bool = False) -> dict[str, Any]:
    """The document of ``/service-info``. `old`: of TES 1.0, which has no backend parameters."""
    service = context.settings.service
    info = tes.ServiceInfo(
        id=service.id,
        name=service.name,
        description=service.description,
        type=tes.ServiceType(group="org.ga4gh", artifact="tes", version=OLD_VERSION if old else tes.TES_VERSION),
        organization=Organization(name=service.organization_name, url=service.organization_url),
        contactUrl=service.contact_url,
        documentationUrl=service.documentation_url,
        createdAt=service.created_at,
        updatedAt=service.updated_at,
        environment=service.environment,
        version=__version__,
        storage=storage_prefixes(context.settings),
        tesResources_backend_parameters=None if old else sorted(context.backend_parameters),
    )
    return info.model_dump(mode="json", exclude_none=True)


def oldest_service_info(context: ApiContext) -> dict[str, Any]:
    """The document of ``/tasks/service-info``: what TES had before 1.0, whose clients fail on any other field."""
    service = context.settings.service
    return {"name": service.name, "doc": service.description, "storage": storage_prefixes(context.settings)}
