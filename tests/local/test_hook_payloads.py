"""What a hook is given is what its run gets: the same value, of the same class, from wherever it comes."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

import pyworkflow_ray as pr
from pyworkflow_ray.client.records import Event
from pyworkflow_ray.testing import WorkflowEnvironment
from tests.leaves.test_schemas import INSTANCES, Base, Sub


async def _given(schema: Any, payload: Any) -> Any:
    """The payload as the workflow gets it."""

    @pr.workflow(name="payload_taker")
    async def takes() -> Any:
        return await pr.hook("h", payload_schema=schema)

    async with WorkflowEnvironment() as environment:
        run = await environment.start(takes)
        await environment.settle()
        ((hook,), _) = await pr.list_hooks(run)
        await pr.resume_hook(hook.token, payload)
        return await run


@pytest.mark.parametrize(("schema", "payload"), INSTANCES, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("has_schema", [True, False])
async def test_a_payload_arrives_as_it_was_given(schema: Any, payload: Any, has_schema: bool) -> None:
    got = await _given(schema if has_schema else None, payload)
    assert (got, repr(got)) == (payload, repr(payload))


async def test_an_instance_that_does_not_fit_is_refused_and_the_hook_still_waits() -> None:
    with pytest.raises(pr.HookValidationError, match="b: Field required"):
        await _given(Sub, Base(a=1))


class Password(BaseModel):
    password: SecretStr


@pr.workflow
async def payload_secret() -> int:
    first = await pr.hook("h", payload_schema=Password)
    second: Any = await pr.hook("i")
    return len(first.password.get_secret_value()) + len(second.get_secret_value())


async def test_no_list_no_record_and_no_text_shows_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    async with WorkflowEnvironment() as environment:
        run = await environment.start(payload_secret)
        for payload in (Password(password=SecretStr("s3cret")), SecretStr("s3cret")):
            await environment.settle()
            hooks, _ = await pr.list_hooks(run, status="pending")
            await pr.resume_hook(hooks[0].token, payload)
        assert await run == 12
        hooks, _ = await pr.list_hooks(run)
        events: list[Event] = await run.events()
        shown = [hook.payload for hook in hooks] + [event.data for event in events]
        texts = [repr(shown), str(hooks), str(events), caplog.text]
        assert not any("s3cret" in text for text in texts)
        assert any("**********" in text for text in texts)
