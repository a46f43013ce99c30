"""Random programs. A program is a tree of JSON that one workflow carries out (`interpreter`).

The seed and the number of a program decide everything about it: its tree, and what its drivers send to it. So
code never varies, and a program that broke a promise can be made again from two numbers.

A node is a dictionary. `do` says its kind, `id` is unique among all programs of a storm. The kinds:

| `do` | it gives |
|---|---|
| step, effects | what one step gives (see `ACTS`); nothing of note, by side effects |
| sleep, hook, receive | a text, a payload, a list of payloads |
| sequence, gather, group, map | a list with what each part gives |
| try | what its part gives, or ``{"caught": error}`` |
| guard | what its part gives; asked to cancel, it cleans up, and then stops or passes the request on |
| shield, limit, race | what its part gives; or ``{"late": true}``; or the first of its parts |
| child | what the child gives, if it is waited for |
| saga | raises, or what its steps give; its steps have compensations |
| again | the list of what its part gave in each run of a chain |
| die | nothing: it ends the process that drives the run |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

Node = dict[str, Any]

ACTS = ("works", "recovers", "gives up", "fatal", "hangs", "hangs for good", "dies", "dies for good", "large")
"""What the code of a step does."""

LOCAL_ACTS = ("works", "recovers", "gives up", "fatal", "hangs", "large")
DEADLY_IN = 40
"""One program of so many ends the process that drives it."""


@dataclass(frozen=True)
class Program:
    """A program, and what its drivers do to it."""

    number: int
    id: str
    tree: Node
    cancel_after: float | None = None
    """So many seconds after its start it is asked to cancel."""
    has_key: bool = False
    """Whether it is started under an idempotency key. Otherwise it has a run id of its own."""
    is_queried: bool = False
    is_awaited: bool = True
    """Whether its driver waits for its result."""
    flags: tuple[str, ...] = field(default=())

    @property
    def argument(self) -> Node:
        """What its run gets."""
        return {"id": self.id, "tree": self.tree}


def make_program(seed: int, number: int, *, with_deadly: bool = True) -> Program:
    """The program of this number in the storm of this seed."""
    random = Random(f"storm:{seed}:{number}")
    name = f"p{seed}x{number}"
    maker = _Maker(random, name)
    is_deadly = with_deadly and random.randrange(DEADLY_IN) == 0
    tree = maker.top(is_deadly=is_deadly)
    return Program(
        number=number,
        id=name,
        tree=tree,
        cancel_after=round(random.uniform(0.0, 8.0), 2) if random.random() < 0.3 else None,
        has_key=random.random() < 0.2,
        is_queried=random.random() < 0.3,
        is_awaited=random.random() < 0.7,
        flags=("deadly",) if is_deadly else (),
    )


def nodes(tree: Node) -> Iterator[Node]:
    """The tree's nodes, itself first."""
    yield tree
    for part in (*tree.get("parts", ()), *([tree["part"]] if "part" in tree else ())):
        yield from nodes(part)


def own_nodes(tree: Node) -> Iterator[Node]:
    """The nodes that the run itself carries out: all but those of children."""
    yield tree
    if tree["do"] == "child":
        return
    for part in (*tree.get("parts", ()), *([tree["part"]] if "part" in tree else ())):
        yield from own_nodes(part)


def token_of(node: Node, iteration: int) -> str:
    """The token of a hook, in this run of its chain."""
    return f"{node['id']}@{iteration}"


def signal_payload(node: Node, number: int) -> str:
    """What the signal of this number carries, for the node that receives it."""
    return f"{node['id']}/{number}"


@dataclass(frozen=True)
class Answer:
    """What a driver does about a hook."""

    after: float
    rejects: bool
    twice: bool
    """Whether it answers again, under another key, and must be refused."""


def answer_to(seed: int, token: str) -> Answer:
    """What a driver does about the hook of this token."""
    random = Random(f"answer:{seed}:{token}")
    return Answer(
        round(random.uniform(0.0, random.choice((1.0, 5.0))), 2),
        random.random() < 0.15,
        random.random() < 0.2,
    )


class _Maker:
    """Makes the nodes of one program."""

    def __init__(self, random: Random, name: str) -> None:
        self._random, self._name = random, name
        self._made = 0
        self._budget = random.randint(4, 12)
        self._depth = 0
        self._is_in_child = False

    def top(self, *, is_deadly: bool) -> Node:
        if is_deadly:
            return self._node("sequence", parts=[self._part(), self._node("die"), self._part()])
        if self._random.random() < 0.12:
            self._budget = 4
            part = self._sequence(2)
            return self._node("again", times=self._random.randint(2, 3), part=part)
        if self._random.random() < 0.15:
            return self._node("sequence", parts=[self._part(), self._saga()])
        if self._random.random() < 0.2:  # long enough to leave memory, and to be woken by the timer
            nap = self._node("sleep", seconds=round(self._random.uniform(4.0, 14.0), 3))
            return self._node("sequence", parts=[nap, self._part()])
        return self._sequence(self._random.randint(2, 4))

    def _node(self, do: str, **more: Any) -> Node:
        self._made += 1
        return {"do": do, "id": f"{self._name}.{self._made}", **more}

    def _sequence(self, length: int) -> Node:
        return self._node("sequence", parts=[self._part() for _ in range(length)])

    def _part(self) -> Node:
        self._depth += 1
        try:
            is_leaf = self._budget <= 1 or self._depth > 3
            kinds = self._leaves() if is_leaf else {**self._leaves(), **self._inner()}
            make = self._random.choices(list(kinds), list(kinds.values()))[0]
            return make()
        finally:
            self._depth -= 1

    def _leaves(self) -> dict[Callable[[], Node], int]:
        # A child's id is not known to those who send signals.
        receive = {} if self._is_in_child else {self._receive: 3}
        return {self._step: 10, self._sleep: 4, self._hook: 3, **receive, self._effects: 1}

    def _inner(self) -> dict[Callable[[], Node], int]:
        return {
            self._gather: 4,
            self._group: 3,
            self._map: 3,
            self._try: 4,
            self._guard: 4,
            self._shield: 1,
            self._limit: 2,
            self._race: 3,
            self._child: 4,
        }

    def _step(self) -> Node:
        self._budget -= 1
        is_local = self._random.random() < 0.3
        acts = LOCAL_ACTS if is_local else ACTS
        weights = {"works": 10, "recovers": 4, "large": 2, "hangs": 2, "dies": 2}
        act = self._random.choices(acts, [weights.get(each, 1) for each in acts])[0]
        return self._step_of(act, is_local=is_local)

    def _step_of(self, act: str, *, is_local: bool = False, **more: Any) -> Node:
        is_idempotent = act in ("recovers", "hangs", "dies") or self._random.random() < 0.75
        return self._node(
            "step",
            act=act,
            local=is_local,
            seconds=round(self._random.choice((0.0, 0.05, 0.3, 1.0, 2.5)) * self._random.random(), 3),
            until=self._random.randint(1, 2),
            idempotent=is_idempotent,
            on_cancel=self._random.choice(("wait", "wait", "interrupt", "kill", "abandon")),
            **more,
        )

    def _sleep(self) -> Node:
        longest = self._random.choice((0.05, 1.0, 1.0, 6.0, 9.0))
        return self._node("sleep", seconds=round(self._random.uniform(longest / 3, longest), 3))

    def _hook(self) -> Node:
        timeout = round(self._random.uniform(0.5, 4.0), 2) if self._random.random() < 0.3 else None
        return self._node("hook", timeout=timeout)

    def _receive(self) -> Node:
        return self._node("receive", count=self._random.randint(1, 4))

    def _effects(self) -> Node:
        return self._node("effects")

    def _several(self) -> list[Node]:
        return [self._part() for _ in range(self._random.randint(2, 4))]

    def _gather(self) -> Node:
        return self._node("gather", keeps_errors=self._random.random() < 0.4, parts=self._several())

    def _group(self) -> Node:
        return self._node("group", parts=self._several())

    def _map(self) -> Node:
        self._budget -= 2
        is_batched = self._random.random() < 0.6
        count = self._random.randint(3, 12)
        act = self._random.choice(("works", "works", "recovers"))
        steps = [self._step_of(act) for _ in range(count)]
        for step in steps:
            step["seconds"] = round(min(step["seconds"], 0.1), 3)
            step["on_cancel"] = "wait"
            if is_batched:
                step["idempotent"] = True
        # All calls of a map have the options of the first.
        for step in steps[1:]:
            step["idempotent"], step["until"] = steps[0]["idempotent"], steps[0]["until"]
        return self._node("map", batch=self._random.choice((2, 3, 8)) if is_batched else None, parts=steps)

    def _try(self) -> Node:
        return self._node("try", part=self._part())

    def _guard(self) -> Node:
        cleanup = self._step_of("works", is_local=self._random.random() < 0.3)
        cleanup["idempotent"] = True
        return self._node("guard", stops=self._random.random() < 0.4, cleanup=cleanup, part=self._part())

    def _shield(self) -> Node:
        return self._node("shield", part=self._part())

    def _limit(self) -> Node:
        return self._node("limit", seconds=round(self._random.uniform(0.2, 4.0), 2), part=self._part())

    def _race(self) -> Node:
        return self._node("race", parts=self._several()[:3])

    def _child(self) -> Node:
        if self._is_in_child:
            return self._step()
        self._is_in_child = True
        how = self._random.choice(("wait", "wait", "abandon", "cancel"))
        part = self._node("sequence", parts=[self._part(), self._part()])
        self._is_in_child = False
        return self._node("child", how=how, after=round(self._random.uniform(0.0, 1.5), 2), part=part)

    def _saga(self) -> Node:
        steps = [self._step_of("works", compensated=True) for _ in range(self._random.randint(2, 4))]
        for step in steps:
            step["on_cancel"] = "wait"
        ending = self._step_of("fatal") if self._random.random() < 0.7 else self._step_of("works")
        return self._node("saga", parts=[*steps, ending])
