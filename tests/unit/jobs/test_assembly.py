"""Who trains and who never does."""

from __future__ import annotations

import pytest

from fedsdr.errors import RecipeError
from fedsdr.jobs.assembly import given
from fedsdr.jobs.sources import hold_back
from fedsdr.recipe.settings import Recipe
from toy import clients


def test_the_last_clients_are_held_back() -> None:
    federation = given(list(clients((2, 3, 4)).values()), Recipe())
    assert federation is not None
    for count, names in ((0, ["c0", "c1", "c2"]), (1, ["c0", "c1"]), (2, ["c0"])):
        trained, unseen = hold_back(federation, count)
        assert [c.client_id for c in trained.clients] == names
        assert [c.client_id for c in unseen] == ["c0", "c1", "c2"][len(names) :]


@pytest.mark.parametrize("count", [3, 4, 6, 10**30, -1, -3])
def test_none_left_and_less_than_none_are_refused(count: int) -> None:
    federation = given(list(clients((2, 3, 4)).values()), Recipe())
    assert federation is not None
    with pytest.raises(RecipeError, match=r"^data\.unseen: "):
        hold_back(federation, count)
