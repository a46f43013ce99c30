"""The model allows what programs come to, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pyworkflow_ray.testing import WorkflowEnvironment
from storm.interpreter import name_of, storm
from storm.model import Facts, Model, Sent
from storm.programs import Node, make_program, nodes
from tests.storm.histories import WORK, node, over, step

ONE, TWO = step("p1x1.1"), step("p1x1.2")
FATAL, FAILS = step("p1x1.3", act="fatal"), step("p1x1.4", act="gives up")
HOOK: Node = {"do": "hook", "id": "h", "timeout": 1.0}
WAITS = over("guard", ONE, stops=True, cleanup=TWO, name="g")
CHILD: Node = {"do": "child", "id": "c", "how": "wait", "part": ONE}

PLAIN, ASKED = Facts(), Facts(is_asked_to_cancel=True)
SENT = Sent(payloads={"h@0": {"paid"}}, rejected=frozenset({"h@0"}))

ALLOWED: list[tuple[Node, Facts, str, Any]] = [
    (node("sequence", ONE, TWO), PLAIN, "completed", ["p1x1.1", "p1x1.2"]),
    (node("sequence", ONE, FATAL), PLAIN, "failed", "FatalError: p1x1.3"),
    (
        node("gather", ONE, FAILS, keeps_errors=True),
        PLAIN,
        "completed",
        ["p1x1.1", {"caught": "ValueError: p1x1.4"}],
    ),
    (over("try", FAILS), PLAIN, "completed", {"caught": "ValueError: p1x1.4"}),
    (HOOK, PLAIN, "completed", "paid"),
    (HOOK, PLAIN, "failed", "HookRejectedError"),
    (HOOK, PLAIN, "failed", "HookExpiredError"),
    (over("limit", ONE, seconds=1.0), PLAIN, "completed", {"late": True}),
    (node("race", ONE, TWO), PLAIN, "completed", {"winner": 1, "value": "p1x1.2"}),
    (ONE, ASKED, "cancelled", None),
    (WAITS, ASKED, "completed", {"stopped": "g"}),
    (ONE, Facts(lost_nodes=frozenset({"p1x1.1"})), "failed", "WorkerDiedError"),
    (CHILD, Facts(child_values={"c": "p1x1.1"}), "completed", {"child": "p1x1.1"}),
    (CHILD, Facts(had_failed_child=True), "failed", "ChildWorkflowFailedError"),
    (ONE, Facts(is_given_up=True), "failed", "WorkerDiedError"),
    (over("again", ONE, times=2), PLAIN, "continued_as_new", ["p1x1.1"]),
]

REFUSED: list[tuple[Node, Facts, str, Any]] = [
    (node("sequence", ONE, TWO), PLAIN, "completed", ["p1x1.2", "p1x1.1"]),
    (node("sequence", ONE, TWO), PLAIN, "completed", ["p1x1.1"]),
    (node("sequence", FATAL, FAILS), PLAIN, "failed", "ValueError: p1x1.4"),
    (node("sequence", ONE, FATAL), PLAIN, "completed", ["p1x1.1", "p1x1.3"]),
    (node("gather", ONE, FAILS, keeps_errors=False), PLAIN, "completed", ["p1x1.1", "p1x1.4"]),
    (HOOK, PLAIN, "completed", "paid twice"),
    ({**HOOK, "timeout": None}, PLAIN, "failed", "HookExpiredError"),
    (node("race", ONE, TWO), PLAIN, "completed", {"winner": 0, "value": "p1x1.2"}),
    (ONE, PLAIN, "cancelled", None),
    (ONE, ASKED, "completed", "p1x1.1"),
    (node("group", ONE, TWO), ASKED, "completed", ["p1x1.1", "p1x1.2"]),
    (WAITS, PLAIN, "completed", {"stopped": "g"}),
    (ONE, PLAIN, "failed", "WorkerDiedError"),
    (ONE, PLAIN, "failed", "ValueError: p1x1.1"),
    (CHILD, Facts(child_values={"c": "p1x1.1"}), "completed", {"child": "p1x1.2"}),
    (CHILD, PLAIN, "failed", "ChildWorkflowFailedError"),
    (over("again", ONE, times=2), PLAIN, "completed", ["p1x1.1"]),
    (ONE, PLAIN, "running", None),
]


@pytest.mark.parametrize(("tree", "facts", "status", "outcome"), ALLOWED)
def test_what_a_program_may_come_to_is_allowed(tree: Node, facts: Facts, status: str, outcome: Any) -> None:
    assert Model(SENT, facts).judge(tree, status, outcome) is None


@pytest.mark.parametrize(("tree", "facts", "status", "outcome"), REFUSED)
def test_what_no_program_may_come_to_is_not(tree: Node, facts: Facts, status: str, outcome: Any) -> None:
    assert Model(SENT, facts).judge(tree, status, outcome) is not None


RECEIVE: Node = {"do": "receive", "id": "r", "count": 2}
TWICE = over("again", RECEIVE, times=2)


@pytest.mark.parametrize(
    ("first", "second", "is_allowed"),
    [
        (["r/0", "r/1"], ["r/2", "r/3"], True),
        (["r/0", "r/1"], ["r/3", "r/2"], False),
        (["r/0", "r/1"], ["r/1", "r/2"], False),
        ({"late": True}, ["r/0", "r/1"], True),  # the first run has left them to the second
        ({"late": True}, ["r/2", "r/3"], True),  # it has read them and then stopped
        ({"late": True}, ["r/3", "r/4"], False),
    ],
)
def test_signals_are_received_in_their_order_over_a_chain(first: Any, second: Any, is_allowed: bool) -> None:
    last = Model(Sent(), PLAIN, iteration=1, carried=[first])
    assert (last.judge(TWICE, "completed", [first, second]) is None) is is_allowed


NOT_HERE = {"hook", "receive", "child", "die", "again"}


def _undisturbed(number: int) -> Node | None:
    """A program's tree that needs nobody else, with steps that take no time; None if it cannot be had."""
    tree: Node = json.loads(json.dumps(make_program(3, number).tree))
    for each in nodes(tree):
        if each["do"] in NOT_HERE or each.get("act") in ("dies", "dies for good", "hangs", "hangs for good"):
            return None
        each.update({"seconds": 0.0} if each["do"] == "step" else {})
    return tree


async def test_undisturbed_programs_come_to_what_the_model_allows() -> None:
    trees = [tree for tree in map(_undisturbed, range(150)) if tree is not None]
    assert len(trees) > 10
    async with WorkflowEnvironment() as environment:
        for tree in trees[:25]:
            run = await environment.start(storm, {"id": "p", "tree": tree})
            try:
                ended: tuple[str, Any] = "completed", await run
            except Exception as error:
                ended = "failed", name_of(error)
            assert Model().judge(tree, *ended) is None, (tree, ended)


async def test_a_program_that_is_cancelled_comes_to_what_the_model_allows() -> None:
    tree = node(
        "sequence", over("guard", {"do": "sleep", "id": "s", "seconds": 60.0}, cleanup=WORK, stops=True), TWO
    )
    async with WorkflowEnvironment(skip_time=False) as environment:
        run = await environment.start(storm, {"id": "p", "tree": tree})
        await environment.settle()
        await run.cancel()
        result = await run
    assert Model(facts=ASKED).judge(tree, "completed", result) is None
    assert Model(facts=PLAIN).judge(tree, "completed", result) is not None
