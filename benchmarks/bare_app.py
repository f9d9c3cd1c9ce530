"""The bare thing that benchmarks/api.py measures against: what one writes first with FastAPI and asyncpg.

Run by uvicorn with uvloop and httptools; the database's URL is in BARE_DATABASE_URL. It checks what pydantic checks,
has no authentication, no metrics, no owners, and stores one row with three indexes a task.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

SCHEMA = """
CREATE TABLE IF NOT EXISTS task (
    id text PRIMARY KEY, state text NOT NULL, name text NOT NULL, document jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS task_state ON task (state, id);
CREATE INDEX IF NOT EXISTS task_name ON task (name);
"""


class Executor(BaseModel):
    image: str
    command: list[str]
    workdir: str | None = None
    stdout: str | None = None
    stderr: str | None = None
    env: dict[str, str] | None = None


class File(BaseModel):
    url: str | None = None
    path: str
    type: str = "FILE"
    content: str | None = None


class Task(BaseModel):
    name: str = ""
    description: str | None = None
    inputs: list[File] | None = None
    outputs: list[File] | None = None
    resources: dict[str, Any] | None = None
    executors: list[Executor]
    tags: dict[str, str] | None = None


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.pool = await asyncpg.create_pool(os.environ["BARE_DATABASE_URL"], min_size=2, max_size=10)
    async with app.state.pool:
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/ga4gh/tes/v1/tasks")
async def create(task: Task) -> dict[str, str]:
    task_id = secrets.token_hex(13)
    await app.state.pool.execute(
        "INSERT INTO task (id, state, name, document) VALUES ($1, 'QUEUED', $2, $3::jsonb)",
        task_id,
        task.name,
        task.model_dump_json(exclude_none=True),
    )
    return {"id": task_id}


@app.get("/ga4gh/tes/v1/tasks/{task_id}")
async def get(task_id: str, view: str = "MINIMAL") -> dict[str, Any]:
    row = await app.state.pool.fetchrow("SELECT id, state, document FROM task WHERE id = $1", task_id)
    if row is None:
        raise HTTPException(404)
    if view == "MINIMAL":
        return {"id": row["id"], "state": row["state"]}
    return {"id": row["id"], "state": row["state"], **json.loads(row["document"])}
