"""How often each thing waits for a database across a network, and what a connection cut in between costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyworkflow_ray.statuses import HookStatus, RunStatus
from pyworkflow_ray.storage.acceptances import accept
from pyworkflow_ray.storage.histories import Append, FencedError, append, read_events
from pyworkflow_ray.storage.hooks import Delivery, NewHook, create_hook, deliver, deliver_all, get_hook
from pyworkflow_ray.storage.inboxes import post, unread
from pyworkflow_ray.storage.leases import claim, claim_placed, renew_leases
from pyworkflow_ray.storage.placements import Placement, locate
from pyworkflow_ray.storage.runs import get_run
from pyworkflow_ray.storage.storages import Storage
from tests.storage.builders import accepted, claimed, new_append, new_run, read, write
from tests.storage.proxies import PostgreSQLProxy
from tests.storage.test_writers import one_group

SLOTS = Placement(slots=4)


@pytest.fixture
def proxy(postgresql_url: str) -> Iterator[PostgreSQLProxy]:
    with PostgreSQLProxy(postgresql_url) as proxy:
        yield proxy


@pytest.fixture
def far(proxy: PostgreSQLProxy) -> Iterator[Storage]:
    """A storage across the proxy that has been used before: what is once for a process is behind it."""
    with Storage(proxy.url) as storage:
        accepted(storage, "first", placement=SLOTS)
        read(storage, get_run, "first")
        write(storage, accept, new_run("second", placement=SLOTS), storage.loads)
        yield storage


def trips(proxy: PostgreSQLProxy, action: Callable[[], Any]) -> int:
    with proxy.counting() as counted:
        action()
    return counted[0]


def test_each_write_of_a_run_s_life_costs_one_round_trip(proxy: PostgreSQLProxy, far: Storage) -> None:
    new = new_run("run_1", placement=SLOTS, owner_lease=30.0)
    assert trips(proxy, lambda: write(far, accept, new, far.loads)) == 1
    run = read(far, get_run, "run_1")
    appends = new_append(run, "workflow.started", "step.started")
    assert trips(proxy, lambda: write(far, append, appends)) == 1
    assert trips(proxy, lambda: write(far, claim, "run_1", "process", 30.0, force_from="coordinator-0")) == 1
    assert trips(proxy, lambda: write(far, claim_placed, "coordinator-0", "process", 30.0)) == 1
    assert trips(proxy, lambda: write(far, renew_leases, [("run_1", 2), ("first", 0)], 30.0)) == 1
    assert trips(proxy, lambda: write(far, locate, ["run_1", "first"], SLOTS, far.loads)) == 1
    assert trips(proxy, lambda: write(far, post, "run_1", "key", "signal.received", "{}")) == 1
    hook = NewHook(hook_id="approval#1", token="secret", name="approval")
    assert trips(proxy, lambda: write(far, create_hook, "run_1", hook)) == 1
    assert trips(proxy, lambda: write(far, deliver, "secret", "key", '{"payload":1}')) == 1


def test_an_end_with_all_that_belongs_to_it_costs_one_round_trip(
    proxy: PostgreSQLProxy, far: Storage
) -> None:
    run = claimed(far, "run_1")
    write(far, create_hook, "run_1", NewHook(hook_id="h#1", token="secret", name="h"))
    write(far, post, "run_1", "key", "signal.received", "{}")
    end = new_append(
        run,
        "workflow.completed",
        changes={"status": RunStatus.COMPLETED, "result": "1"},
        release=True,
        blobs=[("hash", b"bytes")],
    )
    assert trips(proxy, lambda: write(far, append, end)) == 1
    assert read(far, unread, "run_1") == []
    assert read(far, get_hook, "secret").status is HookStatus.DISPOSED


def test_a_read_of_one_thing_costs_one_round_trip(proxy: PostgreSQLProxy, far: Storage) -> None:
    run = claimed(far, "run_1")
    write(far, append, new_append(run, *(["step.started"] * 100)))
    for query in (get_run, read_events, unread):
        assert trips(proxy, lambda query=query: read(far, query, "run_1")) == 1  # type: ignore[misc]


def test_a_group_of_writes_costs_one_round_trip(proxy: PostgreSQLProxy, far: Storage) -> None:
    runs = [claimed(far, f"run_{number}") for number in range(50)]
    with one_group(far):
        futures = [far.submit(append(new_append(run, "step.started"))) for run in runs]
        futures += [far.submit(accept(new_run(f"new_{n}", placement=SLOTS), far.loads)) for n in range(50)]
        # What held the writer up commits once the block ends, and leaves the pipeline: two round trips.
        with proxy.counting() as counted:
            pass
    before = proxy.waits
    for future in futures:
        future.result(30)
    assert proxy.waits - before + counted[0] <= 3


def test_deliveries_that_go_together_cost_one_round_trip(proxy: PostgreSQLProxy, far: Storage) -> None:
    run = claimed(far, "run_1")
    for number in range(50):
        hook = NewHook(hook_id=f"h#{number}", token=f"token-{number}", name="h")
        write(far, create_hook, run.run_id, hook)
    deliveries = [Delivery(f"token-{number}", "key", '{"payload":1}') for number in range(100)]
    for _ in range(2):  # and again, when the first answer is lost
        assert trips(proxy, lambda: write(far, deliver_all, deliveries)) == 1
    assert len(read(far, unread, "run_1")) == 50


def _cuts(proxy: PostgreSQLProxy, prepare: Callable[[str], Callable[[], Any]]) -> Iterator[str]:
    """What was prepared is done once uncut, and then cut at each message that it sends or is answered with.

    Gives the name under which it was prepared, each time after it was done.
    """
    act = prepare("uncut")
    proxy.arm()
    act()
    sent, answered = proxy.sent, proxy.answered
    assert sent > 5
    yield "uncut"
    cuts = [{"before_message": number} for number in range(sent)]
    cuts += [{"before_answer": number} for number in range(answered)]
    for cut in cuts:
        ((kind, number),) = cut.items()
        name = f"{kind}_{number}"
        act = prepare(name)
        proxy.arm(**cut)
        act()
        proxy.arm()
        yield name


def test_an_append_cut_at_any_message_is_written_once(proxy: PostgreSQLProxy, far: Storage) -> None:
    def prepare(name: str) -> Callable[[], Any]:
        new = new_append(claimed(far, name), "workflow.started", "step.started", release=True)
        return lambda: write(far, append, new)

    for name in _cuts(proxy, prepare):
        types = [type_ for _, _, type_, _ in read(far, read_events, name)]
        assert types == ["workflow.started", "step.started"], name
        assert read(far, get_run, name).position == 2, name


def test_a_start_cut_at_any_message_is_accepted_once(proxy: PostgreSQLProxy, far: Storage) -> None:
    results = []

    def prepare(name: str) -> Callable[[], Any]:
        new = new_run(name, placement=SLOTS, idempotency_key=name, blobs=[(name, b"bytes")])
        return lambda: results.append(write(far, accept, new, far.loads))

    for name in _cuts(proxy, prepare):
        assert results[-1].is_new, name
        assert read(far, get_run, name) is not None, name


def test_a_delivery_cut_at_any_message_arrives_once(proxy: PostgreSQLProxy, far: Storage) -> None:
    claimed(far, "run_1")
    results = []

    def prepare(name: str) -> Callable[[], Any]:
        write(far, create_hook, "run_1", NewHook(hook_id=name, token=name, name="h"))
        return lambda: results.append(write(far, deliver, name, "key", '{"payload":1}'))

    for name in _cuts(proxy, prepare):
        assert results[-1].hook_id == name
        keys = [row.dedup_key for row in read(far, unread, "run_1")]
        assert keys.count(f"hook:{name}") == 1, name


def test_a_group_cut_at_any_message_loses_nothing(proxy: PostgreSQLProxy, far: Storage) -> None:
    """Of three works in one pipeline, one is guilty: the others are kept, wherever the connection is cut."""
    stale = claimed(far, "stale")

    def prepare(name: str) -> Callable[[], Any]:
        new = new_append(claimed(far, name), "workflow.started")
        return lambda: act(name, new)

    def act(name: str, new: Append) -> None:
        with one_group(far):
            first = far.submit(append(new))
            guilty = far.submit(append(new_append(stale, "never", epoch=99)))
            last = far.submit(post(name, "key", "signal.received", "{}"))
        assert first.result(30) is False
        with pytest.raises(FencedError, match="no longer held"):
            guilty.result(30)
        last.result(30)  # False where it was there already, from a try whose answer got lost

    for name in _cuts(proxy, prepare):
        assert [type_ for _, _, type_, _ in read(far, read_events, name)] == ["workflow.started"], name
        assert len(read(far, unread, name)) == 1, name
