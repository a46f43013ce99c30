"""Runs that come of other runs: children, successors, forks and repetitions, in process."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import pyworkflow_ray as pr
from pyworkflow_ray.testing import WorkflowEnvironment, check_every_crash
from tests.local.notes import note, notes, types, write_note
from tests.local.waits import until_due

# --- children -------------------------------------------------------------------------------------


@pr.workflow
async def squares(number: int, pause: float = 0) -> int:
    await pr.sleep(pause)
    return number * number


@pr.workflow
async def breaks(how: str) -> None:
    if how == "error":
        raise KeyError("broken")
    await pr.sleep("10d")


@pr.workflow
async def sums_squares(count: int) -> int:
    handles = [
        await pr.start_child_workflow(squares, number, wait_for_completion=False) for number in range(count)
    ]
    return sum([await handle.result() for handle in handles])


async def test_a_parent_gets_the_results_of_its_children() -> None:
    async with WorkflowEnvironment() as environment:
        run = await environment.start(sums_squares, 20)
        assert await run == sum(number * number for number in range(20))
        children = await pr.get_children(run)
        assert sorted(child.input_args for child in children) == [[number] for number in range(20)]
        assert {(child.parent_run_id, child.nesting_depth, child.status) for child in children} == {
            (run, 1, pr.RunStatus.COMPLETED)
        }
        assert (await types(run)).count("child_workflow.completed") == 20
        assert await pr.get_children(children[0].run_id) == []


async def test_children_run_beside_one_another() -> None:
    @pr.workflow
    async def two_sleepers() -> list[int]:
        return list(
            await asyncio.gather(
                pr.start_child_workflow(squares, 2, 3600), pr.start_child_workflow(squares, 3, pause=3600)
            )
        )

    async with WorkflowEnvironment() as environment:
        begun = environment.now()
        assert await environment.run(two_sleepers) == [4, 9]
        assert (environment.now() - begun).total_seconds() == 3600


async def test_a_failed_child_raises_in_its_parent_with_its_own_error_as_the_cause() -> None:
    @pr.workflow
    async def catches() -> list[Any]:
        try:
            await pr.start_child_workflow(breaks, "error")
        except pr.ChildWorkflowFailedError as error:
            cause = error.__cause__
            return [error.child_workflow_name, error.error_type, type(cause).__name__, str(cause)]
        return []

    async with WorkflowEnvironment() as environment:
        run = await environment.start(catches)
        assert await run == ["breaks", "KeyError", "KeyError", "'broken'"]
        (child,) = await pr.get_children(run)
        assert child.status is pr.RunStatus.FAILED


@pr.workflow
async def knows_its_child() -> list[Any]:
    handle = await pr.start_child_workflow(squares, 5, 3600, wait_for_completion=False)
    seen: list[Any] = [await handle.get_status(), await handle.is_running()]
    try:
        await handle.result(timeout=60)
    except TimeoutError:
        seen.append("not yet")
    seen += [await handle.result(), await handle.is_terminal(), await handle.get_status()]
    seen += [await handle.cancel("too late"), handle.parent_run_id == pr.get_context().run_id]
    return seen


async def test_a_handle_tells_how_its_child_is() -> None:
    running, completed = pr.RunStatus.RUNNING, pr.RunStatus.COMPLETED
    async with WorkflowEnvironment() as environment:
        run = await environment.start(knows_its_child)
        assert await run == [running, True, "not yet", 25, True, completed, False, True]


@pr.workflow
async def cancels_its_child() -> list[Any]:
    handle = await pr.start_child_workflow(breaks, "never", wait_for_completion=False)
    await pr.sleep("1h")
    seen: list[Any] = [await handle.cancel("changed my mind"), await handle.cancel("again")]
    try:
        await handle.result()
    except pr.ChildWorkflowFailedError as error:
        seen += [error.error_type, getattr(error.__cause__, "reason", None)]
    return [*seen, await handle.get_status()]


async def test_a_parent_may_cancel_its_child() -> None:
    async with WorkflowEnvironment() as environment:
        run = await environment.start(cancels_its_child)
        assert await run == [True, True, "CancellationError", "changed my mind", pr.RunStatus.CANCELLED]
        (child,) = await pr.get_children(run)
        assert child.status is pr.RunStatus.CANCELLED


@pr.workflow
async def child_with_cleanup(folder: str) -> str:
    try:
        await pr.sleep("10d")
    except pr.CancellationError as error:
        await note(folder, f"child cleans up: {error.reason}")
        await pr.sleep("1h")
        await note(folder, "child is through")
        raise
    await note(folder, "child slept on")
    return "slept"


@pr.workflow
async def parent_that_waits(folder: str, parent_close: str) -> str:
    try:
        await pr.start_child_workflow(child_with_cleanup, folder, parent_close=parent_close)
    finally:
        await note(folder, "parent is through")
    return "?"


@pytest.mark.parametrize(
    ("parent_close", "left"),
    [
        (
            "cancel",
            ["child cleans up: its parent no longer waits for it", "child is through", "parent is through"],
        ),
        ("abandon", ["parent is through", "child slept on"]),
        ("wait", ["child slept on", "parent is through"]),
    ],
)
async def test_the_child_of_a_cancelled_parent_does_as_parent_close_says(
    parent_close: str, left: list[str], tmp_path: Path
) -> None:
    async with WorkflowEnvironment(skip_time=False) as environment:
        run = await environment.start(parent_that_waits, str(tmp_path), parent_close)
        await environment.settle()
        await run.cancel("the test")
        await environment.advance("20d")
        with pytest.raises(pr.CancellationError):
            await run
        assert notes(tmp_path) == left
        (child,) = await pr.get_children(run)
        cancelled = parent_close == "cancel"
        assert child.status is (pr.RunStatus.CANCELLED if cancelled else pr.RunStatus.COMPLETED)


@pr.workflow
async def parent_that_ends(folder: str, parent_close: str) -> str:
    await pr.start_child_workflow(
        child_with_cleanup, folder, wait_for_completion=False, parent_close=parent_close
    )
    await note(folder, "parent is through")
    return "parent's result"


@pytest.mark.parametrize(
    ("parent_close", "status", "left"),
    [
        ("cancel", pr.RunStatus.COMPLETED, ["child cleans up: its parent has ended", "child is through"]),
        ("abandon", pr.RunStatus.COMPLETED, ["child slept on"]),
        ("wait", pr.RunStatus.RUNNING, ["child slept on"]),
    ],
)
async def test_the_child_of_an_ended_parent_does_as_parent_close_says(
    parent_close: str, status: pr.RunStatus, left: list[str], tmp_path: Path
) -> None:
    async with WorkflowEnvironment(skip_time=False) as environment:
        run = await environment.start(parent_that_ends, str(tmp_path), parent_close)
        await environment.settle()
        assert await run.status() is status
        await environment.advance("20d")
        assert await run == "parent's result"
        assert notes(tmp_path) == ["parent is through", *left]


async def test_a_parent_that_waits_for_its_child_to_end_can_be_cancelled_with_it(tmp_path: Path) -> None:
    async with WorkflowEnvironment(skip_time=False) as environment:
        run = await environment.start(parent_that_ends, str(tmp_path), "wait")
        await environment.settle()
        assert await run.cancel("enough")
        await environment.advance("2h")
        assert await run == "parent's result", "its own work was done"
        (child,) = await pr.get_children(run)
        assert child.status is pr.RunStatus.CANCELLED


@pr.workflow
async def nests(levels: int) -> int:
    if levels == 0:
        return 0
    return 1 + int(await pr.start_child_workflow(nests, levels - 1))


@pr.workflow
async def cancels_at_once(how: str) -> str:
    """Starts a child, and asks it to cancel in the commit that has its start."""
    child = await pr.start_child_workflow(breaks, "later", wait_for_completion=False)
    if how == "returns":
        return "without it"
    assert await child.cancel()
    with pytest.raises(pr.ChildWorkflowFailedError):
        await child.result()
    return "told"


@pytest.mark.parametrize("database", ["memory", "postgresql"])
@pytest.mark.parametrize(("how", "result"), [("asks", "told"), ("returns", "without it")])
async def test_a_child_that_is_asked_to_cancel_as_it_starts_is_cancelled(
    request: pytest.FixtureRequest, how: str, result: str, database: str
) -> None:
    url = "memory" if database == "memory" else request.getfixturevalue("postgresql_url")
    async with WorkflowEnvironment(storage=url) as env:
        run = await env.start(cancels_at_once, how)
        assert await run == result
        await env.settle()
        (child,) = await pr.get_children(run)
        assert child.status is pr.RunStatus.CANCELLED
        assert "workflow.cancelled" in await types(pr.RunHandle(child.run_id))


async def test_a_cancelled_child_survives_a_crash_around_the_commit_that_starts_it() -> None:
    assert await check_every_crash(cancels_at_once, "asks") > 0


async def test_children_nest_as_deep_as_the_setting_says() -> None:
    async with WorkflowEnvironment() as environment:
        assert await environment.run(nests, 3) == 3
        with pytest.raises(pr.ChildWorkflowFailedError) as caught:
            await environment.run(nests, 4)
        innermost: BaseException = caught.value
        while innermost.__cause__ is not None:
            innermost = innermost.__cause__
        assert isinstance(innermost, pr.MaxNestingDepthError)
        assert innermost.current_depth == 3
    async with WorkflowEnvironment(max_nesting_depth=0) as environment:
        with pytest.raises(pr.MaxNestingDepthError):
            await environment.run(nests, 1)


async def test_a_cancellation_reaches_the_childrens_children() -> None:
    @pr.workflow
    async def grandparent() -> None:
        await pr.start_child_workflow(parent_that_waits, "/nowhere", "cancel")

    @pr.workflow
    async def great_grandparent() -> None:
        await pr.start_child_workflow(grandparent)

    async with WorkflowEnvironment(skip_time=False) as environment:
        run = await environment.start(great_grandparent)
        await environment.settle()
        await run.cancel("all of it")
        await environment.advance("1d")
        with pytest.raises(pr.CancellationError):
            await run
        runs, _ = await pr.list_runs()
        assert len(runs) == 4
        assert all(each.status.is_terminal for each in runs)


@pytest.mark.parametrize("way", ["arguments", "parent_close", "nondurable", "outside"])
async def test_what_cannot_be_a_child_is_refused(way: str) -> None:
    @pr.workflow
    async def tries(way: str) -> None:
        match way:
            case "arguments":
                await pr.start_child_workflow(squares, "four")
            case "parent_close":
                await pr.start_child_workflow(squares, 4, parent_close="forget")
            case _:
                await pr.start_child_workflow(squares, 4)

    errors = {"arguments": pr.StepValidationError, "parent_close": pr.ConfigurationError}
    async with WorkflowEnvironment(default_durable=way != "nondurable") as environment:
        with pytest.raises(errors.get(way, pr.WorkflowError)):
            await (pr.start_child_workflow(squares, 4) if way == "outside" else environment.run(tries, way))


@pr.workflow
async def child_in_stages(stage: int, stages: int) -> int:
    await pr.sleep("1h")
    if stage < stages:
        pr.continue_as_new(stage + 1, stages)
    return stage


@pr.workflow
async def waits_for_stages(stages: int) -> int:
    return int(await pr.start_child_workflow(child_in_stages, 1, stages))


async def test_a_parent_waits_for_the_last_of_a_child_that_continues() -> None:
    async with WorkflowEnvironment() as environment:
        run = await environment.start(waits_for_stages, 4)
        assert await run == 4
        children = await pr.get_children(run)
        assert [child.status.value for child in children] == ["continued_as_new"] * 3 + ["completed"]
        assert {child.nesting_depth for child in children} == {1}


async def test_a_cancelled_parent_cancels_a_child_that_has_continued() -> None:
    async with WorkflowEnvironment(skip_time=False) as environment:
        run = await environment.start(waits_for_stages, 1_000_000)
        await environment.advance("90m")
        await run.cancel("enough")
        await environment.settle()
        with pytest.raises(pr.CancellationError):
            await run.result(timeout=60)


async def test_a_run_that_fails_at_its_event_limit_cancels_its_children() -> None:
    @pr.workflow
    async def prolific() -> None:
        await pr.start_child_workflow(breaks, "never", wait_for_completion=False)
        while True:
            await pr.sleep(1)

    async with WorkflowEnvironment(event_soft_limit=20, event_hard_limit=40) as environment:
        run = await environment.start(prolific)
        with pytest.raises(pr.EventLimitExceededError):
            await run
        await environment.settle()
        (child,) = await pr.get_children(run)
        assert child.status is pr.RunStatus.CANCELLED


async def test_a_child_of_a_run_that_was_suspended_wakes_it(tmp_path: Path) -> None:
    pr.configure(default_runtime="local", storage=tmp_path / "local.db", suspend_after="30ms")
    run = await asyncio.wait_for(pr.start(waits_for_a_short_one), 60)
    assert await run.status() is pr.RunStatus.SUSPENDED
    (child,) = await pr.get_children(run)
    await until_due(child.run_id)
    await pr.resume(child.run_id)
    assert await run.result(timeout=60) == 49


@pr.workflow
async def waits_for_a_short_one() -> int:
    return int(await pr.start_child_workflow(squares, 7, 1.0))


# --- continue_as_new ------------------------------------------------------------------------------


@pr.workflow(tags=["counting"])
async def counts_to(limit: int, number: int = 1, *, folder: str = "") -> int:
    if folder:
        await note(folder, f"{number}")
    if number < limit:
        pr.continue_as_new(limit, number + 1, folder=folder)
    return number


async def test_a_run_goes_on_in_another_and_its_handle_follows(tmp_path: Path) -> None:
    async with WorkflowEnvironment() as environment:
        run = await pr.start.options(attributes={"customer": "c"}, metadata={"source": "test"})(
            counts_to, 5, folder=str(tmp_path)
        )
        assert await run == 5
        assert notes(tmp_path) == ["1", "2", "3", "4", "5"]
        chain = await pr.get_workflow_chain(run)
        assert [each.status.value for each in chain] == ["continued_as_new"] * 4 + ["completed"]
        assert chain[0].run_id == run
        assert [each.continued_from_run_id for each in chain[1:]] == [each.run_id for each in chain[:-1]]
        assert [each.continued_to_run_id for each in chain[:-1]] == [each.run_id for each in chain[1:]]
        assert {(each.tags, each.attributes["customer"], each.metadata["source"]) for each in chain} == {
            (("counting",), "c", "test")
        }
        assert await pr.get_workflow_chain(chain[3].run_id) == chain
        assert await pr.cancel_workflow(run) is False
        assert environment.now()


async def test_a_chain_is_cancelled_by_the_id_of_any_of_its_runs() -> None:
    async with WorkflowEnvironment(skip_time=False) as environment:
        run = await environment.start(child_in_stages, 1, 1_000_000)
        await environment.advance("150m")
        assert await pr.cancel_workflow(run, "by its first id", wait=True, timeout=60)
        chain = await pr.get_workflow_chain(run)
        assert [each.status.value for each in chain] == ["continued_as_new"] * 2 + ["cancelled"]
        with pytest.raises(pr.CancellationError):
            await run


async def test_a_long_chain_does_not_nest() -> None:
    async with WorkflowEnvironment() as environment:
        run = await environment.start(counts_to, 600)
        assert await run.result(timeout=60) == 600


async def test_an_idempotency_key_goes_to_the_run_that_goes_on() -> None:
    async with WorkflowEnvironment():
        run = await pr.start.options(idempotency_key="key")(counts_to, 3)
        assert await run.result(timeout=60) == 3
        last = (await pr.get_workflow_chain(run))[-1]
        holder = await pr.get_workflow_run_by_idempotency_key("key", "counts_to")
        assert holder is not None
        assert holder.run_id == last.run_id


@pytest.mark.parametrize("way", ["nothing", "arguments", "beside", "nondurable"])
async def test_what_cannot_continue_is_refused(way: str) -> None:
    @pr.workflow
    async def tries_to_continue(way: str) -> None:
        match way:
            case "nothing":
                pr.continue_as_new()
            case "arguments":
                pr.continue_as_new(way, "one too many")
            case "beside":

                async def beside() -> None:
                    pr.continue_as_new("nothing")

                await asyncio.gather(beside())
            case _:
                pr.continue_as_new("nothing")

    error = pr.StepValidationError if way == "arguments" else pr.WorkflowError
    async with WorkflowEnvironment(default_durable=way != "nondurable") as environment:
        with pytest.raises(error):
            await environment.run(tries_to_continue, way)


@pr.step(local=True)
async def slow_beside(folder: str) -> None:
    try:
        await asyncio.sleep(30)
    except asyncio.CancelledError:
        write_note(folder, "the step was stopped")
        raise


@pr.workflow
async def leaves_things_behind(folder: str, stage: int) -> str:
    if stage == 1:
        tasks = [
            asyncio.create_task(slow_beside(folder)),
            asyncio.create_task(pr.hook("left", token="left")),
            asyncio.create_task(pr.start_child_workflow(child_with_cleanup, folder)),
        ]
        await pr.sleep("1h")
        pr.get_context().continue_as_new(folder, 2)
        await asyncio.gather(*tasks)
    await pr.sleep("3h")
    return "second"


async def test_what_a_run_leaves_behind_ends_when_it_continues(tmp_path: Path) -> None:
    async with WorkflowEnvironment(skip_time=False) as environment:
        run = await environment.start(leaves_things_behind, str(tmp_path), 1)
        while "hook.created" not in await types(run):
            await asyncio.sleep(0.001)
        first = list(await run.events())
        assert first
        await _fire_timers(environment, "1h")
        with pytest.raises(pr.HookExpiredError):
            await pr.resume_hook("left", 1)
        await environment.advance("4h")
        assert await run == "second"
        assert sorted(notes(tmp_path)) == [
            "child cleans up: its parent has ended",
            "child is through",
            "the step was stopped",
        ]


async def _fire_timers(environment: WorkflowEnvironment, duration: str) -> None:
    """As `advance`, though a step is under way."""
    from pyworkflow_ray.durations import parse_duration

    environment.clock.set_forward(environment.now() + parse_duration(duration))
    await environment.settle()


async def test_each_run_of_a_chain_has_the_whole_max_duration() -> None:
    @pr.workflow(max_duration="90m")
    async def hour_after_hour(stage: int) -> int:
        await pr.sleep("1h")
        if stage < 4:
            pr.continue_as_new(stage + 1)
        return stage

    async with WorkflowEnvironment() as environment:
        assert await environment.run(hour_after_hour, 1) == 4


# --- fork and rerun -------------------------------------------------------------------------------


@pr.workflow
async def three_parts(folder: str, broken: bool = True) -> list[Any]:
    first = await note(folder, "first")
    drawn = pr.get_context().random()
    pause = await note.options(name="pause")(folder, "second")
    third = await last_part(folder, drawn)
    return [first, pause, third == drawn]


@pr.step(local=True, max_retries=0)
async def last_part(folder: str, drawn: float) -> float:
    if not (Path(folder) / "mended").exists():
        raise OSError("the disk is full")
    write_note(folder, "third")
    return drawn


async def test_a_fork_goes_on_where_the_run_has_failed(tmp_path: Path) -> None:
    async with WorkflowEnvironment() as environment:
        run = await environment.start(three_parts, str(tmp_path))
        with pytest.raises(OSError, match="the disk is full"):
            await run
        (tmp_path / "mended").touch()
        forked = await pr.fork(run)
        assert await forked == ["first", "second", True]
        assert notes(tmp_path) == ["first", "second", "third"], "nothing is done twice"
        assert (await forked.refresh()).metadata["forked_from"] == run
        assert await run.status() is pr.RunStatus.FAILED


@pytest.mark.parametrize(
    ("where", "again"),
    [
        ({"from_step": "pause#1"}, ["second", "third"]),
        ({"from_position": 1}, ["first", "second", "third"]),
        ({"from_step": "last_part#1"}, ["third"]),
    ],
)
async def test_a_fork_does_anew_what_comes_behind_the_cut(
    where: dict[str, Any], again: list[str], tmp_path: Path
) -> None:
    (tmp_path / "mended").touch()
    async with WorkflowEnvironment() as environment:
        run = await environment.start(three_parts, str(tmp_path))
        await run
        forked = await pr.fork(run, **where)
        assert await forked == ["first", "second", True]
        assert notes(tmp_path) == ["first", "second", "third", *again]


async def test_a_fork_that_cannot_be_is_told_why(tmp_path: Path) -> None:
    (tmp_path / "mended").touch()
    async with WorkflowEnvironment() as environment:
        run = await environment.start(three_parts, str(tmp_path))
        await run
        with pytest.raises(pr.WorkflowError, match=r"No step of run .* has failed"):
            await pr.fork(run)
        with pytest.raises(pr.WorkflowError, match=r"has no step 'fourth#1'; it has note#1"):
            await pr.fork(run, from_step="fourth#1")
        with pytest.raises(pr.WorkflowError, match="can keep 1 to"):
            await pr.fork(run, from_position=99)
        with pytest.raises(ValueError, match="give one of them"):
            await pr.fork(run, from_step="note#1", from_position=1)
        with pytest.raises(ValueError, match="code is 'newest'"):
            await pr.fork(run, from_position=1, code="newest")
        with pytest.raises(pr.WorkflowNotFoundError):
            await pr.fork("run_0000000000000000")


async def test_a_fork_may_take_the_code_of_today(tmp_path: Path) -> None:
    def define(is_mended: bool, is_reordered: bool = False) -> pr.WorkflowFunction[[str], str]:
        @pr.step(name="finishing", local=True, max_retries=0)
        async def finishing(folder: str) -> str:
            if not is_mended:
                raise ValueError("a bug")
            return "finished"

        @pr.workflow(name="mended_later")
        async def mended_later(folder: str) -> str:
            if not is_reordered:
                await note(folder, "beginning")
            return await finishing(folder)

        return mended_later

    async with WorkflowEnvironment() as environment:
        run = await environment.start(define(False), str(tmp_path))
        with pytest.raises(ValueError, match="a bug"):
            await run
        with pytest.raises(ValueError, match="a bug"):
            await (await pr.fork(run))
        define(True)
        with pytest.raises(ValueError, match="a bug"):
            await (await pr.fork(run, code="recorded"))
        assert await (await pr.fork(run, code="current")) == "finished"
        assert notes(tmp_path) == ["beginning"]
        define(True, is_reordered=True)
        with pytest.raises(pr.NonDeterminismError, match=r"note#1"):
            await (await pr.fork(run, code="current"))


async def test_a_fork_waits_for_a_hook_with_a_token_of_its_own() -> None:
    @pr.workflow
    async def asks_for_two() -> list[Any]:
        return [await pr.hook("one"), await pr.hook("two")]

    async with WorkflowEnvironment() as environment:
        run = await environment.start(asks_for_two)
        await environment.settle()
        ((one,), _) = await pr.list_hooks(run_id=run)
        await pr.resume_hook(one.token, 1)
        await environment.settle()
        forked = await pr.fork(run, from_position=len(await run.events()))
        await environment.settle()
        for each, payload in ((run, "original"), (forked, "copy")):
            ((pending,), _) = await pr.list_hooks(run_id=each, status="pending")
            await pr.resume_hook(pending.token, payload)
        assert await run == [1, "original"]
        assert await forked == [1, "copy"]


async def test_a_fork_cannot_share_a_child_that_is_under_way() -> None:
    async with WorkflowEnvironment() as environment:
        run = await environment.start(sums_squares, 2)
        await run
        places = [event.sequence for event in await run.events() if event.type == "child_workflow.started"]
        with pytest.raises(pr.WorkflowError, match="is under way there"):
            await pr.fork(run, from_position=places[0] + 1)
        assert await (await pr.fork(run, from_position=places[0])) == 1
        end = len(await run.events()) - 1
        assert await (await pr.fork(run, from_position=end)) == 1


async def test_a_fork_has_a_max_duration_of_its_own(tmp_path: Path) -> None:
    @pr.workflow(max_duration="1h")
    async def limited_and_broken(folder: str) -> str:
        await last_part(folder, 1.0)
        await pr.sleep("10m")
        return "done"

    async with WorkflowEnvironment() as environment:
        run = await environment.start(limited_and_broken, str(tmp_path))
        with pytest.raises(OSError, match="the disk is full"):
            await run
        await environment.advance("1d")
        (tmp_path / "mended").touch()
        assert await (await pr.fork(run)) == "done"


async def test_a_rerun_has_the_same_input_and_a_history_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "mended").touch()
    async with WorkflowEnvironment():
        run = await pr.start.options(idempotency_key="once", attributes={"customer": "c"})(
            three_parts, str(tmp_path), broken=False
        )
        await run
        again = await pr.rerun(run)
        assert again != run
        assert await again == ["first", "second", True]
        assert notes(tmp_path) == ["first", "second", "third"] * 2
        first, second = await run.refresh(), await again.refresh()
        assert (second.input_args, second.input_kwargs) == (first.input_args, first.input_kwargs)
        assert (second.metadata["rerun_of"], second.idempotency_key) == (run, None)


@pytest.mark.parametrize("copy", ["rerun", "fork"])
async def test_a_copy_is_found_by_the_attributes_of_its_original(copy: str) -> None:
    @pr.workflow
    async def attributed() -> None:
        pr.set_attributes(stage="begun")
        await pr.sleep("1h")

    async with WorkflowEnvironment():
        run = await pr.start.options(attributes={"customer": "c"})(attributed)
        await run
        copied = await (pr.rerun(run) if copy == "rerun" else pr.fork(run, from_position=3))
        await copied
        assert (await copied.refresh()).attributes == {"customer": "c", "stage": "begun"}


# --- deleting -------------------------------------------------------------------------------------


async def test_runs_that_have_ended_are_deleted_and_purged() -> None:
    async with WorkflowEnvironment() as environment:
        runs = [await environment.start(squares, number) for number in range(3)]
        await asyncio.gather(*runs)
        living = await environment.start(breaks, "never")
        with pytest.raises(pr.WorkflowError, match="cancel it before"):
            await pr.delete_run(living)
        assert await pr.delete_run(runs[0]) is True
        assert await pr.delete_run(runs[0]) is False
        assert await pr.get_workflow_run(runs[0]) is None
        with pytest.raises(pr.WorkflowNotFoundError):
            await runs[0].result()
        assert await pr.purge("1h") == 0
        await environment.advance("1s")
        assert await pr.purge("0s", status="failed") == 0
        assert await pr.purge("0s") == 2
        assert [run.run_id for run in (await pr.list_runs())[0]] == [living]
