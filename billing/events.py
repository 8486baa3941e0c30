"""Events out: the types of what the platform tells the programs of a tenant, and what each says.

Owns names and examples; how a message looks and is signed is `billing/webhooks.py`, who writes and reads the outbox
`storage/sql/outbox.py`. An example is what the API, the page and docs/webhooks.md show; a test compares them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

THRESHOLD_CROSSED = "budget.threshold_crossed"
COMPLETENESS_BROKEN = "usage.completeness_broken"
RUN_MISSED = "bill_run.missed"
RUN_WAITS = "bill_run.waits_for_approval"
RUN_FAILED = "bill_run.failed"
RUN_DONE = "bill_run.done"
DOCUMENT_PARKED = "document.parked"
INVOICE_FINALISED = "invoice.finalised"
CREDIT_NOTE_FINALISED = "credit_note.finalised"
TEST = "webhook.test"


@dataclass(frozen=True)
class EventType:
    """One type: its name, what happened (for people), and an example of `data`."""

    name: str
    says: str
    example: Mapping[str, Any]
    each_document: bool = False  # one for every document of a bill run: only for who asks for it by name


_RUN = {"run": "0192f3c0-8a51-7c3e-9a54-2f0d1c6b7e11", "number": 12, "up_to": "2026-03-31T22:00:00+00:00"}


def _sent(number: int) -> dict[str, Any]:
    return {"id": f"event_0192f3bf-1111-7c3e-9a54-2f0d1c6b7e11_{number}", "sequence": number}


def _document(number: str, gross: str, net: str) -> dict[str, str]:
    return {"due": gross, "net": net, "gross": gross, "number": number, "currency": "EUR", "customer": "acme"}


CATALOG = (
    EventType(
        THRESHOLD_CROSSED,
        "Spending of a budget crossed one of its thresholds.",
        {"id": "alert_5f3a9c0b8e7d6c5b4a39281706f5e4d3", "budget": "acme-month", "customer": "acme",
         "action": "notify", "threshold": "50", "at": "2026-05-09T08:30:00Z", "from": "2026-05-01T00:00:00+02:00",
         "to": "2026-06-01T00:00:00+02:00", "spent": "251.20", "currency": "EUR"},
    ),
    EventType(
        COMPLETENESS_BROKEN,
        "The daily re-read of the log found other events than were counted when they were stored.",
        {"stored": 999, "counted": 1000, "rated": 999, "at": "2026-05-09T08:30:00Z"},
    ),
    EventType(
        RUN_MISSED,
        "No bill run happened: six hours after one was due by the schedule it has not begun.",
        {"due_at": "2026-03-31T22:00:00+00:00", "up_to": "2026-03-31T22:00:00+00:00", **_sent(4711)},
    ),
    EventType(
        RUN_WAITS,
        "A bill run is computed and waits for somebody to approve it.",
        {**_RUN, "held_back": 3, "parked": 0, **_sent(4712)},
    ),
    EventType(
        RUN_FAILED,
        "A bill run stopped at something that does not go away by itself; drive it again when that is mended.",
        {**_RUN, "error": "tax code 'reduced' has no percent on 2026-03-31", **_sent(4713)},
    ),
    EventType(
        RUN_DONE,
        "A bill run is over: its documents are final, and their files are made or parked.",
        {**_RUN, "documents": 100000, "parked": 0, "documents_parked": 1, **_sent(104714)},
    ),
    EventType(
        DOCUMENT_PARKED,
        "A final document has no file, for the reason given.",
        {"number": "RE-2026-000001", "customer": "acme", "reason": "BR-CO-10: the sum of the lines differs",
         **_sent(104713)},
    ),
    EventType(
        INVOICE_FINALISED,
        "An invoice has its number and is final.",
        {**_document("RE-2026-000001", "119.00", "100.00"), **_sent(4714)},
        each_document=True,
    ),
    EventType(
        CREDIT_NOTE_FINALISED,
        "A credit note has its number and is final.",
        {**_document("GS-2026-000001", "11.90", "10.00"), **_sent(104715)},
        each_document=True,
    ),
)  # fmt: skip
EVENT_TYPES = tuple(one.name for one in CATALOG)
# What an endpoint gets that names no types. A run of 100,000 invoices is 100,000 messages to who wants each of them.
DEFAULT_TYPES = tuple(one.name for one in CATALOG if not one.each_document)
