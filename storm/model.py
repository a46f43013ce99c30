"""The model: what a program may end as.

`Model.values` and `Model.raises` say, for a node and something that it may have come to, whether the program
allows it. So the set of allowed results is never written out: it is what these two functions accept.

The model knows the program, what was sent to it (`Sent`), and facts of the run's own history (`Facts`):
whether its code saw a request to cancel, which steps lost their workers for good, what its children gave,
and whether it was given up. Each of these facts is checked by itself elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from storm.programs import Node, nodes, own_nodes, signal_payload, token_of

CANCELLED = "CancellationError"
LOST = "WorkerDiedError"
CHILD_FAILED = "ChildWorkflowFailedError"


@dataclass(frozen=True)
class Sent:
    """What drivers have tried to send: it may have arrived, whether they learnt it or not."""

    payloads: Mapping[str, Set[str]] = field(default_factory=dict)
    """By the hook's token."""
    rejected: Set[str] = frozenset()
    """The tokens of hooks that were rejected."""
    cancelled: Set[str] = frozenset()
    """The programs that were asked to cancel."""


@dataclass(frozen=True)
class Facts:
    """What a run's history says that no model can know."""

    is_asked_to_cancel: bool = False
    """Whether the code has seen a request. One that came as the run ended it has not."""
    is_cancelled_without_code: bool = False
    """Whether a request ended the run before its code saw it."""
    lost_nodes: Set[str] = frozenset()
    """The nodes of steps that failed since they lost their workers."""
    had_failed_child: bool = False
    child_values: Mapping[str, Any] = field(default_factory=dict)
    """What children have given, by the id of the node."""
    is_given_up: bool = False
    """Whether the run was given up, since its coordinators were lost too often."""


@dataclass(frozen=True)
class Model:
    """What a run of a program may come to.

    Args:
        iteration: Which run of its chain it is; for a child, of its parent's chain.
        carried: What the runs before it gave.
    """

    sent: Sent = Sent()
    facts: Facts = Facts()
    iteration: int = 0
    carried: Sequence[Any] = ()

    def judge(self, tree: Node, status: str, outcome: Any) -> str | None:
        """Why a run may not have ended so; None if it may.

        Args:
            outcome: The value of a run that completed, the error of one that failed, what one that continued
                has carried on.
        """
        if self.facts.is_given_up:
            return None if status == "failed" else f"it was given up and is {status}"
        is_again = tree["do"] == "again"
        is_last = not is_again or self.iteration + 1 >= tree["times"]
        match status:
            case "cancelled":
                is_asked = self.facts.is_asked_to_cancel or self.facts.is_cancelled_without_code
                return None if is_asked else "nobody asked it to cancel"
            case "failed":
                return None if self.raises(_body(tree), outcome) else f"no part of it raises {outcome!r}"
            case "completed" | "continued_as_new":
                if is_last != (status == "completed"):
                    return f"run {self.iteration} of its chain is {status}"
                if not self._carries(tree, outcome):
                    return f"its parts do not give {outcome!r}"
                if self._should_have_seen(tree) and not _has_stopped(outcome):
                    return "it was asked to cancel, and its code never saw that"
                return None
            case _:
                return f"it has not ended: {status}"

    def _carries(self, tree: Node, outcome: Any) -> bool:
        if tree["do"] != "again":
            return self.values(tree, outcome)
        if not isinstance(outcome, list) or len(outcome) != len(self.carried) + 1:
            return False
        return outcome[:-1] == list(self.carried) and self.values(tree["part"], outcome[-1])

    def _should_have_seen(self, tree: Node) -> bool:
        """Whether code that was asked to cancel cannot have ended as if it had not been.

        A `TaskGroup` of which a part fails raises that error in place of the request, as asyncio has it.
        """
        excused = any(node["do"] == "group" and any(map(_may_fail, nodes(node))) for node in own_nodes(tree))
        return self.facts.is_asked_to_cancel and not excused

    def values(self, node: Node, value: Any) -> bool:
        """Whether a node may give this value."""
        match node["do"]:
            case "step":
                return value == self._step_value(node) and self._may_return(node)
            case "effects":
                return bool(value == "patched")
            case "sleep":
                return bool(value == "slept")
            case "hook":
                return value in self.sent.payloads.get(token_of(node, self.iteration), ())
            case "receive":
                return self._received(node, value)
            case "gather" if node["keeps_errors"]:
                return self._all(node["parts"], value, self._value_or_caught)
            case "sequence" | "saga" | "group" | "map" | "gather":
                return self._all(node["parts"], value, self.values)
            case "try":
                return self._value_or_caught(node["part"], value)
            case "guard":
                stopped = {"stopped": node["id"]}
                may_stop = node["stops"] and self.facts.is_asked_to_cancel
                return (may_stop and value == stopped) or self.values(node["part"], value)
            case "shield":
                return self.values(node["part"], value)
            case "limit":
                return value == {"late": True} or self.values(node["part"], value)
            case "race":
                if not isinstance(value, dict) or value.keys() != {"winner", "value"}:
                    return False
                winner = value["winner"]
                return 0 <= winner < len(node["parts"]) and self.values(node["parts"][winner], value["value"])
            case "child":
                return self._child_value(node, value)
            case _:
                return False

    def raises(self, node: Node, error: str) -> bool:
        """Whether a node may raise this error, as `interpreter.name_of` says it."""
        if error == CANCELLED:
            return self.facts.is_asked_to_cancel
        match node["do"]:
            case "step":
                return error in self._step_errors(node)
            case "hook":
                token = token_of(node, self.iteration)
                is_rejected = error == "HookRejectedError" and token in self.sent.rejected
                return is_rejected or (error == "HookExpiredError" and node["timeout"] is not None)
            case "gather" if node["keeps_errors"]:
                return False
            case "group" | "map" | "gather" | "race":
                return any(self.raises(part, error) for part in node["parts"])
            case "sequence" | "saga":
                for part in node["parts"]:
                    if self.raises(part, error):
                        return True
                    if not self._may_return(part):
                        return False
                return False
            case "shield" | "limit":
                return self.raises(node["part"], error)
            case "guard":
                return self.raises(node["part"], error) or self.raises(node["cleanup"], error)
            case "child":
                return error == CHILD_FAILED and node["how"] == "wait" and self.facts.had_failed_child
            case _:
                return False  # `try` catches all; the others raise nothing

    def _value_or_caught(self, node: Node, value: Any) -> bool:
        if isinstance(value, dict) and value.keys() == {"caught"}:
            error = value["caught"]
            if error != CANCELLED and self.raises(node, error):
                return True
        return self.values(node, value)

    def _received(self, node: Node, value: Any) -> bool:
        """Whether these are signals in their order, behind those that earlier runs of the chain gave.

        A run that stopped waiting leaves to the next what it has not read.
        """
        count = node["count"]
        read = [text for text in _texts(self.carried) if text.startswith(f"{node['id']}/")]
        first = 1 + max((int(text.rpartition("/")[2]) for text in read), default=-1)
        last = self.iteration * count
        return any(
            value == [signal_payload(node, begin + number) for number in range(count)]
            for begin in range(first, last + 1)
        )

    def _all(self, parts: Sequence[Node], value: Any, allows: Any) -> bool:
        is_fitting = isinstance(value, list) and len(value) == len(parts)
        return is_fitting and all(allows(part, each) for part, each in zip(parts, value, strict=True))

    def _step_value(self, node: Node) -> str:
        from storm.interpreter import LARGE

        return f"{node['id']}:{LARGE}" if node["act"] == "large" else str(node["id"])

    def _step_errors(self, node: Node) -> set[str]:
        lost = {LOST} if node["id"] in self.facts.lost_nodes else set()
        match node["act"]:
            case "gives up":
                return {f"ValueError: {node['id']}"} | lost
            case "fatal":
                return {f"FatalError: {node['id']}"} | lost
            case "hangs" | "hangs for good":
                return {"StepTimeoutError"} | lost
            case _:
                return lost

    def _may_return(self, node: Node) -> bool:
        """Whether a node may give anything at all."""
        match node["do"]:
            case "step":
                return node["act"] not in ("gives up", "fatal", "hangs for good", "dies for good")
            case "die":
                return False
            case "sequence" | "saga" | "group" | "map":
                return all(self._may_return(part) for part in node["parts"])
            case "gather":
                return node["keeps_errors"] or all(self._may_return(part) for part in node["parts"])
            case "race":
                return any(self._may_return(part) for part in node["parts"])
            case "guard" | "shield":
                return self._may_return(node["part"]) or bool(node.get("stops"))
            case _:
                return True

    def _child_value(self, node: Node, value: Any) -> bool:
        if node["how"] == "abandon":
            return bool(value == {"left": node["id"]})
        if node["how"] == "cancel" and value == {"gone": node["id"]}:
            return self.facts.had_failed_child
        if not isinstance(value, dict) or value.keys() != {"child"}:
            return False
        # The child is judged by itself, over its own history.
        given = self.facts.child_values
        return node["id"] in given and bool(given[node["id"]] == value["child"])


def _body(tree: Node) -> Node:
    body: Node = tree["part"] if tree["do"] == "again" else tree
    return body


def _texts(value: Any) -> Iterator[str]:
    """All texts in a result."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


def _may_fail(node: Node) -> bool:
    """Whether a node itself may raise something else than a cancellation."""
    is_sure = node["do"] == "step" and node["act"] in ("works", "recovers", "large") and node["idempotent"]
    return node["do"] in ("step", "hook", "child") and not is_sure


def _has_stopped(value: Any) -> bool:
    """Whether a guard has stopped, anywhere in a result, except in a child."""
    if isinstance(value, dict):
        return "stopped" in value or any(_has_stopped(each) for key, each in value.items() if key != "child")
    return isinstance(value, list) and any(map(_has_stopped, value))
