"""Which texts may be run ids and names, and what becomes of others."""

from __future__ import annotations

import pytest

from pyworkflow_ray.exceptions import ConfigurationError
from pyworkflow_ray.ids import (
    LONGEST_ID,
    checked_run_id,
    checked_text,
    file_name,
    is_storable,
    new_run_id,
    storable,
)

UNSTORABLE = ["a\0b", "\0", "\ud800", "name\udcff"]


@pytest.mark.parametrize(
    "run_id", ["run_0123456789abcdef", "order-7", "7", "a:b@c=d+e~f.g_h", "_x", "x" * LONGEST_ID, "run_1"]
)
def test_a_run_id_may_be_of_these_forms(run_id: str) -> None:
    assert checked_run_id(run_id) == run_id
    assert checked_run_id(new_run_id())


@pytest.mark.parametrize(
    "run_id",
    [
        *("", "../../x", "a/b", "a\\b", "..", ".hidden", "-x", "a b", "a\n", "é", "x" * (LONGEST_ID + 1)),
        *(7, None, *UNSTORABLE),
    ],
)
def test_another_run_id_is_refused_with_what_is_allowed(run_id: object) -> None:
    with pytest.raises(ConfigurationError, match=r"run id .* is not valid: give 1 to 200 of the characters"):
        checked_run_id(run_id)


@pytest.mark.parametrize("text", UNSTORABLE)
def test_a_text_that_no_database_holds_is_refused_and_can_be_written_out(text: str) -> None:
    assert not is_storable(text)
    with pytest.raises(ConfigurationError, match=r"The key is .*: a NUL character or a lone surrogate"):
        checked_text(text, "The key")
    assert is_storable(storable(text))


def test_other_texts_stay_as_they_are() -> None:
    for text in ("", "a", "ü", "\x01", "𝄞"):
        assert checked_text(text, "The key") == storable(text) == text
    with pytest.raises(ConfigurationError, match="The key must be a text, and not 7"):
        checked_text(7, "The key")


def test_a_file_name_leads_to_no_other_folder() -> None:
    assert file_name("run_1") == "run_1"
    assert file_name("order:7") == "order:7"
    for text in ("../../x", "/etc/x", "..", "a\0b", "\ud800", "-rf", "~/x/../y"):
        made = file_name(text)
        assert made
        assert "/" not in made
        assert not made.startswith((".", "-"))
        assert is_storable(made)
    assert file_name("..") == "_"
