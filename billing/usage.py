"""Usage events as columns: their schema, their verdicts, the reasons for suspense.

Owns the names that ingest, log, rating and pages share. How bytes become these columns is
`billing/usage_formats.py`; how they become quantities is `billing/meters.py`.
"""

from __future__ import annotations

from enum import Enum, IntEnum

import polars as pl

INSTANT = pl.Datetime("us", "UTC")

# One row per event as the sender gave it. `data` is the JSON text of an object, untouched: a meter gives it a type
# only when rating, so that meters may be created after the events (and no digit is lost on the way).
EVENT_SCHEMA = pl.Schema(
    {
        "source": pl.String,
        "id": pl.String,
        "type": pl.String,
        "customer": pl.String,  # the customer key as the event carries it (customer code, SIM, device ...)
        "subscription": pl.String,  # null: every subscription of the customer with a charge on the meter
        "time": INSTANT,  # occurred_at
        "data": pl.String,
    }
)
TEXT_LENGTH_MAX = 256  # source, id, type, customer, subscription; in characters
DATA_BYTES_MAX = 16_384
RESERVED_SOURCE = "cloudbilling:"  # the log's own rows (corrections); no sender may use it


class Verdict(IntEnum):
    """What became of one event of a request. `accepted` and `suspended` are stored, the others are not."""

    ACCEPTED = 0  # stored and rateable now
    DUPLICATE = 1  # (tenant, customer key, source, id) was there before
    REJECTED = 2  # not stored, its id stays free
    SUSPENDED = 3  # stored, not rateable now


class Reason(str, Enum):
    """Why an event is in suspense; in this order the first that applies."""

    UNKNOWN_CUSTOMER = "unknown_customer"
    UNKNOWN_SUBSCRIPTION = "unknown_subscription"
    UNKNOWN_TYPE = "unknown_type"
    MISSING_PROPERTY = "missing_property"
    INVALID_VALUE = "invalid_value"
    FUTURE = "future"
    LATE = "late"
    NO_PRICE = "no_price"
    PAUSED = "paused"  # a subscription that it would count for is paused at its time
