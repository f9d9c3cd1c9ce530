"""What the hostile tasks' tests look at in a task's last word."""

from __future__ import annotations

from typing import Any

__all__ = ["codes", "output", "said", "stdout"]


def output(path: str, url: str, **more: Any) -> dict[str, Any]:
    return {"path": path, "url": url, **more}


def stdout(body: dict[str, Any], executor: int = 0) -> str:
    text: str = body["snapshot"]["executors"][executor].get("stdout", "")
    return text


def codes(body: dict[str, Any]) -> list[Any]:
    return [executor.get("exit_code") for executor in body["snapshot"]["executors"]]


def said(body: dict[str, Any]) -> str:
    return "\n".join(body["snapshot"]["system_logs"])
