"""The documents of GA4GH TES 1.1.0, under the specification's names; no behaviour."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from tesgate.ga4gh import common
from tesgate.ga4gh.common import Document

__all__ = [
    "READ_ONLY",
    "TES_VERSION",
    "CancelTaskResponse",
    "CreateTaskResponse",
    "Executor",
    "ExecutorLog",
    "FileType",
    "Input",
    "ListTasksResponse",
    "Output",
    "OutputFileLog",
    "Resources",
    "ServiceInfo",
    "ServiceType",
    "State",
    "Task",
    "TaskLog",
    "View",
]

TES_VERSION = "1.1.0"

READ_ONLY = frozenset({"id", "state", "logs", "creation_time"})
"""Fields of a task that only the server sets; in a request they are ignored."""


def _no_bool(value: Any) -> Any:
    # JSON true is not a number; without this it would count as 1.
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


Number = Annotated[float, BeforeValidator(_no_bool)]


class State(StrEnum):
    """State of a task. It only moves forward and ends in COMPLETE, EXECUTOR_ERROR, SYSTEM_ERROR or CANCELED."""

    UNKNOWN = "UNKNOWN"
    QUEUED = "QUEUED"
    INITIALIZING = "INITIALIZING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    COMPLETE = "COMPLETE"
    EXECUTOR_ERROR = "EXECUTOR_ERROR"
    SYSTEM_ERROR = "SYSTEM_ERROR"
    CANCELED = "CANCELED"
    PREEMPTED = "PREEMPTED"
    CANCELING = "CANCELING"


class FileType(StrEnum):
    """Whether an input or output is a file or a directory; a request without it means FILE."""

    FILE = "FILE"
    DIRECTORY = "DIRECTORY"


class View(StrEnum):
    """How much of a task an answer holds."""

    MINIMAL = "MINIMAL"
    BASIC = "BASIC"
    FULL = "FULL"


class Input(Document):
    """A file or directory that is there before the first executor starts."""

    name: str | None = None
    description: str | None = None
    url: str | None = Field(
        default=None,
        description="Where it is stored. Required unless `content` is set; ignored where `content` is not empty.",
        examples=["s3://my-object-store/file1", "file:///path/to/my/file", "/path/to/my/file"],
    )
    path: str = Field(description="Absolute path inside the container.", examples=["/data/file1"])
    type: FileType | None = Field(default=None, description="Filled in by the server.")
    content: str | None = Field(default=None, description="The file's content itself, UTF-8.")
    streamable: bool | None = Field(
        default=None, description="The file may be streamed instead of downloaded. Accepted; this gateway downloads."
    )


class Output(Document):
    """A file or directory that is stored when the executors have ended, whether or not they succeeded."""

    name: str | None = None
    description: str | None = None
    url: str = Field(
        description="Where to store it; the directory to store into where `path` has wildcards.",
        examples=["s3://my-object-store/file1", "file:///path/to/my/file"],
    )
    path: str = Field(
        description="Absolute path inside the container; POSIX wildcards `*`, `?` and `[…]` select several files."
    )
    path_prefix: str | None = Field(
        default=None,
        description="Removed from the paths that match; what is left is appended to `url`. "
        "Required where `path` has wildcards, ignored otherwise.",
    )
    type: FileType | None = Field(default=None, description="Filled in by the server.")


class Resources(Document):
    """What the task needs at least. What is absent takes the deployment's default."""

    cpu_cores: Number | None = Field(
        default=None, description="CPU cores; fractions are accepted (TES 1.2) and returned as sent.", examples=[4]
    )
    preemptible: bool | None = Field(default=None, description="The task may run on capacity that can be taken away.")
    ram_gb: Number | None = Field(default=None, description="Memory in GB (10⁹ bytes).", examples=[8])
    disk_gb: Number | None = Field(default=None, description="Disk in GB (10⁹ bytes).", examples=[40])
    zones: list[str] | None = Field(default=None, description="Compute zones to run in.", examples=[["us-west-1"]])
    backend_parameters: dict[str, str | None] | None = Field(
        default=None,
        description="Keys that service info lists, in any letter case. Others are dropped and noted in `system_logs`.",
    )
    backend_parameters_strict: bool | None = Field(
        default=None, description="Refuse the task where a backend parameter is not supported."
    )


class Executor(Document):
    """One command in one container image. The executors of a task run one after another."""

    image: str = Field(description="Name of the container image.", examples=["ubuntu:24.04"])
    command: list[str] = Field(
        description="Program and arguments; no shell is added.", examples=[["/bin/md5", "/data/file1"]]
    )
    workdir: str | None = Field(
        default=None, description="Absolute path; the image's own where absent.", examples=["/data/"]
    )
    stdin: str | None = Field(
        default=None, description="Absolute path of a file that is piped in.", examples=["/data/file1"]
    )
    stdout: str | None = Field(
        default=None, description="Absolute path of the file that takes stdout.", examples=["/data/stdout.log"]
    )
    stderr: str | None = Field(
        default=None, description="Absolute path of the file that takes stderr.", examples=["/data/stderr.log"]
    )
    env: dict[str, str | None] | None = Field(default=None, description="Environment variables.")
    ignore_error: bool | None = Field(
        default=None, description="Go on with the next executor even if this one ends with an error."
    )


class ExecutorLog(Document):
    """An executor that has ended."""

    start_time: str | None = Field(default=None, description="RFC 3339, UTC.", examples=["2026-10-02T10:00:00Z"])
    end_time: str | None = Field(default=None, description="RFC 3339, UTC.", examples=["2026-10-02T11:00:00Z"])
    stdout: str | None = Field(default=None, description="The end of stdout. Only in the FULL view.")
    stderr: str | None = Field(default=None, description="The end of stderr. Only in the FULL view.")
    exit_code: int = Field(description="Exit code; 128 + n where signal n ended the command.")


class OutputFileLog(Document):
    """One file that was stored."""

    url: str = Field(description="Where the file is.")
    path: str = Field(description="Where it was inside the container.")
    size_bytes: str = Field(
        description="Size in bytes, as a string.", examples=["1024"], json_schema_extra={"format": "int64"}
    )


class TaskLog(Document):
    """One attempt to carry the task out."""

    logs: list[ExecutorLog] = Field(description="The executors that have ended, in order.")
    metadata: dict[str, str] | None = Field(default=None, description="What the backend said about this attempt.")
    start_time: str | None = Field(default=None, description="RFC 3339, UTC.")
    end_time: str | None = Field(default=None, description="RFC 3339, UTC.")
    outputs: list[OutputFileLog] = Field(description="Every stored file; directories are listed file by file.")
    system_logs: list[str] | None = Field(
        default=None, description="What the gateway has to say about this attempt. Only in the FULL view."
    )


class Task(Document):
    """A task: inputs, commands, outputs; and how it went."""

    id: str | None = Field(default=None, description="Set by the server.", json_schema_extra={"readOnly": True})
    state: State | None = Field(default=None, description="Set by the server.", json_schema_extra={"readOnly": True})
    name: str | None = Field(default=None, description="A name for people, and for `name_prefix`.")
    description: str | None = None
    inputs: list[Input] | None = None
    outputs: list[Output] | None = None
    resources: Resources | None = None
    executors: list[Executor] = Field(description="At least one; they run one after another until one fails.")
    volumes: list[str] | None = Field(
        default=None, description="Absolute paths of directories, empty at first, that the executors share."
    )
    tags: dict[str, str | None] | None = Field(
        default=None, description="Keys and values of your own; lists filter by them."
    )
    logs: list[TaskLog] | None = Field(
        default=None, description="One entry for each attempt.", json_schema_extra={"readOnly": True}
    )
    creation_time: str | None = Field(
        default=None, description="RFC 3339, UTC; set by the server.", json_schema_extra={"readOnly": True}
    )


class CreateTaskResponse(Document):
    """The task is stored and will be carried out."""

    id: str = Field(description="Id of the new task.")


class CancelTaskResponse(Document):
    """Empty: the wish is recorded."""


class ListTasksResponse(Document):
    """One page of tasks, newest first."""

    tasks: list[Task]
    next_page_token: str | None = Field(
        default=None, description="Give it as `page_token` for the next page; absent at the end."
    )


class ServiceType(common.ServiceType):
    """Which interface this is."""

    artifact: Literal["tes"] = Field(description="Name of the interface.")


class ServiceInfo(common.Service):
    """Service info with what TES adds."""

    type: ServiceType
    storage: list[str] | None = Field(default=None, description="Places that tasks may read from and write to.")
    tesResources_backend_parameters: list[str] | None = Field(
        default=None,
        description="Keys of `resources.backend_parameters` that are supported.",
    )
