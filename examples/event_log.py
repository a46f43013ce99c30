"""The history of a run as a table, from Python and from SQL.

    python examples/event_log.py

Every event has a position, a time, a type and data. Replay needs nothing else. Any tool that reads SQL can
show the events.
"""

import json
import sqlite3

from pyworkflow_ray import Event, get_config, get_context, sleep, start_sync, step, workflow

QUERY = """
SELECT position, substr(timestamp, 12, 12) AS time, type,
       coalesce(data ->> 'step_id', data ->> 'sleep_id', data ->> 'workflow_name', '') AS what,
       coalesce(data ->> 'result', data ->> 'error', data ->> 'resume_at', data ->> 'args', '') AS value
FROM events WHERE run_id = :run_id ORDER BY position
"""


@step(retry_delay="100ms")
def fetch(city: str) -> float:
    if get_context().attempt == 1:
        raise TimeoutError("the weather station does not answer")
    return 21.5


@step
def to_fahrenheit(celsius: float) -> float:
    return celsius * 9 / 5 + 32


@workflow
async def weather(city: str) -> str:
    celsius = await fetch(city)
    await sleep("200ms")
    return f"{city}: {await to_fahrenheit(celsius)} °F"


def line_of(event: Event) -> str:
    data = event.data
    what = data.get("step_id") or data.get("sleep_id") or data.get("workflow_name") or ""
    value = next((data[key] for key in ("result", "error", "resume_at", "args") if data.get(key)), "")
    return f"{event.sequence:>3}  {event.timestamp:%H:%M:%S.%f}  {event.type:<20} {what:<16} {value}"


if __name__ == "__main__":
    run = start_sync(weather, "Lisbon")
    run.wait()
    print("with await run.events():")
    for event in run.events_sync():
        print(line_of(event))

    print(f"\nwith SQL:{QUERY}")
    with sqlite3.connect(get_config().storage_url) as connection:
        for position, time, type_, what, value in connection.execute(QUERY, {"run_id": run}):
            print(f"{position:>3}  {time}  {type_:<20} {what:<16} {value}")

    first = run.events_sync()[1]
    print(f"\nthe data of event {first.sequence}:\n{json.dumps(first.data, indent=2)}")
