"""Programs follow from a seed and a number, and from nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from storm.programs import answer_to, make_program, nodes

KINDS = {
    *("step", "effects", "sleep", "hook", "receive", "sequence", "gather", "group", "map", "try", "guard"),
    *("shield", "limit", "race", "child", "saga", "again", "die"),
}


def test_a_seed_and_a_number_give_the_same_program_in_every_process() -> None:
    script = "import json, storm.programs as p; print(json.dumps(p.make_program(5, 17).argument))"
    told = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": os.getcwd(), "PYTHONHASHSEED": "1"},
        capture_output=True,
        check=True,
    )
    assert json.loads(told.stdout) == make_program(5, 17).argument
    assert make_program(5, 17) != make_program(6, 17)


def test_programs_survive_the_way_through_json() -> None:
    for number in range(100):
        argument = make_program(1, number).argument
        assert json.loads(json.dumps(argument)) == argument


def test_every_kind_of_node_is_made_and_its_id_is_its_own() -> None:
    found = [node for number in range(400) for node in nodes(make_program(2, number).tree)]
    assert {node["do"] for node in found} == KINDS
    assert len({node["id"] for node in found}) == len(found)


def test_programs_that_end_their_process_are_flagged_rare_and_can_be_left_out() -> None:
    made = [make_program(4, number) for number in range(400)]
    deadly = [each for each in made if any(node["do"] == "die" for node in nodes(each.tree))]
    assert 0 < len(deadly) < 40
    assert [each for each in made if "deadly" in each.flags] == deadly
    spared = [make_program(4, each.number, with_deadly=False) for each in deadly]
    assert not any(node["do"] == "die" for each in spared for node in nodes(each.tree))


def test_no_child_waits_for_signals_since_nobody_knows_its_id() -> None:
    for number in range(300):
        for node in nodes(make_program(6, number).tree):
            if node["do"] == "child":
                assert not any(each["do"] == "receive" for each in nodes(node))


def test_what_is_sent_to_a_hook_follows_from_its_token() -> None:
    assert answer_to(1, "p1x1.2@0") == answer_to(1, "p1x1.2@0")
    assert any(answer_to(1, f"t{number}").rejects for number in range(50))
