"""``python -m tesgate.runner agent …``: the command line of the runner as it ships to other machines."""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import sys
import time
from dataclasses import replace
from typing import Any, Dict, List, Optional

import anyio

from .drain import drain
from .report import Root
from .settings import AgentSettings
from .start import run_agent

__all__ = ["main"]

HARD_EXIT = 10.0
_COVERED = ("dev", "etc", "proc", "run", "sys", "tmp")
"""Directories that each sandbox has of its own."""


class _Lines(logging.Formatter):
    """One JSON object a line, with task and attempt where the record has them."""

    def format(self, record: logging.LogRecord) -> str:
        line: Dict[str, Any] = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + ".%03dZ" % record.msecs,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name in ("task", "attempt"):
            if hasattr(record, name):
                line[name] = getattr(record, name)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _root(text: str) -> Root:
    name, sign, path = text.partition("=")
    writable, mode = True, "copy"
    while True:
        for word in (":ro", ":rw", ":mount"):
            if path.endswith(word):
                path = path[: -len(word)]
                writable = writable and word != ":ro"
                mode = "mount" if word == ":mount" else mode
                break
        else:
            break
    if not sign or not name or not path.startswith("/"):
        raise argparse.ArgumentTypeError(
            "%r must be NAME=PATH with an absolute path, and :ro or :mount where wanted" % text
        )
    return Root(name=name, path=path, writable=writable, mode=mode)


def _label(text: str) -> List[str]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise argparse.ArgumentTypeError("%r must be NAME=VALUE" % text)
    return [name, value]


def _count(text: str) -> int:
    if not text.isdecimal() or len(text) > 4:
        raise argparse.ArgumentTypeError("%r must be a whole number" % text)
    return int(text)


def _file(text: str) -> str:
    try:
        with open(text, "rb"):
            return text
    except OSError as exc:
        raise argparse.ArgumentTypeError("%s cannot be read (%s)" % (text, exc.strerror)) from None


def _directory(text: str) -> str:
    path = "/" + os.path.normpath(text).lstrip("/")  # two slashes at the beginning are left as they are
    # Where `..` leads out of a link, the path without it is another one.
    if not os.path.isabs(text) or not os.path.isdir(path) or os.path.realpath(path) != os.path.realpath(text):
        raise argparse.ArgumentTypeError("%r must be the absolute path of a directory, without .." % text)
    if os.path.realpath(path) == "/":
        raise argparse.ArgumentTypeError("%r must not be the whole host: name the directories with software" % text)
    if path.split("/")[1] in _COVERED:
        raise argparse.ArgumentTypeError(
            "%r would be hidden by the /%s that each sandbox has of its own: move it elsewhere, such as below /opt"
            % (text, path.split("/")[1])
        )
    return path


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("tesgate")
    except metadata.PackageNotFoundError:
        return os.environ.get("TESGATE_RUNNER_VERSION", "0")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tesgate.runner")
    commands = parser.add_subparsers(dest="command", required=True)
    agent = commands.add_parser(
        "agent",
        help="carry out the tasks that a gateway gives to this host",
        epilog="`tesgate agent list` shows all agents, `tesgate agent drain` takes a host out",
    )
    drain = commands.add_parser("drain", help="have the gateway give this host no new attempts")
    drain.add_argument("--undo", action="store_true", help="have it give new attempts again")
    for command in (agent, drain):
        command.add_argument("--url", required=True, help="the gateway, such as https://tes.example.org")
        command.add_argument("--token-file", required=True, help="file with the agent's token; may be rewritten")
        command.add_argument("--scratch", required=True, help="the agent's own directory, where programs may be run")
        command.add_argument("--ca-file", type=_file, help="certificate authorities to trust for the gateway (PEM)")
        command.add_argument("--certificate", type=_file, help="certificate for a gateway that asks for one (PEM)")
        command.add_argument("--key", type=_file, help="its private key (PEM, without a passphrase)")
    agent.add_argument("--runtime", choices=("auto", "docker", "bubblewrap", "none"), default="docker")
    agent.add_argument(
        "--root", dest="roots", type=_root, action="append", default=[], metavar="NAME=PATH[:ro][:mount]"
    )
    agent.add_argument(
        "--root-volume",
        dest="volumes",
        type=_label,
        action="append",
        default=[],
        metavar="NAME=VOLUME",
        help="the root NAME is a named volume of the engine",
    )
    agent.add_argument("--pool", default="default")
    agent.add_argument("--cpus", type=float, help="offer so many cores instead of what is there")
    agent.add_argument("--ram-gb", type=float)
    agent.add_argument("--disk-gb", type=float)
    agent.add_argument("--gpus", type=_count, help="offer so many NVIDIA devices instead of those that are found")
    agent.add_argument("--zone", dest="zones", action="append", default=[], metavar="NAME", help="(may be repeated)")
    agent.add_argument("--label", dest="labels", type=_label, action="append", default=[], metavar="NAME=VALUE")
    agent.add_argument("--idle-exit", type=float, metavar="SECONDS", help="end after so long without gateway and work")
    agent.add_argument("--docker-socket", default="auto", help="of Docker or Podman; auto: where they usually are")
    agent.add_argument("--auth-file", help="config.json with credentials for registries")
    agent.add_argument("--network", help="the engine network that tasks get by default")
    agent.add_argument(
        "--sandbox-path",
        dest="sandbox_paths",
        type=_directory,
        action="append",
        default=[],
        metavar="PATH",
        help="a directory of this host that bubblewrap's sandboxes see, read-only (may be repeated)",
    )
    agent.add_argument("--user-namespace", choices=("host", "keep-id"), help="of containers, if not the engine's own")
    agent.add_argument("--host-name", help="what to call this host", default=None)
    agent.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    return parser


def main(argv: Optional[List[str]] = None) -> int:
    """Parse the command line and run; returns the exit code."""
    parser = _parser()
    given = parser.parse_args(argv)
    if (given.certificate is None) != (given.key is None):
        parser.error("--certificate and --key belong together: give both or none")
    if given.command == "drain":
        settings = AgentSettings(
            url=given.url,
            token_file=given.token_file,
            scratch=given.scratch,
            ca_file=given.ca_file,
            certificate=given.certificate,
            key=given.key,
        )
        return anyio.run(drain, settings, given.undo)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    logging.basicConfig(level=given.log_level.upper(), handlers=[handler])
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    volumes = dict(given.volumes)
    settings = AgentSettings(
        url=given.url,
        token_file=given.token_file,
        scratch=given.scratch,
        runtime=given.runtime,
        roots=[replace(root, volume=volumes.get(root.name)) for root in given.roots],
        pool=given.pool,
        cpus=given.cpus,
        ram_gb=given.ram_gb,
        disk_gb=given.disk_gb,
        gpus=given.gpus,
        labels=dict(given.labels),
        zones=given.zones,
        idle_exit=given.idle_exit,
        docker_socket=given.docker_socket,
        auth_file=given.auth_file,
        network=given.network,
        user_namespace=given.user_namespace,
        sandbox_paths=given.sandbox_paths,
        ca_file=given.ca_file,
        certificate=given.certificate,
        key=given.key,
        host=given.host_name or socket.gethostname(),
        version=_version(),
        hard_exit_after=HARD_EXIT,
    )
    return anyio.run(run_agent, settings)


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # A thread may still wait in a call that nobody waits for any more; there is nothing left to be tidied.
    os._exit(code)
