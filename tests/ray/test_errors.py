"""What a step raises in another process is caught in the workflow, and printed, as after a plain call."""

from __future__ import annotations

import threading
import traceback
from pathlib import Path
from typing import Any

import pytest
import requests
from pydantic import BaseModel, ValidationError

import pyworkflow_ray as pr

pytestmark = pytest.mark.usefixtures("shared_engine")


PACKAGE = Path(pr.__file__).parent


class ServerError(Exception):
    def __init__(self, connection: Any, *, status: int) -> None:
        super().__init__(f"the server said {status}")
        self.connection, self.status = connection, status


class Amount(BaseModel):
    cents: int


def fail(how: str) -> None:
    match how:
        case "connection":
            requests.get("http://127.0.0.1:9/x", timeout=5)
        case "server":
            raise ServerError(threading.Lock(), status=503)
        case "value":
            Amount.model_validate({"cents": "many"})
        case "group":
            try:
                {}["missing"]
            except KeyError as error:
                several = [error, OSError(2, "no such file", "f")]
                raise ExceptionGroup("several", several) from ValueError("why")
        case "stop iteration":
            next(iter([]))
        case "stop async iteration":
            raise StopAsyncIteration
        case "generator exit":
            raise GeneratorExit
        case "exit":
            raise SystemExit(3)
        case "interrupt":
            raise KeyboardInterrupt


@pr.step(max_retries=0)
def errors_remote(how: str) -> None:
    fail(how)


@pr.step(max_retries=0)
async def errors_remote_async(how: str) -> None:
    fail(how)


@pr.step(max_retries=0, local=True)
def errors_local(how: str) -> None:
    fail(how)


@pr.step(max_retries=0, local=True)
async def errors_local_async(how: str) -> None:
    fail(how)


STEPS = {step.name: step for step in (errors_remote, errors_remote_async, errors_local, errors_local_async)}


@pr.workflow
async def errors_uncaught(step: str, how: str) -> None:
    await STEPS[step](how)


@pr.workflow
async def errors_caught(step: str, how: str) -> str:
    try:
        await STEPS[step](how)
    except requests.ConnectionError as error:
        return f"{type(error).__name__} of {error.request.url}"
    except ValidationError as error:
        return f"{error.error_count()} in {error.errors()[0]['loc']}"
    except ServerError as error:
        return f"{error} ({error.status}, {hasattr(error, 'connection')}): {len(error.__notes__)}"
    return "nothing"


@pytest.mark.parametrize("step", STEPS)
async def test_an_error_is_caught_by_its_class_whatever_it_holds(step: str) -> None:
    told = [await (await pr.start(errors_caught, step, how)) for how in ("connection", "value", "server")]
    assert told == [
        "ConnectionError of http://127.0.0.1:9/x",
        "1 in ('cents',)",
        "the server said 503 (503, False): 2",
    ]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "how", ["stop iteration", "stop async iteration", "generator exit", "exit", "interrupt"]
)
async def test_what_would_stop_its_raiser_fails_the_run_and_says_so(step: str, how: str) -> None:
    run = await pr.start(errors_uncaught, step, how)
    with pytest.raises(Exception, match=r"Stop(Async)?Iteration|GeneratorExit|SystemExit|KeyboardInterrupt"):
        await run
    assert await run.status() is pr.RunStatus.FAILED


async def test_a_group_comes_back_with_its_causes_and_its_tracebacks() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await (await pr.start(errors_uncaught, "errors_remote", "group"))
    first, second = caught.value.exceptions
    assert (type(first), second.filename) == (KeyError, "f")  # type: ignore[attr-defined]
    assert repr(caught.value.__cause__) == "ValueError('why')"
    assert caught.value.__suppress_context__
    assert traceback.extract_tb(first.__traceback__)[-1].name == "fail"
    printed = "".join(traceback.format_exception(caught.value))
    assert printed.count("the direct cause of the following exception") == 1


async def test_a_traceback_leads_from_the_driver_through_the_workflow_into_the_step() -> None:
    with pytest.raises(ServerError) as caught:
        await (await pr.start(errors_uncaught, "errors_remote", "server"))
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert [frame.name for frame in frames[-3:]] == ["errors_uncaught", "errors_remote", "fail"]
    assert [frame.line for frame in frames[-3:]] == [
        "await STEPS[step](how)",
        "fail(how)",
        "raise ServerError(threading.Lock(), status=503)",
    ]
    of_engine = [frame for frame in frames if Path(frame.filename).is_relative_to(PACKAGE)]
    assert len(of_engine) == 1, "the one in which the driver waits"
