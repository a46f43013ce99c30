"""Connections: this process's place in a Ray cluster.

`connect` is the one place where a cluster is joined or started. Much of Ray's interface starts a cluster by
itself when there is none. After `ray.shutdown()` nothing of ours may do that: so `require_joined` comes
before each call to Ray that a client may make.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from pyworkflow_ray.exceptions import ConfigurationError, NoAnswerError


def has_joined() -> bool:
    """Whether this process has joined a Ray cluster; does not import Ray."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def require_joined() -> None:
    """Check that this process is in a Ray cluster, before a call that would start one otherwise.

    Raises:
        NoAnswerError: It has left its cluster.
    """
    if not has_joined():
        raise NoAnswerError(
            "This process has left its Ray cluster (ray.shutdown()), so the engine's actors cannot be "
            "reached. What is stored is safe. Make the call again to join a cluster."
        )


def joined_job() -> str | None:
    """The id of this process's job in the cluster that it has joined. It changes with each joining."""
    if not has_joined():
        return None
    import ray

    return str(ray.get_runtime_context().get_job_id())


def is_own_cluster() -> bool:
    """Whether this process has started the cluster that it has joined."""
    # Ray has no public way to ask. If this attribute goes, a user is no longer warned that the cluster ends.
    from ray._private import worker

    return bool(getattr(getattr(worker, "_global_node", None), "head", False))


def named_address(address: str | None) -> str | None:
    """The address of the cluster to join: the setting's, else that of Ray's own variable."""
    return address or os.environ.get("RAY_ADDRESS") or None


def address_of_local_cluster() -> str | None:
    """The address of the cluster that `ray start` has left running on this machine, as Ray notes it."""
    with contextlib.suppress(OSError):
        return Path("/tmp/ray/ray_current_cluster").read_text().strip() or None
    return None


def connect(address: str | None, namespace: str) -> None:
    """Join the Ray cluster, or start a local one when none is named and none is running.

    Raises:
        ConfigurationError: The cluster that was named is not there.
    """
    import ray

    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not os.environ.get("RAY_ADDRESS", "x"):
        del os.environ["RAY_ADDRESS"]  # Ray takes an empty one for an address that is broken
    address = named_address(address)
    _require_listener(address)
    # A cluster of this process's own ends with the process. It gets no dashboard, which starts slowly.
    dashboard: dict[str, Any] = {"include_dashboard": False} if address in (None, "local") else {}
    try:
        # Ray logs much about itself. A person wants to see the lines of the steps.
        _on_lasting_thread(
            lambda: ray.init(address=address, namespace=namespace, logging_level=logging.ERROR, **dashboard)
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _not_there(address, error) from error


def _on_lasting_thread(call: Callable[[], Any]) -> None:
    """Make a call on a thread that lasts as long as the process.

    The kernel ends the processes of a local cluster when the thread that started them ends. A thread of an
    event loop would end when `asyncio.run` returns.
    """
    called: Future[Any] = Future()

    def run() -> None:
        try:
            called.set_result(call())
        except BaseException as error:
            called.set_exception(error)
        else:
            threading.Event().wait()

    threading.Thread(target=run, name="pyworkflow-ray", daemon=True).start()
    called.result()


def _require_listener(address: str | None) -> None:
    """Raise at once if nobody listens at the address: Ray itself would try for minutes."""
    host, separator, port = (address or "").removeprefix("ray://").rpartition(":")
    if separator and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise _not_there(address, error) from error


def _not_there(address: str | None, error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"The Ray cluster at {address or 'this machine'} cannot be joined: {error}. Start one with "
        "`ray start --head`, name another with configure(address='...') or RAY_ADDRESS, or leave the "
        "address out to run on a local cluster of this process. If the cluster is there: all processes must "
        "have the same RAY_AUTH_MODE and token."
    )
