"""What is driven again while something is away: all errors that promise to pass, and no others."""

from __future__ import annotations

import pytest

from billing.errors import BillingError, Conflict, Overloaded, Unavailable
from deployments.patience import PAUSE_S_MAX, patiently


def test_every_error_that_passes_is_waited_for_and_any_other_is_raised() -> None:
    ahead: list[BillingError] = [Unavailable("away"), Overloaded("full"), *(Overloaded("full") for _ in range(6))]
    pauses: list[float] = []

    def work() -> str:
        if ahead:
            raise ahead.pop(0)
        return "done"

    assert patiently(work, "it", pause=pauses.append) == "done"
    assert pauses[:3] == [0.5, 1.0, 2.0]
    assert len(pauses) == 8
    assert max(pauses) == PAUSE_S_MAX
    ahead.append(Conflict("another state"))
    with pytest.raises(Conflict):
        patiently(work, "it", pause=pauses.append)
    assert len(pauses) == 8
