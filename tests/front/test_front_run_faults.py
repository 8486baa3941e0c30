"""The page of a bill run that works, waits for a store, or needs somebody: what it says and offers."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from datetime import timedelta

import pytest
from platform_under_test import Platform

from storage.sql import bill_runs, overview

pytestmark = pytest.mark.postgres


@pytest.fixture
def half_made(platform: Platform) -> Iterator[str]:
    """A run whose files are made since ten seconds, all but one; afterwards it is done again."""
    now = platform.services.clock()
    with platform.services.database.tenant(platform.tenant_id) as connection:
        run = next(one for one in overview.runs(connection)[0] if one.state == "done" and one.finalised > 1)
        connection.execute("UPDATE bill_runs SET state = 'finalised' WHERE id = %s", (run.id,))
        bill_runs.stage_begins(connection, run.id, 0, now - timedelta(seconds=10 * (run.finalised - 1)))
        one = connection.execute(
            "UPDATE document_files SET state = 'wanted' WHERE invoice_id ="
            " (SELECT id FROM invoices WHERE run_id = %s ORDER BY id LIMIT 1) RETURNING invoice_id",
            (run.id,),
        ).fetchone()
        assert one is not None
    yield run.id
    with platform.services.database.tenant(platform.tenant_id) as connection:
        connection.execute("UPDATE document_files SET state = 'archived' WHERE invoice_id = %s", (one["invoice_id"],))
        assert bill_runs.move(connection, run.id, expected=("finalised",), state="done", now=now)


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))


def test_the_page_says_how_long_the_stage_takes_why_it_waits_and_lets_it_go_on(
    platform: Platform, half_made: str
) -> None:
    client = platform.client(**{"Accept-Language": "en"})
    path = f"/bill-runs/{half_made}"

    def page(**noted: str) -> tuple[str, str]:
        with platform.services.database.tenant(platform.tenant_id) as connection:
            bill_runs.note(connection, half_made, **noted)
        found = client.get(path).text
        return text_of(found), found

    words, source = page()
    assert "0.1 a second 10 s left" in words
    assert f"{path}/pause" in source
    words, source = page(waiting_reason="the disk is full")
    assert "Waits, and goes on by itself: the disk is full" in words
    assert "s left" not in words
    assert 'role="alert"' not in source
    words, source = page(error="the chunk breaks")
    assert "the chunk breaks" in words
    assert "goes on by itself" not in words
    assert f"{path}/resume" in source
    assert f"{path}/pause" not in source
