"""The order by whole numbers is the order of the texts."""

import random
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from storage.usage_log import row_order
from storage.usage_log.row_order import ORDER, in_order

START = datetime(2026, 1, 1, tzinfo=UTC)


def rows(chosen: random.Random, count: int) -> pl.DataFrame:
    texts = ["", "a", "A", "b", "é", "z", "10", "9", "\U0001f600", "long text that does not fit into a view", "a\x00"]
    span = chosen.choice([1, 5, 10**6, 10**12, 10**15])

    def some(least: int = 1) -> list[str]:
        return chosen.sample(texts, chosen.randint(least, len(texts)))

    tenants, customers, types, sources = some(), some(), some(), some()
    subscriptions = [None, *some(0)]
    texts_of = dict.fromkeys(("id", "tenant", "customer", "type", "source"), pl.String())
    return pl.DataFrame(
        {
            "id": [chosen.choice(texts) + str(chosen.randrange(30)) for _ in range(count)],
            "tenant": [chosen.choice(tenants) for _ in range(count)],
            "partition": pl.Series([chosen.randrange(256) for _ in range(count)], dtype=pl.UInt8)
            // chosen.choice([1, 99]),
            "customer": [chosen.choice(customers) for _ in range(count)],
            "type": [chosen.choice(types) for _ in range(count)],
            "time": [START + timedelta(microseconds=chosen.randrange(span)) for _ in range(count)],
            "source": [chosen.choice(sources) for _ in range(count)],
            "subscription": pl.Series([chosen.choice(subscriptions) for _ in range(count)], dtype=pl.String),
            "row": pl.Series(range(count), dtype=pl.UInt32),
        },
        schema_overrides={**texts_of, "time": pl.Datetime("us", "UTC")},
    )


@pytest.mark.parametrize("seed", range(60))
def test_rows_stand_as_a_sort_of_all_columns_has_them(seed: int) -> None:
    print(f"seed {seed}")
    chosen = random.Random(seed)
    given = rows(chosen, chosen.choice([0, 1, 2, 50, 700]))
    assert_frame_equal(in_order(given), given.sort(ORDER, maintain_order=True))


def test_keys_without_room_in_64_bits_are_sorted_as_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    given = rows(random.Random(7), 500)
    expected = given.sort(ORDER, maintain_order=True)
    for bits in (1 << 12, 1 << 24):  # no room for the texts; room for them, none for the time beside them
        monkeypatch.setattr(row_order, "_BITS", bits)
        assert_frame_equal(in_order(given), expected)


def test_a_row_with_no_customer_stands_first() -> None:
    given = rows(random.Random(1), 20).with_columns(customer=pl.lit(None, pl.String))
    assert_frame_equal(in_order(given), given.sort(ORDER, maintain_order=True))


def test_a_row_without_a_time_is_sorted_as_before() -> None:
    given = rows(random.Random(2), 30).with_columns(time=pl.when(pl.col("row") % 3 > 0).then("time"))
    assert_frame_equal(in_order(given), given.sort(ORDER, maintain_order=True))
