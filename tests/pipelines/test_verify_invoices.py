"""A run's documents are proven by deriving them again from the log; what somebody changed in the tables is found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest

from billing.document_json import packed, unpacked
from pipelines.verify_invoices import Verification, verify_run
from storage.master_chain import MasterChain
from storage.object_store import LocalObjectStore
from storage.sql.database import Database, connect
from storage.sql.embedded import EmbeddedPostgres
from storage.sql.migrate import migrate
from tests.chaos.bill_run_world import CUSTOMERS, MARCH, World

pytestmark = pytest.mark.postgres


@pytest.fixture
def dsn() -> Iterator[str]:
    with TemporaryDirectory(prefix="cb-sql-") as directory:
        server = EmbeddedPostgres(Path(directory) / "sql")
        try:
            migrate(server.start())
            yield server.dsn
        finally:
            server.stop()


def test_a_run_is_proven_until_somebody_changes_an_amount_a_line_or_a_number(dsn: str, tmp_path: Path) -> None:
    world = World(dsn, tmp_path)
    tenant_id = world.make_tenant()
    store = LocalObjectStore(tmp_path)
    with Database(dsn) as database:
        driver = world.driver(database)
        with database.tenant(tenant_id) as connection:
            january = connection.execute("SELECT id::text FROM bill_runs").fetchone()
        assert january is not None
        march = driver.drive(tenant_id, driver.plan(tenant_id, MARCH, "test")["id"])["id"]

        def verify(run_id: str) -> Verification:
            return verify_run(database, store, MasterChain(store), tenant_id, run_id)

        # The first run too, although a later one has corrected its period since.
        for run_id in (january["id"], march):
            result = verify(run_id)
            assert (result.documents, result.findings, result.gaps) == (CUSTOMERS, (), ())

        def tamper(statement: str, customer: str) -> None:
            with connect(dsn) as connection:  # the owner of the server, whom no policy stops
                assert connection.execute(statement.encode(), (march, customer)).rowcount == 1

        chosen = "WHERE run_id = %s AND customer = %s"
        tamper(f"UPDATE invoices SET net = net + 1, gross = gross + 1, due = due + 1 {chosen}", "c0")
        with connect(dsn) as connection:
            row = connection.execute(f"SELECT packed FROM invoices {chosen}".encode(), (march, "c1")).fetchone()
            assert row is not None
            wrong = msgspec.json.decode(unpacked(row["packed"]))
            wrong["lines"][0]["amount"] = "0.01"
            (body,) = packed([msgspec.json.encode(wrong)])
            connection.execute(f"UPDATE invoices SET packed = %s {chosen}".encode(), (body, march, "c1"))
        # As an older version stored it: the same document as JSON is no difference.
        with connect(dsn) as connection:
            row = connection.execute(f"SELECT packed FROM invoices {chosen}".encode(), (march, "c2")).fetchone()
            assert row is not None
            as_json = unpacked(row["packed"]).decode()
            statement = f"UPDATE invoices SET packed = NULL, document = %s {chosen}"
            connection.execute(statement.encode(), (as_json, march, "c2"))
        lines = "DELETE FROM invoice_lines WHERE line = 1 AND invoice_id = (SELECT id FROM invoices"
        tamper(f"{lines} {chosen})", "c3")
        of_c4 = f"invoice_id = (SELECT id FROM invoices {chosen})"
        tamper(f"UPDATE invoice_taxes SET amount = amount + 1 WHERE percent = 19 AND {of_c4}", "c4")
        tamper(f"DELETE FROM postings WHERE credit = 'revenue' AND {of_c4}", "c4")
        assert [(one.customer, one.detail.split(" differ")[0]) for one in verify(march).findings] == [
            ("c0", "the columns net, gross, due"),
            ("c1", "differs from what the log gives in: lines"),
            ("c3", "the amounts of its rows in invoice_lines"),
            ("c4", "the amounts of its rows in invoice_taxes"),
            ("c4", "its postings"),
        ]
        with connect(dsn) as connection:
            last = "SELECT id FROM invoices WHERE run_id = %s AND type = 'invoice' ORDER BY n DESC LIMIT 1"
            for table in ("invoice_lines", "invoice_taxes", "postings", "document_files"):
                connection.execute(f"DELETE FROM {table} WHERE invoice_id = ({last})".encode(), (march,))
            connection.execute(f"DELETE FROM invoices WHERE id = ({last})".encode(), (march,))
        result = verify(march)
        assert not result.proven
        assert [(one.customer, "is missing" in one.detail) for one in result.findings][-1] == ("c6", True)
        assert [gap["series"] for gap in result.gaps] == ["invoice"]
