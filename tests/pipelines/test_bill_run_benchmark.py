"""The bill run benchmark runs at its small size, and bills what the SQL statement beside it bills."""

import pytest

from benchmarks.bill_run import SIZES, run


@pytest.mark.postgres
def test_the_small_bill_run_benchmark_bills_what_one_sql_statement_bills() -> None:
    result = run("small", lambda _: None)
    assert (result["customers"], result["events"]) == SIZES["small"]
    assert result["unit"] == "invoices/s"
    assert result["checksum"] == "23859.86"  # the events are seeded: another sum is another price
