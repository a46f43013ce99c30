"""Answers to hooks on their way to the hook registry, many in one call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import msgspec

from pyworkflow_ray.actors.hook_registry import HookAnswer, HookReply
from pyworkflow_ray.client.gatherings import Gathering
from pyworkflow_ray.exceptions import WorkflowFailedError
from pyworkflow_ray.values.failures import restore

MOST_IN_CALL = 250
MOST_BYTES_IN_CALL = 4 * 2**20
"""Beyond this, payloads go in another call. A larger one goes by itself."""

Taken = tuple[str, str]
"""The ids of the run and the hook that took an answer."""

_encoder = msgspec.msgpack.Encoder()
_replies_decoder = msgspec.msgpack.Decoder(list[HookReply])


def hook_answers(call: Callable[[bytes], Awaitable[bytes]]) -> Gathering[HookAnswer, Taken]:
    """Sends answers to a hook registry, from one event loop.

    Args:
        call: Calls the registry's `deliver_all`.
    """

    async def send(answers: Sequence[HookAnswer]) -> list[Taken | BaseException]:
        replies = _replies_decoder.decode(await call(_encoder.encode(answers)))
        return [_result(reply) for reply in replies]

    return Gathering(send, MOST_IN_CALL, _size, MOST_BYTES_IN_CALL)


def _size(answer: HookAnswer) -> int:
    return len(answer.payload or b"")


def _result(reply: HookReply) -> Taken | BaseException:
    if reply.refusal is None:
        return reply.run_id, reply.hook_id
    return restore(reply.refusal, fallback=WorkflowFailedError)
