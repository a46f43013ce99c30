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
    "shutdown_asyncgens",
]
"""Methods of an event loop that a workflow function may not use."""


EAGER = (
    "A task of a workflow cannot start eagerly: the tasks of a run start in the order in which they are "
    "made, when the code that has made them waits. Leave eager_start out."
)
"""Why a task with `eager_start=True` is refused."""


def _none(self: Any) -> None:
    """Libraries ask for these, and take None for the usual."""


def _set_task_factory(self: Any, factory: Any) -> None:
    if factory is not None:
        raise FatalError(
            "loop.set_task_factory() is not possible in a workflow function: its event loop makes tasks that "
            "know their order, so that a replay repeats it. Use such a factory in a step."
        )


def _set_exception_handler(self: Any, handler: Any) -> None:
    if handler is not None:
        raise FatalError(
            "loop.set_exception_handler() is not possible in a workflow function: the handler would be "
            "called when the garbage collector comes, which a replay does not repeat. What nobody has caught "
            "is logged with the run. Use such a handler in a step."
        )


ANSWERED = {
    "get_task_factory": _none,
    "set_task_factory": _set_task_factory,
    "get_exception_handler": _none,
    "set_exception_handler": _set_exception_handler,
}
"""Methods of an event loop that answer what libraries ask, and refuse a change."""


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
