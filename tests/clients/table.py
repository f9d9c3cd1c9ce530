"""What each client does when a poll shows it a state, by its source. `test_table` holds our answers against it."""

from __future__ import annotations

from dataclasses import dataclass

from tesgate.api.tes import OLD_PREFIX, PREFIX

__all__ = ["CLIENTS", "STATES", "Client"]

STATES = (
    "UNKNOWN",
    "QUEUED",
    "INITIALIZING",
    "RUNNING",
    "PAUSED",
    "COMPLETE",
    "EXECUTOR_ERROR",
    "SYSTEM_ERROR",
    "CANCELED",
    "PREEMPTED",
    "CANCELING",
)


@dataclass(frozen=True)
class Client:
    """What it makes of each of `STATES`.

    ``waits``: asks again; ``runs``: the same, and counts the task as running; ``succeeds``, ``fails``, ``canceled``: it
    has ended; ``again``: it has ended, and is submitted once more; ``refuses``: cannot read the answer.
    """

    name: str
    prefix: str
    """Where it looks, or is told to look in docs/clients.md."""
    source: str
    does: tuple[str, ...]

    def at(self, state: str) -> str:
        return self.does[STATES.index(state)]


def _client(name: str, prefix: str, source: str, words: str) -> Client:
    does = tuple(words.split())
    assert len(does) == len(STATES), name
    return Client(name, prefix, source, does)


CLIENTS = (
    _client(
        "Nextflow, nf-ga4gh 1.4",
        OLD_PREFIX,
        "nf-ga4gh 95f43e3, TesTaskHandler: STARTED_STATUSES, COMPLETE_STATUSES, readExitStatus",
        "waits waits runs  runs  runs    succeeds fails fails fails    waits   waits",
    ),
    _client(
        "Snakemake, snakemake-executor-plugin-tes 0.1.3",
        OLD_PREFIX,
        "Executor.check_active_jobs; it reads by py-tes 0.4.2, whose Task knows eight states",
        "waits waits waits waits refuses succeeds fails fails fails    refuses refuses",
    ),
    _client(
        "cwl-tes 0.3.0",
        PREFIX,
        "cwl_tes/tes.py: TESTask.is_done; it reads by py-tes 1.1",
        "waits waits waits waits waits   succeeds fails fails fails    waits   waits",
    ),
    _client(
        "Toil, toil-batch-system-tes 2.0.0",
        OLD_PREFIX,
        "TESBatchSystem.getUpdatedBatchJob, getRunningBatchJobIDs; it reads by py-tes before 1.0",
        "waits waits runs  runs  refuses succeeds fails fails canceled refuses refuses",
    ),
    _client(
        "Cromwell 92",
        OLD_PREFIX,
        "cromwell c805f3c, TesAsyncBackendJobExecutionActor.getTesStatus",
        "runs  runs  runs  runs  runs    succeeds fails fails canceled runs    runs",
    ),
    _client(
        "Sprocket, crankshaft 0.10",
        PREFIX,
        "crankshaft 64ab525, tes/monitor.rs and tes.rs",
        "waits waits waits runs  runs    succeeds fails fails canceled again   waits",
    ),
    _client(
        "Pulsar 0.16.0, pydantic-tes 0.4.0",
        OLD_PREFIX,
        "pulsar/client/tes.py: tes_state_to_pulsar_status, tes_state_is_complete; TesState has nine states",
        "fails fails waits runs  runs    succeeds fails fails canceled refuses refuses",
    ),
    _client(
        "py-tes 0.4.2",
        OLD_PREFIX,
        "HTTPClient.wait, models.Task; wait goes on where it cannot read",
        "fails waits waits waits refuses succeeds fails fails fails    refuses refuses",
    ),
    _client(
        "py-tes 1.1.4",
        PREFIX,
        "HTTPClient.wait",
        "fails waits waits waits fails   succeeds fails fails fails    fails   fails",
    ),
    _client(
        "ELIXIR suite, openapi-test-runner 1.1.0",
        PREFIX,
        "6656a37, compliance_suite/functions/client.py: check_poll",
        "waits waits waits waits waits   succeeds fails fails waits    fails   waits",
    ),
    _client(
        "ELIXIR suite, cancel",
        PREFIX,
        "the same with check_cancel: it waits for CANCELED or CANCELING and for nothing else",
        "waits waits waits waits waits   waits    waits waits canceled waits   canceled",
    ),
)
