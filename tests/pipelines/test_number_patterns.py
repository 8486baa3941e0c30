"""Number patterns that change: a run keeps those of its plan, and what gave numbers is not given to another series."""

from __future__ import annotations

from typing import Any

import pytest

from billing.errors import InvalidInput
from billing.numbers import check_patterns
from storage.sql import bill_runs, invoices, tenants
from storage.sql.database import Database
from tests.chaos.bill_run_world import MARCH, NOW, World

pytestmark = pytest.mark.postgres


def test_a_run_keeps_the_patterns_of_its_plan_and_no_other_series_gets_them(world: World) -> None:
    tenant_id = world.make_tenant()

    def changed(series: dict[str, str]) -> None:
        """What the route does."""
        with database.tenant(tenant_id) as connection:
            one = tenants.legal_entity(connection)
            given = bill_runs.patterns_given(connection, tenant_id)
            check_patterns(series, one["code"], given=given)
            form: dict[str, Any] = {**one["form"], "series": series}
            tenants.put_legal_entity(connection, tenant_id, one["code"], form, country="DE", now=NOW, is_default=True)

    def halfway(step: str) -> None:
        if step == "chunk finalised" and not steps:
            steps.append(step)
            changed({"invoice": "N-{yyyy}-{n:03}"})
            with pytest.raises(InvalidInput, match="has given"):  # the run still gives them
                changed({"invoice": "N-{yyyy}-{n:03}", "credit_note": "X-{yyyy}-{n}"})

    steps: list[str] = []
    with Database(world.dsn) as database:
        changed({"invoice": "X-{yyyy}-{n}"})
        driver = world.driver(database, checkpoint=halfway)
        run = driver.plan(tenant_id, MARCH, "ann")
        assert driver.drive(tenant_id, run["id"])["state"] == "done"
        assert steps
        with database.tenant(tenant_id) as connection:
            rows = invoices.page(connection, run_id=run["id"], descending=False, limit=100)
            assert {row["number"][:7] for row in rows if row["type"] == "invoice"} == {"X-2026-"}
            assert invoices.number_gaps(connection) == []
            code = tenants.legal_entity(connection)["code"]
            assert bill_runs.patterns_given(connection, tenant_id) == [
                (code, "credit_note", "RK-{yyyy}-{n:06}"),
                (code, "invoice", "RE-{yyyy}-{n:06}"),  # of the run before
                (code, "invoice", "X-{yyyy}-{n}"),
            ]
        with pytest.raises(InvalidInput, match="has given"):
            changed({"invoice": "N-{yyyy}-{n:03}", "credit_note": "X-{yyyy}-{n}"})
