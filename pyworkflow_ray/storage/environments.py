"""The environments of runs: a job's `runtime_env`, stored by its hash, and the bundle of a run's local code.

An environment is a text: ``""``, the `runtime_env`'s hash, ``code.BUNDLE``, or ``HASH.code.BUNDLE``. It is
part of the names of the coordinators that drive the runs of this environment. Timers belong to a job's
`runtime_env` alone, because whoever makes a coordinator can name the bundle, and inherits the `runtime_env`.
"""

from __future__ import annotations

from pyworkflow_ray.storage.statements import Statement
from pyworkflow_ray.storage.works import Steps, last, work

_CODE = "code."


def environment_of(job: str, bundle: str | None) -> str:
    """The environment of a run.

    Args:
        job: The hash of its job's `runtime_env`; empty if the job has none.
        bundle: The hash of the bundle of its code.
    """
    job = job_of(job)
    return job if bundle is None else f"{job}.{_CODE}{bundle}" if job else f"{_CODE}{bundle}"


def job_of(environment: str) -> str:
    """The part of an environment that comes from the job's `runtime_env`."""
    return environment.partition(_CODE)[0].removesuffix(".")


def bundle_of(environment: str) -> str | None:
    """The bundle in an environment; None if it names none."""
    return environment.partition(_CODE)[2] or None


_SAVE = Statement("INSERT INTO environments (hash, data) VALUES (:hash, :data) ON CONFLICT DO NOTHING")
_LOAD = Statement("SELECT data FROM environments WHERE hash = :hash")


@work
def save_environment(hash_: str, data: str) -> Steps[None]:
    """Store a `runtime_env`, as JSON text. One that is stored already is a success."""
    yield last(_SAVE.change(hash=hash_, data=data))


@work
def load_environment(hash_: str) -> Steps[str | None]:
    """The JSON text of the `runtime_env` of this hash, or None."""
    (row,) = yield last(_LOAD.find(hash=hash_))
    return None if row is None else str(row[0])
