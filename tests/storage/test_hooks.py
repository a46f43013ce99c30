"""What hooks promise: each takes one delivery, which reaches its run, and tells its secrets to nobody."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from threading import Barrier, Event
from typing import Any

import pytest
from sqlalchemy.engine import Connection

from pyworkflow_ray.exceptions import HookAlreadyReceivedError, HookExpiredError, HookNotFoundError
from pyworkflow_ray.statuses import HookStatus, RunStatus
from pyworkflow_ray.storage.hooks import (
    ANY_SCHEMA,
    Delivery,
    HookRecord,
    NewHook,
    UncheckedError,
    create_hook,
    deliver,
    deliver_all,
    disposing_hooks,
    expire_hooks,
    get_hook,
    list_hooks,
)
from pyworkflow_ray.storage.inboxes import unread
from pyworkflow_ray.storage.runs import delete_run
from pyworkflow_ray.storage.storages import Storage
from pyworkflow_ray.storage.works import Steps, last, work
from tests.storage.builders import NOON, accepted, appended, claimed, read, write

DATA = '{"payload":{"approved":true}}'


@work
def dispose_hooks(run_id: str, hook_ids: list[str]) -> Steps[None]:
    yield last(*disposing_hooks(run_id, hook_ids))


def _new(hook_id: str = "approval#1", token: str = "secret", **fields: Any) -> NewHook:
    return NewHook(**{"hook_id": hook_id, "token": token, "name": "approval", **fields})


def _created(storage: Storage, run_id: str = "run_1", **fields: Any) -> HookRecord:
    """The hook, in a run that is accepted if it is not there."""
    accepted(storage, run_id)
    new = _new(**fields)
    assert write(storage, create_hook, run_id, new) is None
    hook = read(storage, get_hook, new.token)
    assert hook is not None
    return hook


def _status(storage: Storage, token: str = "secret") -> HookStatus:
    hook = read(storage, get_hook, token)
    assert hook is not None
    return hook.status


def _inbox(storage: Storage, run_id: str = "run_1") -> list[tuple[str, str, Any]]:
    return [(row.dedup_key, row.kind, json.loads(row.data)) for row in read(storage, unread, run_id)]


def test_a_created_hook_is_pending_with_all_that_was_given(storage: Storage) -> None:
    given = {
        "hook_id": "approval#1",
        "token": "secret",
        "name": "approval",
        "expires_at": NOON,
        "payload_schema": '{"type":"object"}',
        "schema_hash": "abc",
        "metadata": '{"asked":"ü"}',
    }

    hook = _created(storage, **given)

    assert {name: getattr(hook, name) for name in given} == given
    assert (hook.run_id, hook.status) == ("run_1", HookStatus.PENDING)
    assert (hook.received_at, hook.payload) == (None, None)
    assert hook.created_at.utcoffset() == timedelta(0)
    assert read(storage, get_hook, "other") is None


def test_a_hook_whose_creation_was_lost_is_created_once(storage: Storage) -> None:
    first = _created(storage)
    assert write(storage, create_hook, "run_1", _new()) is None
    assert read(storage, list_hooks)[0] == [first]

    write(storage, deliver, "secret", "key", DATA)
    assert write(storage, create_hook, "run_1", _new()) is None
    assert _status(storage) is HookStatus.RECEIVED


def test_a_token_that_another_hook_waits_with_names_its_run(storage: Storage) -> None:
    _created(storage, "run_1")
    accepted(storage, "run_2")

    assert write(storage, create_hook, "run_2", _new()) == "run_1"
    assert write(storage, create_hook, "run_1", _new("approval#2")) == "run_1"
    assert write(storage, create_hook, "run_2", _new(token="other")) is None
    assert [hook.run_id for hook in read(storage, list_hooks, run_id="run_2")[0]] == ["run_2"]


@pytest.mark.parametrize("status", [HookStatus.RECEIVED, HookStatus.EXPIRED, HookStatus.DISPOSED])
def test_a_token_is_taken_over_from_a_hook_that_waits_no_longer(storage: Storage, status: HookStatus) -> None:
    _created(storage, "run_1")
    accepted(storage, "run_2")
    if status is HookStatus.RECEIVED:
        write(storage, deliver, "secret", "key", DATA)
    elif status is HookStatus.EXPIRED:
        write(storage, expire_hooks, "run_1", ["approval#1"])
    else:
        write(storage, dispose_hooks, "run_1", ["approval#1"])

    assert write(storage, create_hook, "run_2", _new()) is None

    hook = read(storage, get_hook, "secret")
    assert hook is not None
    assert (hook.run_id, hook.status) == ("run_2", HookStatus.PENDING)
    (former,), _ = read(storage, list_hooks, run_id="run_1")
    assert former.status is status
    assert former.token != "secret"
    assert write(storage, create_hook, "run_1", _new()) is None, "it was created, whatever became of it"
    assert write(storage, deliver, "secret", "another key", DATA).run_id == "run_2"


def test_a_token_is_taken_over_again_and_again(storage: Storage) -> None:
    accepted(storage)
    for number in range(3):
        assert write(storage, create_hook, "run_1", _new(f"approval#{number}")) is None
        assert write(storage, deliver, "secret", f"key-{number}", DATA).hook_id == f"approval#{number}"
    assert len(read(storage, list_hooks)[0]) == 3


def test_of_two_that_want_a_token_at_once_one_gets_it(shared_url: str) -> None:
    with Storage(shared_url) as first, Storage(shared_url) as second, ThreadPoolExecutor(2) as pool:
        for number in range(10):
            token = f"token-{number}"
            hook = _created(first, f"run_{number}", token=token)
            write(first, dispose_hooks, hook.run_id, [hook.hook_id])
            for name in ("a", "b"):
                accepted(first, f"{name}_{number}")
            new = _new(token=token)
            answers = _at_once(
                pool,
                partial(write, first, create_hook, f"a_{number}", new),
                partial(write, second, create_hook, f"b_{number}", new),
            )
            assert answers.count(None) == 1
            winner = read(first, get_hook, token)
            assert winner is not None
            assert {winner.run_id} == set(answers) - {None}


def _at_once(pool: ThreadPoolExecutor, *calls: Callable[[], Any]) -> list[Any]:
    """What the calls return, or raise, when they are made at once."""
    barrier = Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        barrier.wait()
        try:
            return call()
        except Exception as error:
            return error

    return list(pool.map(run, calls))


def test_a_delivery_is_received_and_posted_to_the_run(storage: Storage) -> None:
    created = _created(storage)

    hook = write(storage, deliver, "secret", "key", DATA)

    assert (hook.status, hook.payload, hook.run_id) == (HookStatus.RECEIVED, DATA, "run_1")
    assert hook.received_at is not None
    assert hook.received_at >= created.created_at
    assert read(storage, get_hook, "secret") == hook
    expected = {"hook_id": "approval#1", "payload": {"approved": True}}
    assert _inbox(storage) == [("hook:approval#1", "hook.received", expected)]


def test_values_are_passed_on_to_the_letter(storage: Storage) -> None:
    _created(storage, hook_id='"ü"#1')
    value = r'{"n": 1.0000000000000000001, "big": 123456789012345678901, "s": "\ud83d\ude00\u0000/\/", "a":1}'

    write(storage, deliver, "secret", "key", '{ "payload" : ' + value + ' , "b": [ ] }')

    (row,) = read(storage, unread, "run_1")
    assert value in row.data
    assert json.loads(row.data) == {"hook_id": '"ü"#1', "payload": json.loads(value), "b": []}


def test_a_failure_is_delivered_as_a_payload_is(storage: Storage) -> None:
    _created(storage)
    write(storage, deliver, "secret", "key", '{"failure":{"type":"ValueError"}}')
    assert _inbox(storage)[0][2] == {"hook_id": "approval#1", "failure": {"type": "ValueError"}}


@pytest.mark.parametrize("data", ["[]", "7", '{"payload":', ""])
def test_only_a_json_object_can_be_delivered(storage: Storage, data: str) -> None:
    _created(storage)
    with pytest.raises(ValueError, match=r"."):
        write(storage, deliver, "secret", "key", data)
    assert _status(storage) is HookStatus.PENDING


def test_a_second_delivery_is_refused(storage: Storage) -> None:
    _created(storage)
    hook = write(storage, deliver, "secret", "key", DATA)

    with pytest.raises(HookAlreadyReceivedError) as caught:
        write(storage, deliver, "secret", "another key", '{"payload":2}')

    assert caught.value.hook_id == "approval#1"
    assert read(storage, get_hook, "secret") == hook
    assert len(_inbox(storage)) == 1


def test_a_delivery_whose_commit_was_lost_has_one_effect(storage: Storage) -> None:
    run = claimed(storage)
    write(storage, create_hook, "run_1", _new())
    first = write(storage, deliver, "secret", "key", DATA)
    appended(storage, run, "hook.received", read_inbox=[row.id for row in read(storage, unread, "run_1")])

    assert write(storage, deliver, "secret", "key", DATA) == first
    assert _inbox(storage) == []


def test_a_delivery_that_is_run_again_does_not_reach_the_tokens_next_hook(storage: Storage) -> None:
    """1. A delivery is committed, its answer lost. 2. The token goes to another hook. 3. It is run again."""
    _created(storage, "run_1")
    write(storage, deliver, "secret", "key", DATA)
    _created(storage, "run_2")

    assert write(storage, deliver, "secret", "key", DATA).run_id == "run_1"
    assert _status(storage) is HookStatus.PENDING
    assert _inbox(storage, "run_2") == []


def test_one_key_may_deliver_to_several_hooks(storage: Storage) -> None:
    for number in range(2):
        _created(storage, f"run_{number}", token=f"token-{number}")
        assert write(storage, deliver, f"token-{number}", "key", DATA).run_id == f"run_{number}"


def test_a_hook_with_a_schema_takes_only_what_fits_it(storage: Storage) -> None:
    _created(storage, "run_1", token="of no schema")
    for token in ("fits", "rejected"):
        _created(storage, f"run_{token}", token=token, schema_hash="schema-1")

    for fits in (None, "schema-2"):
        with pytest.raises(UncheckedError) as caught:
            write(storage, deliver, "fits", "key", DATA, fits=fits)
        assert (caught.value.name, caught.value.schema_hash) == ("approval", "schema-1")
    assert _status(storage, "fits") is HookStatus.PENDING
    assert _inbox(storage, "run_fits") == []

    assert write(storage, deliver, "fits", "key", DATA, fits="schema-1").run_id == "run_fits"
    assert write(storage, deliver, "rejected", "key", DATA, fits=ANY_SCHEMA).run_id == "run_rejected"
    assert write(storage, deliver, "of no schema", "key", DATA, fits="schema-2").run_id == "run_1"
    assert write(storage, deliver, "fits", "key", DATA).run_id == "run_fits", "it was delivered before"


def test_a_payload_that_was_checked_for_one_hook_is_not_given_to_the_next(storage: Storage) -> None:
    """1. A payload is checked. 2. The token goes to a hook of another schema. 3. The payload is delivered."""
    _created(storage, "run_1", schema_hash="schema-1")
    write(storage, dispose_hooks, "run_1", ["approval#1"])
    _created(storage, "run_2", schema_hash="schema-2")
    with pytest.raises(UncheckedError) as caught:
        write(storage, deliver, "secret", "key", DATA, fits="schema-1")
    assert caught.value.schema_hash == "schema-2"


def test_deliveries_that_go_together_have_their_own_ends(storage: Storage) -> None:
    for number in range(3):
        _created(storage, f"run_{number}", token=f"token-{number}")
    _created(storage, "run_checked", token="checked", schema_hash="schema")
    write(storage, deliver, "token-2", "another key", DATA)
    deliveries = [
        Delivery("token-0", "key", DATA),
        Delivery("nobody's", "key", DATA),
        Delivery("token-0", "a later key", DATA),
        Delivery("token-2", "key", DATA),
        Delivery("checked", "key", DATA),
        Delivery("token-1", "key", DATA),
    ]

    for _ in range(2):
        first, *refused, last_ = write(storage, deliver_all, deliveries)

        assert (first.run_id, last_.run_id) == ("run_0", "run_1")
        assert [type(each) for each in refused] == [
            HookNotFoundError,
            HookAlreadyReceivedError,
            HookAlreadyReceivedError,
            UncheckedError,
        ]
    for number in range(3):
        assert len(_inbox(storage, f"run_{number}")) == 1
    assert write(storage, deliver_all, []) == []


def test_two_deliveries_at_once_have_one_winner(shared_url: str) -> None:
    with Storage(shared_url) as first, Storage(shared_url) as second, ThreadPoolExecutor(2) as pool:
        for number in range(20):
            token = f"token-{number}"
            _created(first, f"run_{number}", token=token)
            answers = _at_once(
                pool,
                partial(write, first, deliver, token, "one", '{"payload":1}'),
                partial(write, second, deliver, token, "two", '{"payload":2}'),
            )
            (won,) = [answer for answer in answers if isinstance(answer, HookRecord)]
            assert sum(isinstance(answer, HookAlreadyReceivedError) for answer in answers) == 1
            ((_, _, mail),) = _inbox(first, f"run_{number}")
            assert won.payload == json.dumps({"payload": mail["payload"]}, separators=(",", ":"))


def test_the_same_delivery_twice_at_once_has_one_effect(shared_url: str) -> None:
    with Storage(shared_url) as first, Storage(shared_url) as second, ThreadPoolExecutor(2) as pool:
        for number in range(10):
            token = f"token-{number}"
            _created(first, f"run_{number}", token=token)
            one, two = _at_once(
                pool,
                partial(write, first, deliver, token, "key", DATA),
                partial(write, second, deliver, token, "key", DATA),
            )
            assert one == two
            assert len(_inbox(first, f"run_{number}")) == 1


def test_a_delivery_that_is_rolled_back_leaves_the_hook_pending(storage: Storage) -> None:
    _created(storage)

    def crash(connection: Connection) -> None:
        deliver("secret", "key", DATA).on(connection)
        raise RuntimeError("the process dies before the commit")

    with pytest.raises(RuntimeError):
        write(storage, crash)

    assert _status(storage) is HookStatus.PENDING
    assert _inbox(storage) == []
    assert write(storage, deliver, "secret", "another key", DATA).payload == DATA


def test_a_token_that_no_hook_has_is_not_found(storage: Storage) -> None:
    with pytest.raises(HookNotFoundError) as caught:
        write(storage, deliver, "secret", "key", DATA)
    assert "secret" not in str(caught.value)


def test_a_hook_past_its_time_takes_nothing(storage: Storage) -> None:
    past, ahead = (datetime.now(UTC) + timedelta(minutes=minutes) for minutes in (-1, 1))
    _created(storage, "run_1", token="past", expires_at=past)
    _created(storage, "run_2", token="ahead", expires_at=ahead)

    with pytest.raises(HookExpiredError):
        write(storage, deliver, "past", "key", DATA)

    assert _status(storage, "past") is HookStatus.PENDING, "its run has not learnt of it yet"
    assert _inbox(storage) == []
    assert write(storage, deliver, "ahead", "key", DATA).status is HookStatus.RECEIVED


def test_a_hook_expires_or_is_received(storage: Storage) -> None:
    _created(storage, "run_1", token="a")
    _created(storage, "run_2", token="b")
    write(storage, deliver, "b", "key", DATA)

    assert write(storage, expire_hooks, "run_1", ["approval#1"])
    assert write(storage, expire_hooks, "run_1", ["approval#1"]), "it is safe to run again"
    assert not write(storage, expire_hooks, "run_2", ["approval#1"])
    assert not write(storage, expire_hooks, "run_2", ["no such hook"])

    assert (_status(storage, "a"), _status(storage, "b")) == (HookStatus.EXPIRED, HookStatus.RECEIVED)
    with pytest.raises(HookExpiredError) as caught:
        write(storage, deliver, "a", "key", DATA)
    assert caught.value.hook_id == "approval#1"


def test_only_pending_hooks_are_disposed_of(storage: Storage) -> None:
    accepted(storage)
    for number in range(4):
        write(storage, create_hook, "run_1", _new(f"h#{number}", f"token-{number}"))
    write(storage, expire_hooks, "run_1", ["h#1"])
    write(storage, deliver, "token-2", "key", DATA)

    for _ in range(2):
        write(storage, dispose_hooks, "run_1", ["h#0", "h#1", "h#2", "no such hook"])

    statuses = [_status(storage, f"token-{number}").value for number in range(4)]
    assert statuses == ["disposed", "expired", "received", "pending"]
    with pytest.raises(HookExpiredError):
        write(storage, deliver, "token-0", "key", DATA)
    assert not write(storage, expire_hooks, "run_1", ["h#0"])


def test_an_append_disposes_of_the_hooks_that_it_names(storage: Storage) -> None:
    run = claimed(storage)
    for number in range(2):
        write(storage, create_hook, "run_1", _new(f"h#{number}", f"token-{number}"))

    appended(storage, run, "hook.disposed", hooks_disposed=["h#0"])

    assert _status(storage, "token-0") is HookStatus.DISPOSED
    assert _status(storage, "token-1") is HookStatus.PENDING


@pytest.mark.parametrize("status", [status for status in RunStatus if status.is_terminal])
def test_an_ended_run_waits_for_no_hook(storage: Storage, status: RunStatus) -> None:
    run = claimed(storage)
    _created(storage, "run_2", token="other")
    for number in range(3):
        write(storage, create_hook, "run_1", _new(f"h#{number}", f"token-{number}"))
    write(storage, deliver, "token-0", "key", DATA)

    appended(storage, run, changes={"status": status}, release=True)

    statuses = [_status(storage, f"token-{number}").value for number in range(3)]
    assert statuses == ["received", "disposed", "disposed"]
    assert _status(storage, "other") is HookStatus.PENDING
    assert _inbox(storage) == []
    with pytest.raises(HookExpiredError):
        write(storage, deliver, "token-1", "key", DATA)


def test_a_suspended_run_keeps_its_hooks(storage: Storage) -> None:
    run = claimed(storage)
    write(storage, create_hook, "run_1", _new())
    appended(storage, run, changes={"status": RunStatus.SUSPENDED}, release=True)
    assert write(storage, deliver, "secret", "key", DATA).status is HookStatus.RECEIVED


def test_a_run_that_ends_during_a_delivery_leaves_nothing_unread(shared_url: str) -> None:
    """1. A delivery has found the hook pending. 2. The run ends. 3. The delivery is committed."""
    with Storage(shared_url) as client, Storage(shared_url) as coordinator, ThreadPoolExecutor(2) as pool:
        run = claimed(coordinator)
        write(coordinator, create_hook, "run_1", _new())
        delivered = Event()

        def slowly(connection: Connection) -> None:
            deliver("secret", "key", DATA).on(connection)
            delivered.set()
            time.sleep(0.3)

        delivery = pool.submit(write, client, slowly)
        assert delivered.wait(30)
        appended(coordinator, run, changes={"status": RunStatus.COMPLETED}, release=True)
        delivery.result(timeout=30)

        assert _status(client) is HookStatus.RECEIVED
        assert _inbox(client) == []


def test_a_hook_goes_with_its_run(storage: Storage) -> None:
    _created(storage)
    write(storage, delete_run, "run_1")
    assert read(storage, get_hook, "secret") is None
    _created(storage, "run_2")


def test_hooks_are_listed_page_by_page_newest_first(storage: Storage) -> None:
    def create_all(connection: Connection) -> None:
        for number in range(11):
            create_hook("run_1", _new(f"h|{number:02}", f"token-{number}")).on(connection)

    accepted(storage)
    write(storage, create_all)
    _created(storage, "run_2", token="newest")

    seen: list[HookRecord] = []
    cursor, pages = None, 0
    while pages == 0 or cursor is not None:
        page, cursor = read(storage, list_hooks, limit=4, cursor=cursor)
        seen += page
        pages += 1
        if cursor is not None:
            assert "secret" not in cursor

    assert pages == 3
    assert len({(hook.run_id, hook.hook_id) for hook in seen}) == 12
    assert seen == sorted(seen, key=lambda hook: (hook.created_at, hook.run_id, hook.hook_id), reverse=True)
    assert seen[0].token == "newest"


def test_lists_of_hooks_are_narrowed_by_run_and_status(storage: Storage) -> None:
    for number in range(3):
        _created(storage, f"run_{number}", token=f"token-{number}")
    write(storage, deliver, "token-1", "key", DATA)

    def runs(**options: Any) -> list[str]:
        return sorted(hook.run_id for hook in read(storage, list_hooks, **options)[0])

    assert runs(status=HookStatus.PENDING) == ["run_0", "run_2"]
    assert runs(status=HookStatus.RECEIVED) == ["run_1"]
    assert runs(run_id="run_2") == ["run_2"]
    assert runs(run_id="run_2", status=HookStatus.EXPIRED) == []


@pytest.mark.parametrize("cursor", ["nonsense", "WyJhIl0=", "W10=", "ü"])
def test_a_bad_cursor_is_a_value_error(storage: Storage, cursor: str) -> None:
    with pytest.raises(ValueError, match="cursor"):
        read(storage, list_hooks, cursor=cursor)


def test_neither_token_nor_payload_is_shown(storage: Storage) -> None:
    _created(storage)
    hook = write(storage, deliver, "secret", "key", '{"payload":"hidden"}')

    for shown in (repr(hook), str(hook), repr([*hook.__rich_repr__()]), repr(_new()), f"{_new()}"):
        assert "approval#1" in shown
        assert "secret" not in shown
        assert "hidden" not in shown
    delivery = Delivery("secret", "key", '{"payload":"hidden"}')
    for shown in (repr(delivery), repr([*delivery.__rich_repr__()])):
        assert "fits" in shown
        assert "secret" not in shown
        assert "hidden" not in shown
