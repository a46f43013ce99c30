"""The ledger, the proxy and the search for processes do what the storm relies on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from random import Random
from urllib.parse import parse_qs, quote, urlsplit

import psycopg
import pytest

from pyworkflow_ray.testing import WorkflowEnvironment
from storm import ledger
from storm.checks import check_all
from storm.evidence import Evidence
from storm.interpreter import storm
from storm.plans import Plan
from storm.processes import Process, kill_all, of_cluster, of_program
from storm.proxy import Proxy, tell
from storm.records import read_records
from storm.recoveries import recoveries_of
from storm.replays import lengths_of
from storm.report import Report
from tests.storm.histories import WORK, whole


def test_a_ledger_gives_each_whole_line_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger"
    monkeypatch.setenv(ledger.VARIABLE, str(path))
    ledger.write("begin", run="a")
    reader = ledger.Reader(path)
    assert [line["run"] for line in reader.read()] == ["a"]
    with path.open("a") as file:
        file.write('{"what": "end", "ru')
    assert reader.read() == []
    with path.open("a") as file:
        file.write('n": "b"}\n')
    assert [line["run"] for line in reader.read()] == ["b"]


def test_many_processes_write_whole_lines(tmp_path: Path) -> None:
    script = "from storm import ledger\nfor n in range(200): ledger.write('note', text='x' * 500)"
    environment = {ledger.VARIABLE: str(tmp_path / "ledger"), "PYTHONPATH": str(Path.cwd())}
    writers = [subprocess.Popen([sys.executable, "-c", script], env=environment) for _ in range(4)]
    assert [writer.wait() for writer in writers] == [0, 0, 0, 0]
    assert len(ledger.read(tmp_path / "ledger")) == 800


def test_the_proxy_loses_the_answer_to_a_commit_and_not_the_commit(
    postgresql_url: str, tmp_path: Path
) -> None:
    query = parse_qs(urlsplit(postgresql_url).query)
    proxy = Proxy(Path(query["host"][0]) / ".s.PGSQL.5432", tmp_path / "log")
    options = quote(query["options"][0])
    url = f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres?sslmode=disable&options={options}"
    try:
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE kept (n integer)")
        tell(proxy.control, "lose 1")
        connection = psycopg.connect(url)
        connection.execute("INSERT INTO kept VALUES (1)")
        with pytest.raises(psycopg.OperationalError):
            connection.commit()
        connection = psycopg.connect(url)
        assert connection.execute("SELECT n FROM kept").fetchall() == [(1,)]
        tell(proxy.control, "cut")
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
        connection.close()
    finally:
        proxy.close()


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("ray::CoordinatorActor.wake", "coordinator"),
        ("ray::TimerActor", "timer"),
        ("ray::HookRegistryActor.deliver_all", "hook_registry"),
        ("ray::storm/storm.work#3 (attempt 2)", "worker"),
        ("ray::IDLE", "idle"),
        ("ray::DashboardAgent", "ray"),
        ("/usr/bin/raylet --x", "ray"),
    ],
)
def test_a_process_says_what_it_is_by_its_title(title: str, kind: str) -> None:
    assert Process(1, 0, 0, title).kind == kind


def test_only_the_programs_of_this_storm_are_found(tmp_path: Path) -> None:
    sleeper = [sys.executable, "-c", "import sys, time; time.sleep(60)", "-m", "storm.drivers"]
    mine, others = [subprocess.Popen([*sleeper, folder]) for folder in (str(tmp_path), f"{tmp_path}-other")]
    try:
        assert {each.pid for each in of_program("storm.drivers", tmp_path)} == {mine.pid}
    finally:
        for process in (mine, others):
            process.kill()
            process.wait()


def test_only_the_processes_of_this_cluster_are_found(tmp_path: Path) -> None:
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    folder, other = tmp_path / "st1", tmp_path / "st2"
    server = ["ray.util.client.server", "--address=192.0.2.2:7001"]
    mine = [subprocess.Popen([*sleeper, f"--temp-dir={folder}"]), subprocess.Popen([*sleeper, *server])]
    others = [
        subprocess.Popen([*sleeper, f"--temp-dir={other}"]),
        subprocess.Popen([*sleeper, "ray.util.client.server", "--address=192.0.2.2:70011"]),
    ]
    try:
        assert {each.pid for each in of_cluster(folder, 7001)} == {process.pid for process in mine}
        assert kill_all(of_cluster(folder, 7001)) == []
        assert [process.poll() for process in others] == [None, None]
    finally:
        for process in (*mine, *others):
            process.kill()
            process.wait()


async def test_records_are_read_by_plain_sql(tmp_path: Path) -> None:
    path = str(tmp_path / "storm.db")
    async with WorkflowEnvironment(storage=path) as environment:
        run = await environment.start(storm, {"id": "p1x1", "tree": WORK})
        await run
    records = read_records(path)
    (found,) = records.runs.values()
    assert found.id == run
    assert found.status == "completed"
    assert found.program["tree"] == WORK
    assert [event.type for event in found.events][::3] == ["workflow.started", "workflow.completed"]


def test_short_histories_are_replayed_from_every_prefix_and_long_ones_from_some() -> None:
    assert lengths_of(5, Random(1)) == [5, 1, 2, 3, 4]
    assert len(lengths_of(1000, Random(1))) < 20


def test_times_to_recover_count_from_the_fault_to_the_next_event() -> None:
    evidence = whole()
    evidence.lines.append({"what": "fault", "at": 102.4, "kind": "kill worker", "runs": ["run-p1x1"]})
    (recovery,) = recoveries_of(evidence)
    assert recovery.times == recovery.alone == (pytest.approx(0.6),)


def test_times_to_recover_during_which_there_was_another_fault_are_told_apart() -> None:
    evidence = whole()
    fault = {"what": "fault", "kind": "lock database", "runs": ["run-p1x1"]}
    evidence.lines.extend([{**fault, "at": 101.4}, {"what": "over", "kind": "lock database", "at": 102.6}])
    evidence.lines.append({"what": "fault", "at": 102.4, "kind": "kill worker", "runs": ["run-p1x1"]})
    kill, lock = recoveries_of(evidence)
    assert (len(kill.times), kill.alone) == (1, ())
    assert lock.times == lock.alone == (pytest.approx(0.6),)


def test_a_report_is_plain_data_and_says_how_to_reproduce(tmp_path: Path) -> None:
    evidence = whole()
    plan = Plan(folder=tmp_path, seed=1, minutes=2.0, database="sqlite")
    assert "All promises held." in Report(plan, evidence, [], {}).text()
    broken = Evidence(evidence.records, [*evidence.lines, evidence.lines[1]])
    report = Report(plan, broken, check_all(broken), {"replayed": 1, "is_whole": True})
    assert "python storm/run.py --seed 1 --show 1" in report.text()
    assert "--seed 1 --minutes 2 --database sqlite" in report.text()
    assert json.loads(json.dumps(report.plain()))["broken"][0]["promise"] == "an attempt begins once"
