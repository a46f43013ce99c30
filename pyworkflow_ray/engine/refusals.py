"""What a run's event loop refuses: real input and output, threads, and being run by anybody else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from pyworkflow_ray.exceptions import FatalError

REFUSED = [
    "run_forever",
    "run_until_complete",
    "stop",
    "close",
    "call_soon_threadsafe",
    "run_in_executor",
    "set_default_executor",
    "shutdown_default_executor",
    "getaddrinfo",
    "getnameinfo",
    "create_connection",
    "create_server",
    "start_tls",
    "sendfile",
    "create_unix_connection",
    "create_unix_server",
    "create_datagram_endpoint",
    "connect_accepted_socket",
    "connect_read_pipe",
    "connect_write_pipe",
    "subprocess_shell",
    "subprocess_exec",
    "add_reader",
    "remove_reader",
    "add_writer",
    "remove_writer",
    "sock_recv",
    "sock_recv_into",
    "sock_recvfrom",
    "sock_recvfrom_into",
    "sock_sendall",
    "sock_sendto",
    "sock_connect",
    "sock_accept",
    "sock_sendfile",
    "add_signal_handler",
    "remove_signal_handler",
    "set_task_factory",
    "get_task_factory",
    "set_exception_handler",
    "get_exception_handler",
    "shutdown_asyncgens",
]
"""Methods of an event loop that a workflow function may not use."""


def refusing(name: str) -> Callable[..., NoReturn]:
    """A method that refuses, and says where such a thing belongs."""

    def refused(self: Any, *args: Any, **kwargs: Any) -> NoReturn:
        raise FatalError(
            f"loop.{name}() is not possible in a workflow function: its event loop does no real input or "
            "output and has no threads, because everything it does must come out the same in a replay. "
            "Do this in a step (@step, or @step(local=True) when it is cheap)."
        )

    refused.__name__ = name
    return refused
