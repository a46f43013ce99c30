"""The hook registry: takes payloads for hooks, from whoever has a token.

It keeps nothing in memory. What comes together in one call is stored together, in one transaction: each
payload with its hook's new status and a row in the run's inbox. Hooks that have a schema do not take a
payload that nobody has checked. The transaction leaves these payloads out and says what they must fit; they
are checked, and those that fit are stored in another transaction. After that the senders are answered, and
the coordinators of the runs are nudged. If the registry dies in between, the sweep finds the rows, and a
sender who calls again under the same delivery key is told what the first call came to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Raw

from pyworkflow_ray.actors.codes import CodeLoader
from pyworkflow_ray.actors.payloads import configured_values
from pyworkflow_ray.actors.schema_checks import AskElsewhere, Question, verdict
from pyworkflow_ray.actors.settings import EngineSettings
from pyworkflow_ray.engine.events import HookReceived, encode_data
from pyworkflow_ray.exceptions import WorkflowError
from pyworkflow_ray.storage.codes import load_code
from pyworkflow_ray.storage.hooks import ANY_SCHEMA, Delivery, HookRecord, UncheckedError, deliver_all
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.storage.works import together
from pyworkflow_ray.values.failures import Failure, capture


class HookAnswer(msgspec.Struct, frozen=True):
    """What somebody gives to a hook; its representation shows no secret.

    Args:
        delivery_key: The same for the same delivery: a second one has no effect.
        payload: The value, encoded; None for a rejection.
        rejection: The error to raise where the workflow waits for the hook.
    """

    token: str
    delivery_key: str
    payload: bytes | None = None
    rejection: Failure | None = None

    def __repr__(self) -> str:
        return f"HookAnswer(is_rejection={self.payload is None})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("is_rejection", self.payload is None)]


class HookReply(msgspec.Struct, frozen=True):
    """What became of an answer: the run and the hook that took it, or why none did."""

    run_id: str = ""
    hook_id: str = ""
    refusal: Failure | None = None


_Result = HookRecord | Failure | BaseException
_answers_decoder = msgspec.msgpack.Decoder(list[HookAnswer])
_encoder = msgspec.msgpack.Encoder()


class HookRegistry:
    """Takes payloads for the hooks of a storage.

    Args:
        settings: The settings of all actors.
        nudge: Has runs look into their inboxes. It may fail: the sweep finds the rows.
        storage: Where the hooks are; opened from `settings` by default.
        now: A clock for the hooks' timeouts; the database's by default.
    """

    def __init__(
        self,
        settings: EngineSettings,
        nudge: Callable[[Collection[str]], None],
        storage: Storage | None = None,
        now: Callable[[], datetime] | None = None,
    ) -> None:
        self.settings = settings
        self._now = now
        self._nudge = nudge
        self._opened = storage
        self._loader = CodeLoader()
        self._bundles: dict[str, str | None] = {}
        """The bundles of the schemas' code, by its hash."""

    ask_elsewhere: AskElsewhere | None = None
    """Checks payloads of local code. Without it, this process has the code."""

    async def deliver_all(self, answers: bytes) -> bytes:
        """Give hooks what they wait for. The `HookReply` of each `HookAnswer`, in their order.

        An answer that is refused is refused alone:

        - `HookNotFoundError`, `HookExpiredError`, `HookAlreadyReceivedError`: The hook takes none.
        - `HookValidationError`: The payload does not fit the hook's schema; it was not stored.
        - Any other error: What the schema raised as it was loaded or used, or the database's refusal.
        """
        given = _answers_decoder.decode(answers)
        results: dict[int, _Result] = {}
        open_: dict[int, Delivery] = {}
        for index, answer in enumerate(given):
            try:
                open_[index] = _delivery(answer)
            except ValueError as error:
                results[index] = error
        while open_:
            delivered = await self._deliver(open_)
            unchecked = {i: each for i, each in delivered.items() if isinstance(each, UncheckedError)}
            results |= delivered
            verdicts = await self._verdicts(given, unchecked)
            results |= {i: error for i, error in verdicts.items() if error is not None}
            open_ = {
                i: msgspec.structs.replace(open_[i], fits=unchecked[i].schema_hash)
                for i, error in verdicts.items()
                if error is None
            }
        return _encoder.encode([_reply(results[index]) for index in range(len(given))])

    async def _deliver(self, deliveries: Mapping[int, Delivery]) -> dict[int, _Result]:
        """What each delivery came to; the runs that have received something are nudged."""
        storage, now = self._storage(), None if self._now is None else self._now()
        results: Sequence[_Result]
        try:
            results = await storage.write(deliver_all([*deliveries.values()], now=now))
        except Exception as error:
            if len(deliveries) == 1:
                return dict.fromkeys(deliveries, error)
            # The database refuses one of them, and the writer finds out which if each is a write of its own.
            alone = [storage.write(deliver_all([each], now=now)) for each in deliveries.values()]
            answers = await asyncio.gather(*alone, return_exceptions=True)
            results = [each if isinstance(each, BaseException) else each[0] for each in answers]
        run_ids = {each.run_id for each in results if isinstance(each, HookRecord)}
        if run_ids:
            self._nudge(run_ids)
        return dict(zip(deliveries, results, strict=True))

    async def _verdicts(
        self, given: Sequence[HookAnswer], unchecked: Mapping[int, UncheckedError]
    ) -> dict[int, Failure | BaseException | None]:
        """For each payload that must fit a schema: None if it does, or else the error."""
        if not unchecked:
            return {}
        questions = {
            index: Question(wanted.run_id, wanted.schema_hash, wanted.name, given[index].payload or b"null")
            for index, wanted in unchecked.items()
        }
        ask = self.ask_elsewhere
        elsewhere: dict[int, Question] = {}
        if ask is not None:
            hashes = {question.schema_hash for question in questions.values()}
            try:
                local = await asyncio.to_thread(self._of_local_code, hashes)
            except Exception as error:  # the database does not answer
                return dict.fromkeys(unchecked, error)
            elsewhere = {i: each for i, each in questions.items() if each.schema_hash in local}
        here = {i: each for i, each in questions.items() if i not in elsewhere}
        verdicts: dict[int, Failure | BaseException | None] = {}
        if here:
            verdicts |= await asyncio.to_thread(self._check, here)
        if ask is not None and elsewhere:
            answers = await asyncio.gather(*map(ask, elsewhere.values()))
            verdicts |= dict(zip(elsewhere, answers, strict=True))
        return verdicts

    def _of_local_code(self, hashes: Collection[str]) -> set[str]:
        """Those of the schemas whose code needs a bundle."""
        missing = [hash_ for hash_ in hashes if hash_ not in self._bundles]
        codes = self._storage().read(together(*map(load_code, missing))) if missing else ()
        for hash_, code in zip(missing, codes, strict=True):
            self._bundles[hash_] = None if code is None else code.bundle
        return {hash_ for hash_ in hashes if self._bundles[hash_] is not None}

    def _check(self, questions: Mapping[int, Question]) -> dict[int, BaseException | None]:
        try:
            values = configured_values(self.settings.payload_codec, self.settings.payload_limit)
        except Exception as error:
            return dict.fromkeys(questions, error)
        storage, loader = self._storage(), self._loader
        return {index: verdict(each, storage, loader, values) for index, each in questions.items()}

    def _storage(self) -> Storage:
        if self._opened is None:
            self._opened = self.settings.open_storage()
        return self._opened

    async def status(self) -> dict[str, Any]:
        """Whether it is there, for tools."""
        return {"storage": self._storage().url}


def _delivery(answer: HookAnswer) -> Delivery:
    """The answer as the storage takes it.

    Raises:
        ValueError: It is not the JSON text that it should be.
    """
    if answer.payload is None:
        received, fits = HookReceived(hook_id="", failure=answer.rejection), ANY_SCHEMA
    else:
        received, fits = HookReceived(hook_id="", payload=Raw(answer.payload)), None
    # Without the hook's id: which hook has the token is known in the commit.
    members = msgspec.json.decode(encode_data(received), type=dict[str, Raw])
    del members["hook_id"]
    return Delivery(answer.token, answer.delivery_key, msgspec.json.encode(members).decode(), fits)


def _reply(result: _Result) -> HookReply:
    if isinstance(result, HookRecord):
        return HookReply(result.run_id, result.hook_id)
    refusal = result if isinstance(result, Failure) else capture(result)
    if isinstance(result, WorkflowError):
        # It says all itself. Where in here it was raised tells the sender nothing.
        refusal = msgspec.structs.replace(refusal, traceback="")
    return HookReply(refusal=refusal)
