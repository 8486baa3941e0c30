"""Which documents rest on usage that was erased: it cannot be derived again, nor billed again.

Owns two judgements. A bill run whose documents were made of what is gone is not taken back as a whole: the next run
would find nothing to bill in their place. And which differences of a proof an erasure explains, as narrow as it can be:
of a customer's documents in a run only lines may differ that rest on what was erased: all lines of a customer who was
forgotten, and lines of usage (with the minimums over it) into whose time erased rows fell. Every other line has to be
what the log gives, and each document has to agree with itself: its sums, taxes, columns, rows and postings are stored,
so no erasure excuses them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from threading import Lock
from typing import Any

from billing.documents import Document, Line
from billing.errors import Conflict
from billing.master import MasterData
from storage.master_chain import MasterChain
from storage.object_store import ObjectStore
from storage.sql import invoices
from storage.sql.database import Database
from storage.usage_log.erasing import Gone, ever_erased, gone_of

AMOUNTS = ("net", "tax", "gross", "prepaid", "due")
_HEAD = ("customer", "currency", "date", "group")  # what no usage decides
ZERO = Decimal(0)
DOCUMENTS_AT_ONCE = 500


@dataclass
class ErasedUsage:
    """`forgotten`: customers who were erased (by what is left of their codes), with the rule. Safe for threads."""

    store: ObjectStore
    tenant_id: str
    master: MasterData
    forgotten: Mapping[str, str]
    _known: dict[str, Gone] | None = None
    _lock: Lock = field(default_factory=Lock)

    def explains(self, expected: Sequence[Document], stored: Sequence[Document]) -> str | None:
        """The rule under which went what makes a customer's documents differ; None if that does not explain it."""
        if len(stored) < len(expected):  # less usage makes no new document: one was taken away
            return None
        named = all(_owner(one, line) not in self.forgotten for one in stored for line in one.lines)
        same_number = len(stored) == len(expected)
        if same_number and named and any(_head(a) != _head(b) for a, b in zip(expected, stored, strict=True)):
            return None
        rules: list[str] = []
        kept: list[Counter[tuple[Any, ...]]] = []
        for documents in (expected, stored):
            lines: Counter[tuple[Any, ...]] = Counter()
            for document in documents:
                for line in document.lines:
                    rule = self._rule_of(_owner(document, line), line)
                    if rule is None:
                        lines[_facts(document, line, with_name=named)] += 1
                    else:
                        rules.append(rule)
            kept.append(lines)
        if kept[0] != kept[1]:
            return None
        return rules[-1] if rules else self._credit_rule(stored)

    def beneath(self, document: Document) -> str | None:
        """The rule under which usage went that a line of a document was made of; None if all of it is there."""
        made_of = (
            line for line in document.lines if line.kind == "minimum" or (line.kind == "usage" and line.quantity)
        )
        rules = (self._rule_of(_owner(document, line), line) for line in made_of)
        return next((rule for rule in rules if rule is not None), None)

    def touched(self) -> list[str]:
        """Customers of whom anything was erased."""
        return [code for code in self.master.customers if code in self.forgotten or next(self._gone(code), None)]

    def _rule_of(self, owner: str, line: Line) -> str | None:
        """The rule under which rows went that this line rests on."""
        if owner in self.forgotten:
            return self.forgotten[owner]
        if line.kind not in ("usage", "minimum"):
            return None
        carried = self._is_carried(line)
        found = [
            (at_us, rule)
            for gone in self._gone(owner)
            for month, (at_us, rule) in gone.months.items()
            if _falls_into(month, line, carried)
        ]
        return max(found)[1] if found else None

    def _credit_rule(self, stored: Sequence[Document]) -> str | None:
        """The rule under which went what the lanes had recorded of the wallets that these documents used."""
        owners = {owner for one in stored for owner in (one.customer, *(member.code for member in one.members))}
        found = [gone.credit for owner in owners for gone in self._gone(owner) if gone.credit is not None]
        return max(found)[1] if found else None

    def _gone(self, owner: str) -> Iterator[Gone]:
        with self._lock:  # read once, and only when something differs: it reads every segment
            if self._known is None:
                keys = (key for code in self.master.customers for key in self.master.keys_of(code))
                self._known = gone_of(self.store, self.tenant_id, keys)
            known = self._known
        if owner in self.master.customers:
            yield from (known[key] for key in self.master.keys_of(owner) if key in known)

    def _is_carried(self, line: Line) -> bool:
        charges = [
            charge
            for plan in self.master.plans.get(line.plan, ())
            for charge in plan.charges
            if charge.kind == "usage" and (charge.code == line.charge or line.kind == "minimum")
        ]
        meters = self.master.meters
        return any(charge.meter in meters and meters[charge.meter].is_carried for charge in charges)


def forgotten_in(master: MasterData) -> dict[str, str]:
    """Customers who were erased, by what is left of their codes, with the rule."""
    return {code: str(one.form["erased"]) for code, one in master.customers.items() if "erased" in one.form}


def check_usage_is_there(
    database: Database, store: ObjectStore, chain: MasterChain, tenant_id: str, run: Mapping[str, Any]
) -> None:
    """Conflict where a document of a bill run rests on erased usage; names the first. Where nothing was ever erased
    this is two looks into the store, else it reads every segment and the documents of whom it concerns."""
    if not ever_erased(store, tenant_id):
        return
    master = chain.at(tenant_id, run["master_number"])
    usage = ErasedUsage(store, tenant_id, master, forgotten_in(master))
    touched, after = usage.touched(), None
    while touched:
        with database.tenant(tenant_id) as connection:
            rows = invoices.naming(connection, str(run["id"]), touched, after, DOCUMENTS_AT_ONCE)
        for row in rows:
            rule = usage.beneath(row["document"])
            if rule is not None:
                raise Conflict(
                    f"{row['number']} was made of usage that is erased ({rule}): all of this run would be credited, and"
                    " the next run would find nothing to bill. Take back what is wrong by credit notes, document by"
                    " document"
                )
        if len(rows) < DOCUMENTS_AT_ONCE:
            return
        after = rows[-1]["id"]


def faults_of(row: Mapping[str, Any], document: Document) -> list[str]:
    """Where a stored document does not agree with itself; `row` is one of `invoices.of_run`."""
    faults: list[str] = []
    wrong = [name for name in AMOUNTS if row[name] != getattr(document, name)]
    if wrong:
        faults.append(f"the columns {', '.join(wrong)} are not what the document says")
    lines = _sum(line.amount for line in document.lines)
    if row["lines_amount"] != lines:
        faults.append("the amounts of its rows in invoice_lines are not those of its lines")
    if row["taxes_amount"] != document.tax:
        faults.append("the amounts of its rows in invoice_taxes are not its tax")
    if row["receivable"] != document.due * (-1 if document.type == "credit_note" else 1):
        faults.append("its postings are not what is due")
    if document.net != lines - _sum(one.amount for one in document.allowances):
        faults.append("its net is not the sum of its lines")
    if document.tax != _sum(one.amount for one in document.taxes):
        faults.append("its tax is not the sum of its taxes")
    if document.gross != document.net + document.tax or document.due != document.gross - document.prepaid:
        faults.append("its amounts do not add up")
    return faults


def _sum(amounts: Iterable[Decimal]) -> Decimal:
    return sum(amounts, ZERO)


def _owner(document: Document, line: Line) -> str:
    return line.customer or document.customer


def _head(document: Document) -> tuple[Any, ...]:
    return tuple(getattr(document, name) for name in _HEAD)


def _facts(document: Document, line: Line, *, with_name: bool) -> tuple[Any, ...]:
    """What must be the same of a line. Net shares of prices with tax change with other lines: what was agreed counts.

    Without names beside somebody forgotten, whose words were taken out of all texts of the document.
    """
    return (
        document.currency,
        _owner(document, line),
        *(line.subscription, line.add_on, line.charge, line.kind, line.start, line.end, line.quantity),
        *(line.stated, line.stated_allowance, line.tax_category, line.tax_percent, line.unit_price, line.correction),
        line.name if with_name else "",
    )


def _falls_into(month: str, line: Line, carried: bool) -> bool:
    """Whether rows of a month can lie in a line's time. Both are of UTC, so nothing is widened for time zones: a month
    of Berlin is a line over two months here."""
    year, number = int(month[:4]), int(month[5:])
    begins = datetime(year, number, 1, tzinfo=UTC)
    ends = datetime(year + number // 12, number % 12 + 1, 1, tzinfo=UTC)
    return begins < line.end and (carried or ends > line.start)
