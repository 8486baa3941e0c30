"""The local day of many times is asked for by the minute, and is the day of each by itself."""

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.live_state import _day_starts, _days
from billing.usage import INSTANT

# A time zone, and a moment about which its days are odd: a clock that goes over midnight, a day that does not exist,
# an offset of odd seconds, a day of half an hour more.
ODD = [
    ("Europe/Berlin", datetime(2026, 3, 29, tzinfo=UTC)),
    ("Europe/Berlin", datetime(2026, 10, 25, tzinfo=UTC)),
    ("America/St_Johns", datetime(2006, 10, 29, 2, 30, tzinfo=UTC)),  # 00:01 back to 23:01 of the day before
    ("America/St_Johns", datetime(2006, 4, 2, 3, 30, tzinfo=UTC)),
    ("America/Sao_Paulo", datetime(2018, 11, 4, 3, tzinfo=UTC)),  # no midnight
    ("America/Sao_Paulo", datetime(2018, 2, 18, 2, tzinfo=UTC)),  # 24:00 back to 23:00
    ("Pacific/Apia", datetime(2011, 12, 30, 10, tzinfo=UTC)),  # no 30 December
    ("Australia/Lord_Howe", datetime(2026, 4, 4, 15, tzinfo=UTC)),
    ("Europe/Amsterdam", datetime(1930, 5, 14, 22, 40, tzinfo=UTC)),  # an offset of 19 minutes and 32 seconds
    ("Africa/Monrovia", datetime(1960, 1, 1, 0, 44, 30, tzinfo=UTC)),
    ("UTC", datetime(1970, 1, 1, tzinfo=UTC)),
]


def dense(around: datetime, seconds: float) -> pl.Series:
    """Thousands of times about a moment, some of them twice."""
    dice = np.random.default_rng(7)
    start = (around - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    spread = int(seconds * 1_000_000)
    return pl.Series("time", start + dice.integers(-spread, spread, 4_000), dtype=pl.Int64).cast(INSTANT)


@pytest.mark.parametrize(("timezone", "around"), ODD)
@pytest.mark.parametrize("seconds", [90.0, 3 * 3_600.0, 30 * 3_600.0])
def test_days_by_the_minute_are_those_of_each_time(timezone: str, around: datetime, seconds: float) -> None:
    times = dense(around, seconds)
    assert _days(times, timezone).equals(_day_starts(times, timezone).alias("at"), null_equal=True)


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from([one for one, _ in ODD]),
    st.datetimes(datetime(1900, 1, 2), datetime(2100, 1, 1), timezones=st.just(UTC)),
)
def test_days_of_any_time_are_those_of_each_by_itself(timezone: str, around: datetime) -> None:
    times = dense(around, 600.0)
    found = _days(times, timezone)
    assert found.name == "at"
    assert found.equals(_day_starts(times, timezone).alias("at"))


def test_no_times_have_no_days() -> None:
    assert len(_days(pl.Series("time", [], dtype=INSTANT), "Europe/Berlin")) == 0
