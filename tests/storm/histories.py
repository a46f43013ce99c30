"""Hand-made rows of a database, as a storm would find them."""

from __future__ import annotations

import copy
import json
from typing import Any

from storm.evidence import Evidence
from storm.ledger import Line
from storm.programs import Node
from storm.records import Event, Records, Run

WORK: Node = {
    "do": "step",
    "id": "p1x1.1",
    "act": "works",
    "local": False,
    "seconds": 0.0,
    "until": 1,
    "idempotent": True,
    "on_cancel": "wait",
}


def step(name: str, **changes: Any) -> Node:
    """The node of a step."""
    return {**WORK, "id": name, **changes}


def node(do: str, *parts: Node, name: str = "p1x1.9", **more: Any) -> Node:
    """A node of another kind."""
    return {"do": do, "id": name, "parts": list(parts), **more}


def over(do: str, part: Node, name: str = "p1x1.8", **more: Any) -> Node:
    """A node around one part."""
    return {"do": do, "id": name, "part": part, **more}


ROW: dict[str, Any] = {
    "status": "completed",
    "owner": None,
    "lease_expires_at": None,
    "wake_at": None,
    "continued_from_run_id": None,
    "continued_to_run_id": None,
}


def run_of(tree: Node, *events: tuple[str, dict[str, Any]], run_id: str = "run-p1x1", **row: Any) -> Run:
    """A run with this history, a second from each event to the next."""
    made = [Event(position, type_, 100.0 + position, data) for position, (type_, data) in enumerate(events)]
    arguments = json.dumps([{"id": "p1x1", "tree": tree}, *row.pop("carried", [])])
    fields = {**ROW, "run_id": run_id, "position": len(made), "input_args": arguments, **row}
    return Run(fields, made)


def started() -> tuple[str, dict[str, Any]]:
    return "workflow.started", {"workflow_name": "storm"}


def scheduled(of: Node, step_id: str, name: str = "storm.work") -> tuple[str, dict[str, Any]]:
    return "step.started", {"step_id": step_id, "step_name": name, "args": [of], "attempt": 1}


def completed(of: Node, step_id: str, attempt: int = 1) -> tuple[str, dict[str, Any]]:
    return "step.completed", {
        "step_id": step_id,
        "step_name": "storm.work",
        "result": of["id"],
        "attempt": attempt,
    }


def begin(of: Node, step_id: str, attempt: int = 1, run_id: str = "run-p1x1") -> Line:
    """A ledger's line of an attempt that began."""
    return {
        "what": "begin",
        "at": 101.0,
        "run": run_id,
        "step": step_id,
        "attempt": attempt,
        "once": not of["idempotent"],
        "node": of["id"],
    }


def done(kind: str, **more: Any) -> Line:
    """A ledger's line of what was acknowledged."""
    return {
        "what": "done",
        "at": 102.0,
        "kind": kind,
        "program": "p1x1",
        "run": "run-p1x1",
        "key": "k",
        **more,
    }


def tried(line: Line) -> Line:
    """The line that stands before it."""
    return {**line, "what": "try"}


def evidence_of(*runs: Run, lines: list[Line] | None = None, **tables: Any) -> Evidence:
    """What the checks look at; nothing of it is shared."""
    records = Records({run.id: run for run in runs}, **tables)
    return copy.deepcopy(Evidence(records, lines or []))


def whole() -> Evidence:
    """A run of one step, a hook and a signal, of which every promise was kept."""
    tree = node("sequence", WORK, {"do": "hook", "id": "p1x1.2", "timeout": None}, name="p1x1.4")
    tree["parts"].append({"do": "receive", "id": "p1x1.3", "count": 1})
    token, payload = "p1x1.2@0", "for p1x1.2@0"
    run = run_of(
        tree,
        started(),
        scheduled(WORK, "storm.work#1"),
        completed(WORK, "storm.work#1"),
        ("hook.created", {"hook_id": "h#1", "token": token}),
        ("hook.received", {"hook_id": "h#1", "payload": payload}),
        ("signal.received", {"name": "p1x1.3", "payload": "p1x1.3/0"}),
        ("workflow.completed", {"result": ["p1x1.1", payload, ["p1x1.3/0"]]}),
    )
    answer = done("payload", token=token, payload=payload)
    lines = [
        done("start"),
        begin(WORK, "storm.work#1"),
        tried(answer),
        answer,
        done("signal", payload="p1x1.3/0"),
        {
            "what": "saw",
            "at": 108.0,
            "program": "p1x1",
            "run": "run-p1x1",
            "status": "completed",
            "outcome": ["p1x1.1", payload, ["p1x1.3/0"]],
        },
    ]
    hook = {"run_id": "run-p1x1", "hook_id": "h#1", "status": "received"}
    read = {"run_id": "run-p1x1", "kind": "signal.received", "dedup_key": "k", "read_position": 5}
    blobs = {"blobs": {"b"}, "run_blobs": {("run-p1x1", "b")}}
    return evidence_of(run, lines=lines, hooks=[hook], inbox=[read], **blobs)
