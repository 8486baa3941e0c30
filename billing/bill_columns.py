"""Bills in columns: the documents of all customers whose contracts nothing cuts, without a Python object for each.

Owns who is billed that way, and how what many contracts have in common is put together with what differs. Nothing is
decided here: `due` says what is due, `settle` makes the lines, `rate` the prices, once for all contracts alike; columns
multiply that. Whoever needs more (families, wallets, discounts, minimums, changes, late usage, numbers that columns do
not hold) is in `rest`, and `billing.bill.bill` does him. A property test holds both ways to the same bytes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import msgspec
import polars as pl

from billing.catalog import Charge, Plan
from billing.contracts import Contract, Subscription, contract
from billing.document_columns import DOCUMENTS_SCHEMA, LINES_SCHEMA, MEMBERS_SCHEMA, TAXES_SCHEMA, DocumentColumns
from billing.document_groups import group_of
from billing.document_json import line_form, packed
from billing.documents import Line
from billing.due import BEGINNING, Due, Use, due_of, settled_to
from billing.errors import BillingError
from billing.folded_usage import FoldedUsage
from billing.json_columns import in_quotes, quoted
from billing.master import MasterData
from billing.money import NUMBER, minor_digits, rounded
from billing.periods import grid, local_date
from billing.rate_uses import explain_price, instant_text, plain_text, usage_piece
from billing.rating import KEYS_SCHEMA, PIECES_SCHEMA, PieceColumns, Pieces, RatedPieces, price_of, rate
from billing.settle import RatedRow, Shared, settle
from billing.usage import INSTANT

TEXT_DIGITS = Decimal("0.000001")  # a quantity below it would be written with an exponent
LARGEST = Decimal(10) ** 13  # of an amount: tax is computed with 12 places in 38 digits
PERCENT_PLACES_MAX = 6
MONEY = pl.Decimal(38, 12)


@dataclass(frozen=True, slots=True)
class _Fee:
    """A line that all contracts of a kind owe alike."""

    line: Line
    place: int


@dataclass(frozen=True, slots=True)
class _Metered:
    """A piece of a usage charge that all contracts of a kind have."""

    use: Use
    charge: Charge
    place: int


@dataclass(slots=True)
class _Kind:
    """Contracts alike: the same plan from the same time with the same quantities, for customers taxed alike."""

    model: Contract
    settled: datetime
    late_before: datetime
    fees: list[_Fee]
    uses: list[_Metered]


@dataclass(frozen=True)
class Plain:
    """Customers who can be billed in columns, and from when on their events are needed (None: none are)."""

    contracts: pl.DataFrame  # contract, kind, owner, customer, subscription, step
    customers: tuple[str, ...]  # by owner
    kinds: tuple[Any, ...]
    keys: pl.DataFrame
    rest: tuple[str, ...]
    events_from: datetime | None
    late_before: pl.DataFrame  # owner, before: usage of earlier time that no run has seen is late
    shared: Shared
    referring: tuple[str, ...]  # subscriptions that say a reference of their own
    grouped: frozenset[str]  # customers who get several documents
    folding: pl.Series  # by owner, whether his usage may be folded while it is read (`usage_pieces`)


@dataclass(frozen=True)
class BilledPlain:
    """The documents, and the customers who turned out to need more than columns."""

    documents: DocumentColumns
    rest: tuple[str, ...]


CONTRACTS_SCHEMA = pl.Schema({
    "kind": pl.UInt32, "owner": pl.UInt32, "customer": pl.String, "subscription": pl.String, "step": pl.Int64,
})  # fmt: skip


def plain(master: MasterData, customers: Sequence[str], up_to: datetime) -> Plain:
    """Choose the customers that can be billed in columns, by what is known of them before any event is read."""
    found = _Sorting(master, up_to)
    for customer in sorted(customers):
        found.add(customer)
    return found.result()


class _Sorting:
    """Sorts contracts by kind."""

    def __init__(self, master: MasterData, up_to: datetime) -> None:
        self.master, self.up_to = master, up_to
        self.timezone = master.tenant.timezone
        self.shared = Shared(master)
        self.kind_of: dict[tuple[Any, ...], int | None] = {}  # None: not in columns
        self.kinds: list[_Kind] = []
        self.rows: list[tuple[int, int, str, str, int]] = []
        self.keys: list[tuple[str, int]] = []
        self.customers: list[str] = []
        self.late_before: list[datetime] = []
        self.referring: list[str] = []
        self.rest: list[str] = []
        self.parked_before = frozenset[str]().union(*(mark.parked for mark in master.runs))
        self.steps_of_runs = [mark.steps for mark in master.runs]
        self.in_order = self.steps_of_runs == sorted(self.steps_of_runs)
        self.settled: dict[int, datetime] = {}  # by the first run that knew of a contract

    def add(self, customer: str) -> None:
        master = self.master
        one = master.customers[customer]
        if (
            customer in master.families
            or customer in master.wallet_customers
            or customer in master.ad_hoc
            or len(one.treatments) != 1
        ):
            self.rest.append(customer)
            return
        owner = len(self.customers)
        rows: list[tuple[int, int, str, str, int]] = []
        late_before = BEGINNING
        for code in sorted(master.subscriptions_of.get(customer, ())):
            subscription = master.subscriptions[code]
            if subscription.start > self.up_to:
                continue
            number = self._kind(customer, subscription, one.treatments[0][1])
            if number is None:
                self.rest.append(customer)
                return
            rows.append((number, owner, customer, code, subscription.number))
            if subscription.references:
                self.referring.append(code)
            late_before = max(late_before, self.kinds[number].late_before)
        self.rows.extend(rows)
        self.customers.append(customer)
        self.late_before.append(late_before)
        self.keys.extend((key, owner) for key in master.keys_of(customer))

    def _kind(self, customer: str, subscription: Subscription, treatment: str) -> int | None:
        plan = subscription.plan
        if subscription.steps or subscription.add_ons or subscription.discounts or not _is_plain(plan):
            return None
        settled = self._settled(customer, subscription)
        start: datetime | None = subscription.start
        open_from = BEGINNING
        if settled > BEGINNING:
            of_contract = grid(plan.interval, subscription.anchor, self.timezone, subscription.start)
            open_from = of_contract.at(settled).start
            if subscription.anchor == "calendar" and subscription.start <= open_from:
                start = None  # periods begin for all of them alike
        quantities = tuple(sorted(subscription.quantities.items()))
        key = (id(plan), start, subscription.anchor, quantities, treatment, settled)
        if key not in self.kind_of:
            self.kind_of[key] = self._new_kind(customer, subscription, settled, open_from)
        return self.kind_of[key]

    def _settled(self, customer: str, subscription: Subscription) -> datetime:
        if not self.master.runs:
            return BEGINNING
        if customer in self.parked_before or not self.in_order:
            return settled_to(self.master, customer, contract(subscription, self.timezone))
        first = bisect_left(self.steps_of_runs, subscription.number)
        if first not in self.settled:
            self.settled[first] = max((mark.up_to for mark in self.master.runs[first:]), default=BEGINNING)
        return self.settled[first]

    def _new_kind(
        self, customer: str, subscription: Subscription, settled: datetime, open_from: datetime
    ) -> int | None:
        model = contract(subscription, self.timezone)
        if model.changed:
            return None
        try:
            due = due_of(self.master, model, self.up_to)
            drafts = settle(self.shared, Due(customer, [model], due.fees), {}, 0, ())
        except BillingError:
            return None  # whatever it is, the other way says it of each customer
        fees = [_Fee(draft.line, draft.key[1]) for drafts_ in drafts.lines.values() for draft in drafts_]
        if any(usage_piece(self.master, use).share != 1 for use in due.uses):
            return None
        if due.parts or due.ad_hoc or any(use.billed is not None for use in due.uses):
            return None
        if any(abs(fee.line.amount) > LARGEST or "E" in str(fee.line.quantity) for fee in fees):
            return None
        uses = [_Metered(use, use.piece.span.charge, model.first_place + use.piece.span.place) for use in due.uses]
        self.kinds.append(_Kind(model, settled, open_from, fees, uses))
        return len(self.kinds) - 1

    def result(self) -> Plain:
        contracts = pl.DataFrame(self.rows, schema=CONTRACTS_SCHEMA, orient="row").with_row_index("contract")
        starts = [use.use.piece.start for kind in self.kinds for use in kind.uses]
        before = pl.DataFrame(
            {"owner": range(len(self.customers)), "before": self.late_before},
            schema={"owner": pl.UInt32, "before": INSTANT},
        )
        return Plain(
            contracts,
            tuple(self.customers),
            tuple(self.kinds),
            pl.DataFrame(self.keys, schema=KEYS_SCHEMA, orient="row"),
            tuple(self.rest),
            min(starts, default=None),
            before,
            self.shared,
            tuple(self.referring),
            frozenset(customer for customer in self.customers if self.master.document_per(customer) != "customer"),
            self._folding(contracts),
        )

    def _folding(self, contracts: pl.DataFrame) -> pl.Series:
        """All but owners with a level: what it held is seldom a decimal, and then his events are asked for again."""
        meters = self.master.meters
        level_kinds = [
            number
            for number, kind in enumerate(self.kinds)
            if any(meters[use.charge.meter].aggregation == "time_weighted_sum" for use in kind.uses)
        ]
        owners = contracts.filter(pl.col("kind").is_in(pl.Series(level_kinds, dtype=pl.UInt32).implode()))["owner"]
        return pl.repeat(True, len(self.customers), dtype=pl.Boolean, eager=True).scatter(owners.unique(), False)


def _is_plain(plan: Plan) -> bool:
    return not (plan.phases or plan.minimum is not None or plan.inclusive or plan.discount or plan.free)


def late_owners(chosen: Plain, fresh: pl.DataFrame) -> frozenset[str]:
    """Customers with usage for what is billed: `fresh` are key and time of events that no finalised run has seen."""
    met = fresh.join(chosen.keys, on="key", how="inner").join(chosen.late_before, on="owner", how="inner")
    owners: list[int] = met.filter(pl.col("time") < pl.col("before"))["owner"].unique().to_list()
    return frozenset(chosen.customers[owner] for owner in owners)


def bill_plain(
    master: MasterData,
    chosen: Plain,
    events: pl.DataFrame,
    *,
    now: datetime,
    document_date: date | None = None,
    leave: frozenset[str] = frozenset(),
    folded: FoldedUsage | None = None,
) -> BilledPlain:
    """The documents of the chosen customers but for those to `leave`; `events` are as `bill` wants them.

    With `folded` the events of all for whom `chosen.folding` holds are in there, and need not be among `events`.
    """
    day = document_date or local_date(now, master.tenant.timezone)
    contracts = chosen.contracts
    if leave:
        contracts = contracts.filter(~pl.col("customer").is_in(list(leave)))
    templates = _Templates(master, chosen)
    found = [_fee_lines(contracts, templates)]
    odd_contracts: list[pl.Series] = []
    by_events = contracts
    if folded is not None:
        table, of_piece = usage_pieces(master, chosen)
        pieces = Pieces(table, master.meters, master.tenant.timezone)
        usage, odd = _usage_lines(price_of(pieces, folded.state, folded.singles), of_piece, templates)
        found.append(usage)
        odd_contracts.append(odd)
        by_events = contracts.filter(~chosen.folding.gather(contracts["owner"]))
    if by_events.height:
        table, of_piece = _pieces(master, chosen, by_events, events)
        usage, odd = _usage_lines(rate(table, events, master.meters, master.tenant.timezone), of_piece, templates)
        found.append(usage)
        odd_contracts.append(odd)
    odd = pl.concat(odd_contracts) if odd_contracts else pl.Series(dtype=pl.UInt32)
    lines = pl.concat(found)
    # By customer and currency, then as `settle` sorts them: subscription, place of the charge, time, price row.
    lines = lines.join(contracts.select("contract", "owner", "customer", "subscription", "step"), on="contract")
    lines = lines.with_columns(_cost_centre(master, chosen, now).alias("cost_centre"))
    if chosen.grouped:  # else no line carries columns that all of them have empty
        lines = lines.join(_groups(master, chosen, now), on="contract", how="left")
    odd_owners = set(contracts.filter(pl.col("contract").is_in(odd.implode()))["owner"].unique())
    return _documents(chosen, lines, templates.frame(), odd_owners, leave, day)


def _cost_centre(master: MasterData, chosen: Plain, now: datetime) -> pl.Expr:
    """Where the buyer books a contract's lines; of most contracts nothing is said."""
    said = {code: master.subscriptions[code].references_at(now).cost_centre for code in chosen.referring}
    if not any(said.values()):
        return pl.lit("")
    return pl.col("subscription").replace_strict(said, default="", return_dtype=pl.String)


_GROUP_KEY = ("code", "order_reference", "buyer_reference")  # as `DocumentGroup.key`
_GROUPS_SCHEMA = pl.Schema({"contract": pl.UInt32, "per": pl.String, **dict.fromkeys(_GROUP_KEY, pl.String)})


def _groups(master: MasterData, chosen: Plain, now: datetime) -> pl.DataFrame:
    """On which document the contracts of customers with several go; of all others nothing."""
    rows: list[tuple[int, str, str, str, str]] = []
    own = chosen.contracts.filter(pl.col("customer").is_in(list(chosen.grouped)))
    for number, customer, code in own.select("contract", "customer", "subscription").iter_rows():
        per = master.document_per(customer)
        assert per != "customer", "only customers with several documents are asked for"
        rows.append((number, per, *group_of(master.subscriptions[code], per, now).key))
    return pl.DataFrame(rows, schema=_GROUPS_SCHEMA, orient="row")


def _pieces(
    master: MasterData, chosen: Plain, contracts: pl.DataFrame, events: pl.DataFrame
) -> tuple[PieceColumns, pl.DataFrame]:
    """The pieces worth rating (of meters whose events the customer has, or that owe a minimum), and whose they are."""
    charges, uses = _uses(master, chosen)
    seen = events.select("customer", "type").unique().join(chosen.keys, left_on="customer", right_on="key")
    seen = seen.select("owner", "type").unique()
    own = contracts.select(_OF_CONTRACT)
    names = ["contract", "use", *PIECES_SCHEMA.names()]
    found = pl.concat(
        [
            own.join(seen, on="owner").join(uses, on=["kind", "type"]).select(names),
            own.join(uses.filter(pl.col("type").is_null()), on="kind").select(names),
        ]
    ).sort("contract", "use")
    keys = chosen.keys.join(found.select("owner").unique(), on="owner", how="semi")
    return PieceColumns(charges, found.select(PIECES_SCHEMA.names()), keys), found.select("contract", "use")


_OF_CONTRACT = ("contract", "kind", "owner", pl.col("subscription").alias("of_subscription"))


def usage_pieces(master: MasterData, chosen: Plain) -> tuple[PieceColumns, pl.DataFrame]:
    """All pieces of those whose usage may be folded while it is read, and whose they are (contract, use).

    Known before any event is read. Their order follows from master data and customers: who folds and who prices must
    agree on it, or usage would be billed to somebody else (`FOLDED_FORM`).
    """
    charges, uses = _uses(master, chosen)
    own = chosen.contracts.filter(chosen.folding.gather(chosen.contracts["owner"])).select(_OF_CONTRACT)
    found = own.join(uses, on="kind").sort("contract", "use")
    keys = chosen.keys.filter(chosen.folding.gather(chosen.keys["owner"]))
    return PieceColumns(charges, found.select(PIECES_SCHEMA.names()), keys), found.select("contract", "use")


def _uses(master: MasterData, chosen: Plain) -> tuple[list[Charge], pl.DataFrame]:
    """The charges of all kinds, and what each kind uses: `type` is null for what owes a minimum without any event."""
    numbers: dict[int, int] = {}
    charges: list[Charge] = []
    rows: list[tuple[Any, ...]] = []
    for number, kind in enumerate(chosen.kinds):
        for place, use in enumerate(kind.uses):
            charge = use.charge
            at = numbers.setdefault(id(charge), len(charges))
            if at == len(charges):
                charges.append(charge)
            idle = (charge.minimum or 0) > 0
            piece = use.use.piece
            event_type = None if idle else master.meters[charge.meter].event_type
            rows.append((number, place, at, piece.start, piece.end, piece.span.quantity, event_type))
    schema = {
        "kind": pl.UInt32, "use": pl.UInt32, "charge": pl.UInt32, "start": INSTANT, "end": INSTANT, "units": NUMBER,
        "type": pl.String,
    }  # fmt: skip
    return charges, pl.DataFrame(rows, schema=schema, orient="row")


# -- Lines -------------------------------------------------------------------------------------------------------------

_LINES = pl.Schema({
    "contract": pl.UInt32, "template": pl.UInt32, "quantity": pl.String, "amount": MONEY, "amount_text": pl.String,
    "explanation": pl.String,
})  # fmt: skip
_SUBSCRIPTION, _QUANTITY, _AMOUNT, _EXPLANATION, _STEP = "@subscription@", "@quantity@", "@amount@", "@why@", "@step@"
_COST_CENTRE = "@centre@"
_HOLES = (_SUBSCRIPTION, _QUANTITY, _AMOUNT, _EXPLANATION, _STEP, _COST_CENTRE)


class _Templates:
    """Lines as JSON with holes for what differs between contracts of a kind, and their other columns."""

    def __init__(self, master: MasterData, chosen: Plain) -> None:
        self.master, self.chosen = master, chosen
        self.rows: list[tuple[Any, ...]] = []
        self.places: dict[tuple[int, int, int], int] = {}
        self.why: list[str] = []  # what explains a usage line beside its numbers

    def fee(self, fee: _Fee) -> int:
        self.why.append(msgspec.json.encode(dict(fee.line.explanation)).decode())
        return self._add(fee.line, fee.place, 0)

    def usage(self, kind: int, use: int, row: int) -> int:
        key = (kind, use, row)
        if key not in self.places:
            one = self.chosen.kinds[kind]
            metered = one.uses[use]
            explained = explain_price(metered.charge, row, Fraction(1))
            rated = RatedRow(row, Decimal(1), Decimal(1), Decimal(1), explained)
            customer = one.model.subscription.customer
            due = Due(customer, [one.model], [], [metered.use])
            (drafts,) = settle(self.chosen.shared, due, {0: [rated]}, 0, ()).lines.values()
            (draft,) = drafts
            self.why.append(msgspec.json.encode(dict(draft.line.explanation)).decode())
            self.places[key] = self._add(draft.line, draft.key[1], row)
        return self.places[key]

    def _add(self, line: Line, place: int, row: int) -> int:
        form = line_form(line)
        form.update(
            subscription=_SUBSCRIPTION,
            quantity=_QUANTITY,
            amount=_AMOUNT,
            explanation=_EXPLANATION,
            step=_STEP,
            cost_centre=_COST_CENTRE,
        )
        text, parts = msgspec.json.encode(form).decode(), list[str]()
        for hole in _HOLES:
            before, text = text.split(f'"{hole}"')
            parts.append(before)
        currency = self._currency(line)
        self.rows.append(
            (
                len(self.rows), place, line.start, line.end, row, line.charge, line.kind, line.name or line.charge,
                line.unit, line.tax_category, decimal_text_of(line.tax_percent), str(line.tax_percent), line.plan,
                line.plan_version, currency, minor_digits(currency), decimal_text_of(line.allowance), *parts, text,
            )
        )  # fmt: skip
        return len(self.rows) - 1

    def _currency(self, line: Line) -> str:
        for plan in self.master.plans[line.plan]:
            if plan.version == line.plan_version:
                return plan.currency
        raise AssertionError(f"{line.plan} {line.plan_version} is no version of the catalog")

    def frame(self) -> pl.DataFrame:
        schema = {
            "template": pl.UInt32, "place": pl.Int64, "period_start": INSTANT, "period_end": INSTANT,
            "row": pl.Int64, "charge": pl.String, "kind": pl.String, "name": pl.String, "unit": pl.String,
            "tax_category": pl.String, "tax_percent": pl.String, "percent_text": pl.String, "plan": pl.String,
            "plan_version": pl.Int32, "currency": pl.String, "digits": pl.Int64, "allowance": pl.String,
            **{f"json_{number}": pl.String for number in range(len(_HOLES) + 1)},
        }  # fmt: skip
        return pl.DataFrame(self.rows, schema=schema, orient="row")


def decimal_text_of(number: Decimal) -> str:
    return format(number, "f")


def _fee_lines(contracts: pl.DataFrame, templates: _Templates) -> pl.DataFrame:
    rows: list[tuple[Any, ...]] = []
    for number, kind in enumerate(templates.chosen.kinds):
        for fee in kind.fees:
            template = templates.fee(fee)
            rows.append(
                (
                    number,
                    template,
                    str(fee.line.quantity),
                    fee.line.amount,
                    str(fee.line.amount),
                    templates.why[template],
                )
            )
    schema = {"kind": pl.UInt32, **{name: type for name, type in _LINES.items() if name != "contract"}}
    fees = pl.DataFrame(rows, schema=schema, orient="row")
    return contracts.select("contract", "kind").join(fees, on="kind").select(_LINES.names())


def _usage_lines(rated: RatedPieces, of_piece: pl.DataFrame, templates: _Templates) -> tuple[pl.DataFrame, pl.Series]:
    """The lines of rated usage, and the contracts with numbers that columns cannot write."""
    frame = rated.frame.with_columns(of_piece[rated.frame["piece"]])
    contracts = templates.chosen.contracts
    frame = frame.with_columns(contracts["kind"].gather(frame["contract"]))
    inexact = list({*rated.quantities, *rated.amounts, *rated.tier_parts})
    size = pl.col("quantity").abs()
    is_odd = (
        pl.col("line").is_in(pl.Series(inexact, dtype=pl.UInt32).implode())
        | pl.col("quantity").is_null()
        | pl.col("amount").is_null()
        | ((size > 0) & (size < TEXT_DIGITS))
        | (pl.col("amount").abs() > LARGEST)
    )
    odd = frame.filter(is_odd)["contract"].unique()
    if odd.len():
        frame = frame.filter(~pl.col("contract").is_in(odd.implode()))
    used = frame.select("kind", "use", "row").unique().sort("kind", "use", "row")
    numbers = [templates.usage(*one) for one in used.iter_rows()]
    used = used.with_columns(
        template=pl.Series(numbers, dtype=pl.UInt32),
        why=pl.Series([templates.why[number][1:] for number in numbers], dtype=pl.String),
        digits=pl.Series([templates.rows[number][15] for number in numbers], dtype=pl.Int64),
    )
    frame = frame.join(used, on=["kind", "use", "row"], how="left")
    frame = frame.join(_tier_texts(rated), on="line", how="left")
    found: list[pl.DataFrame] = [pl.DataFrame(schema=_LINES)]
    for (digits,), part in frame.group_by("digits"):
        places = int(str(digits))
        amount = rounded(pl.col("amount"), places).cast(pl.Decimal(38, places))
        lines = part.select(
            "contract",
            "template",
            plain_text("quantity"),
            amount.cast(MONEY).alias("amount"),
            amount.cast(pl.String).alias("amount_text"),
            _explanation().alias("explanation"),
        )
        found.append(lines.filter((pl.col("amount") != 0) | (pl.col("quantity") != "0")))
    return pl.concat(found), odd


def _explanation() -> pl.Expr:
    """As `rate_uses` and `settle` write it: exact, metered, events, first and last, tiers, then price and catalog."""
    times = pl.concat_str(
        pl.lit(',"first":"'), instant_text("first"), pl.lit('","last":"'), instant_text("last"), pl.lit('"')
    )
    tiers = pl.concat_str(pl.lit(',"tiers":['), "tier_text", pl.lit("]"))
    return pl.concat_str(
        pl.lit('{"exact":"'),
        plain_text("amount"),
        pl.lit('","metered":"'),
        plain_text("quantity"),
        pl.lit('","events":'),
        pl.col("events").cast(pl.String).fill_null("null"),
        times.fill_null(""),
        tiers.fill_null(""),
        pl.lit(","),
        "why",
    )


def _tier_texts(rated: RatedPieces) -> pl.DataFrame:
    """The tiers that each line filled as JSON objects, one after the other."""

    def member(name: str) -> pl.Expr:
        quoted = pl.concat_str(pl.lit('"'), plain_text(name), pl.lit('"'))
        return pl.concat_str(pl.lit(f'"{name}":'), quoted.fill_null("null"))

    names = ("up_to", "quantity", "unit", "flat", "amount")
    text = pl.concat_str(pl.lit("{"), pl.concat_str(*(member(name) for name in names), separator=","), pl.lit("}"))
    tiers = rated.tiers.select("line", text.alias("tier_text"))
    return tiers.group_by("line", maintain_order=True).agg(pl.col("tier_text").str.join(","))


# -- Documents ---------------------------------------------------------------------------------------------------------


def _documents(
    chosen: Plain,
    lines: pl.DataFrame,
    templates: pl.DataFrame,
    odd_owners: set[int],
    leave: frozenset[str],
    day: date,
) -> BilledPlain:
    lines = lines.join(templates, on="template", how="left")
    group_key = _GROUP_KEY if chosen.grouped else ()
    sums = lines.group_by("owner", "currency", *group_key).agg(pl.col("amount").sum())
    percents = lines.select("owner", "percent_text").unique()
    odd = (
        odd_owners
        | set(sums.filter((pl.col("amount") < 0) | (pl.col("amount") > LARGEST))["owner"])  # negative: a credit note
        | set(percents.filter(_places(pl.col("percent_text")) > PERCENT_PLACES_MAX)["owner"])
    )
    if odd:
        lines = lines.filter(~pl.col("owner").is_in(list(odd)))
    rest = tuple(sorted({*chosen.rest, *leave, *(chosen.customers[owner] for owner in odd)}))
    lines = lines.sort(
        "customer", "currency", *group_key, "subscription", "place", "period_start", "row", maintain_order=True
    )
    lines = lines.with_columns(document=pl.struct("owner", "currency", *group_key).rle_id())
    lines = lines.with_columns(line=pl.int_range(1, pl.len() + 1).over("document").cast(pl.UInt32))
    taxes = _taxes(lines)
    documents = _with_json(lines, taxes, day)
    columns = DocumentColumns(
        documents.match_to_schema(DOCUMENTS_SCHEMA),
        lines.select(
            "document", "line", "subscription", "charge", "kind", "name", "period_start", "period_end", "quantity",
            "unit", "allowance", pl.col("amount_text").alias("amount"), "tax_category", "tax_percent", "plan",
            "plan_version", pl.lit(False).alias("correction"),
        ).match_to_schema(LINES_SCHEMA),
        taxes.select("document", "category", "percent", "base", "amount").match_to_schema(TAXES_SCHEMA),
        pl.DataFrame(schema=MEMBERS_SCHEMA),
    )  # fmt: skip
    return BilledPlain(columns, rest)


def _places(text: pl.Expr) -> pl.Expr:
    return text.str.split_exact(".", 1).struct.field("field_1").str.len_chars().fill_null(0)


def _taxes(lines: pl.DataFrame) -> pl.DataFrame:
    """The tax table: per group the tax of its base, rounded once (as `assemble.tax_of`)."""
    groups = lines.group_by("document", "tax_category", "percent_text").agg(
        pl.col("amount").sum().alias("base_exact"), pl.col("digits").first()
    )
    percent = pl.col("percent_text").str.to_decimal(scale=PERCENT_PLACES_MAX).cast(MONEY)
    share = (percent * pl.lit(Decimal("0.01"), MONEY)).cast(MONEY)
    groups = groups.with_columns(percent=percent, exact=(pl.col("base_exact") * share).cast(MONEY))
    groups = groups.sort("document", "tax_category", "percent")
    return groups.with_columns(tax_exact=_by_digits("exact", is_text=False)).select(
        "document",
        pl.col("tax_category").alias("category"),
        pl.col("percent_text").alias("percent"),
        "base_exact",
        "tax_exact",
        "digits",
        _by_digits("base_exact", is_text=True).alias("base"),
        _by_digits("tax_exact", is_text=True).alias("amount"),
    )


def _by_digits(name: str, *, is_text: bool) -> pl.Expr:
    """An amount rounded to (or written with) the digits of its currency."""
    found = pl.lit(None, pl.String if is_text else MONEY)
    for digits in (0, 2, 3, 4):
        value = rounded(pl.col(name), digits)
        value = value.cast(pl.Decimal(38, digits)).cast(pl.String) if is_text else value.cast(MONEY)
        found = pl.when(pl.col("digits") == digits).then(value).otherwise(found)
    return found


def _with_json(lines: pl.DataFrame, taxes: pl.DataFrame, day: date) -> pl.DataFrame:
    texts = lines.select(
        "document",
        pl.concat_str(
            "json_0", quoted(lines, "subscription"), "json_1", in_quotes("quantity"), "json_2",
            in_quotes("amount_text"), "json_3", "explanation", "json_4", pl.col("step").cast(pl.String), "json_5",
            quoted(lines, "cost_centre"), "json_6",
        ).alias("text"),
    )  # fmt: skip
    line_texts = texts.group_by("document", maintain_order=True).agg(pl.col("text").str.join(",").alias("line_json"))
    tax_text = pl.concat_str(
        pl.lit('{"category":"'), "category", pl.lit('","percent":"'), "percent", pl.lit('","base":"'), "base",
        pl.lit('","amount":"'), "amount", pl.lit('"}'),
    )  # fmt: skip
    sums = taxes.group_by("document", maintain_order=True).agg(
        tax_text.str.join(",").alias("tax_json"),
        pl.col("base_exact").sum().alias("net_exact"),
        pl.col("tax_exact").sum(),
        pl.col("digits").first(),
    )
    sums = sums.with_columns(gross_exact=pl.col("net_exact") + pl.col("tax_exact"), zero=pl.lit(0, MONEY)).with_columns(
        _by_digits("net_exact", is_text=True).alias("net"),
        _by_digits("tax_exact", is_text=True).alias("tax"),
        _by_digits("gross_exact", is_text=True).alias("gross"),
        _by_digits("zero", is_text=True).alias("prepaid"),
    )
    # A cost centre is said of a document where all its lines have the same.
    centre = pl.when(pl.col("cost_centre").n_unique() == 1).then(pl.col("cost_centre").first()).otherwise(pl.lit(""))
    heads = [pl.col("per", *_GROUP_KEY).first(), centre] if "per" in lines.columns else []
    documents = lines.group_by("document", maintain_order=True).agg(
        pl.col("customer").first(),
        pl.col("owner").first(),
        pl.col("currency").first(),
        pl.col("period_start").min(),
        pl.col("period_end").max(),
        pl.len().cast(pl.UInt32).alias("line_count"),
        *heads,
    )
    found = documents.join(sums, on="document", how="left", maintain_order="left").join(
        line_texts, on="document", how="left", maintain_order="left"
    )
    place = pl.int_range(pl.len()).over("owner").cast(pl.String)
    # In the order of the fields of `Document`.
    json = pl.concat_str(
        pl.lit('{"customer":'), quoted(found, "customer"), pl.lit(',"type":"invoice","currency":"'), "currency",
        pl.lit(f'","date":"{day.isoformat()}","lines":['), "line_json", pl.lit('],"allowances":[],"taxes":['),
        "tax_json", pl.lit('],"net":"'), "net", pl.lit('","tax":"'), "tax", pl.lit('","gross":"'), "gross",
        pl.lit('","due":"'), "gross", pl.lit('","prepaid":"'), "prepaid", pl.lit('","refers_to":null,"members":[]'),
        _group_text(found), pl.lit("}"),
    )  # fmt: skip
    frame = found.select(
        "document",
        pl.concat_str("customer", pl.lit("/"), "currency", pl.lit("/"), place).alias("key"),
        "customer",
        pl.lit("invoice").alias("type"),
        "currency",
        pl.lit(day, pl.Date).alias("issued_on"),
        "period_start",
        "period_end",
        "net",
        "tax",
        "gross",
        "prepaid",
        pl.col("gross").alias("due"),
        pl.lit(None, pl.String).alias("refers_to"),
        "line_count",
        json.cast(pl.Binary).alias("json"),
    )
    return frame.with_columns(pl.Series("body", packed(frame["json"].to_list()), dtype=pl.Binary)).drop("json")


def _group_text(documents: pl.DataFrame) -> pl.Expr:
    """The member `group` of a document that is one of several, in the order of the fields of `DocumentGroup`."""
    if "per" not in documents.columns:
        return pl.lit("")
    parts = [pl.lit(',"group":{"per":'), in_quotes("per")]
    for name in (*_GROUP_KEY, "cost_centre"):
        parts += [pl.lit(f',"{name}":'), quoted(documents, name)]
    return pl.concat_str(*parts, pl.lit("}")).fill_null("")
