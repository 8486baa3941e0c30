"""Work that is done again and again while a store or a lane is away. No Ray in here."""

import itertools
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from billing.errors import BillingError

LOG = logging.getLogger("cloudbilling.patience")
PAUSE_S_MIN, PAUSE_S_MAX = 0.5, 10.0
_T = TypeVar("_T")


def patiently(work: Callable[[], _T], name: str, *, pause: Callable[[float], None] = time.sleep) -> _T:
    """What `work` gives. It must be harmless twice: errors that promise to pass (`retryable`) repeat it.

    Pauses are in seconds, each twice the one before, at most PAUSE_S_MAX. All other errors are raised.
    """
    for attempt in itertools.count():
        try:
            return work()
        except BillingError as error:
            if not error.retryable:
                raise
            LOG.warning("%s waits: %s", name, error.detail)
            pause(min(PAUSE_S_MIN * 2 ** min(attempt, 6), PAUSE_S_MAX))
    raise AssertionError("itertools.count does not end")
