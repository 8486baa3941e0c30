"""One chunk of a bill run: some customers' documents from log, master data and what was billed before.

Stateless: the same task gives the same bytes wherever and however often it runs; the result is put once under a key
that the task alone determines. Runs in the driver's process or as a Ray task.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime

import polars as pl

from billing.assemble import Credit
from billing.bill import BilledDocument, BillResult, bill, events_needed_from
from billing.bill_columns import Plain, bill_plain, plain
from billing.document_columns import DocumentColumns, columns_of, together, totals_of
from billing.documents import Document
from billing.lateness import reasons_of
from billing.master import MasterData
from billing.wallets import Wallets, wallets_of
from pipelines.chunk_results import Result, pack, unpack
from pipelines.data_versions import check_time_zones
from pipelines.document_shapes import shapes_of
from pipelines.kept_work import chunk_key
from pipelines.run_credit import Billed, Facts, WalletDesk, bill_with_credit, read_credit
from pipelines.run_usage import ChunkUsage, behind, read_events, read_usage, released, with_cut_of_last_run
from pipelines.run_usage import Facts as UsageFacts
from pipelines.usage_slices import complete, fold_group, groups_of, is_gathered, sliced
from storage.master_chain import MasterChain
from storage.object_store import ObjectStore
from storage.sql import invoices
from storage.sql.database import Database
from storage.usage_log.backfills import earliest_backfilled
from storage.usage_log.counting import amendments_at, scan_counting
from storage.usage_log.reader import SCAN_SCHEMA, Cut, UsageLogReader

CUSTOMERS = 4_000  # of one chunk: some 0.3 s of work, of which what costs the same for any number is small
PREVIEWS = "run-previews"  # where previews of whole runs lie in the object store


@dataclass(frozen=True)
class ChunkTask:
    """Everything that the result of a chunk rests on. Small, so that it travels well."""

    tenant_id: str
    run_id: str
    chunk: int
    first: int  # place of its first customer in the order of codes
    customers: int  # how many; both fixed by the plan, so that a newer version resumes a run with the same chunks
    master_number: int
    up_to: datetime
    made_at: datetime
    document_date: date
    cut: str  # JSON
    previous_cut: str | None
    time_zones: str | None = None  # version of the data that the run was planned with; None: whatever is here
    gathered: str | None = None  # where its usage lies that was read for all chunks; None: it is read from the log
    preview: bool = False  # it only looks: its result lies elsewhere, and no credit is held for it

    @property
    def key(self) -> str:
        if self.preview:
            return chunk_key(preview_folder(self.tenant_id, self.run_id), self.chunk)
        return f"runs/{self.tenant_id}/{self.run_id}/chunk-{self.chunk:06}.parquet"

    @property
    def title(self) -> str:
        return f"{self.of}, chunk {self.chunk + 1}"

    @property
    def of(self) -> str:
        return f"{'preview' if self.preview else 'bill run'} {self.run_id[-12:]}"


def preview_folder(tenant_id: str, preview_id: str = "") -> str:
    return f"{PREVIEWS}/{tenant_id}/{preview_id}/" if preview_id else f"{PREVIEWS}/{tenant_id}/"


@dataclass(frozen=True)
class GatherTask:
    """The usage of all chunks of a run, read together."""

    chunks: tuple[ChunkTask, ...]
    prefix: str

    @property
    def title(self) -> str:
        return f"{self.chunks[0].of}, usage"


@dataclass(frozen=True)
class FoldTask:
    """The usage of a run that lies under the keys of some partitions: `first` to `last`, both of them."""

    of: GatherTask
    first: int
    last: int

    @property
    def title(self) -> str:
        return f"{self.of.title}, partitions {self.first} to {self.last}"


@dataclass(frozen=True)
class ChunkResult:
    """What the driver notes of a computed chunk; the documents themselves are in the object store."""

    chunk: int
    key: str
    documents: int
    lines: int
    totals: dict[str, dict[str, str]]
    parked: list[dict[str, str]]


def customers_of(master: MasterData, task: ChunkTask) -> list[str]:
    """The customers of a chunk: a range of all in order, so chunk after chunk is in the order of numbers."""
    return billable(master)[task.first : task.first + task.customers]


def billable(master: MasterData) -> list[str]:
    """Customers that can have something to bill, by code; families (who pays for whom) stand together, whole.

    Who was erased is billed no more: nothing is left by which to bill him. Put in order once for each value of the
    master data: every chunk asks, so else a run would grow with their square.
    """
    known: list[str] | None = master.__dict__.get("_billable")  # a cache beside the frozen fields
    if known is None:
        known = master.__dict__["_billable"] = _billable(master)
    return known


def _billable(master: MasterData) -> list[str]:
    codes = {code for code, subscriptions in master.subscriptions_of.items() if subscriptions}
    codes.update(master.ad_hoc)
    codes = {code for code in codes if code not in master.customers or "erased" not in master.customers[code].form}
    if not master.families:
        return sorted(codes)
    families = {family[0]: family for code in codes if (family := master.families.get(code)) is not None}
    for family in families.values():
        codes.update(family)
    return sorted(codes, key=lambda code: (master.family(code)[0], code))


def chunk_sizes(master: MasterData, most: int = CUSTOMERS) -> list[int]:
    """How many of the billable customers each chunk has: at most `most`, more only where one family is larger."""
    sizes: list[int] = []
    for _, family in itertools.groupby(billable(master), key=lambda code: master.family(code)[0]):
        count = sum(1 for _ in family)
        if sizes and sizes[-1] + count <= most:
            sizes[-1] += count
        else:
            sizes.append(count)
    return sizes


def compute_chunk(
    task: ChunkTask, store: ObjectStore, database: Database, chain: MasterChain, desk: WalletDesk | None = None
) -> ChunkResult:
    """Compute a chunk's documents and put them once. A result that is there already is taken as it is.

    The wallet credit that they use is held through the desk before; a preview reads what is free and holds nothing.
    Without a desk it is replayed from the documents made before, which knows of no reservations: for tools and tests
    that run without shards.
    """
    known = store.get(task.key)
    if known is None:
        check_time_zones(task.time_zones)
        found = compute_columns(task, store, database, chain, desk=desk, holds=not task.preview)
        shapes = shapes_of(found.columns, chain.at(task.tenant_id, task.master_number))
        result = Result(found.columns, found.parked, found.holders, shapes)
        # Lost the race: the other one's result counts, whatever the bytes (the same, as both rest on the same facts).
        if not store.create(task.key, pack(result)):
            known = store.get(task.key)
            assert known is not None
    if known is not None:
        result = unpack(known)
    columns = result.columns
    return ChunkResult(
        task.chunk,
        task.key,
        columns.count,
        columns.lines.height,
        totals_of(columns),
        list(result.parked),
    )


def fold_tasks(task: GatherTask, at_least: int = 1) -> list[FoldTask]:
    """One task for each group of partitions that the log is read in."""
    customers = sum(one.customers for one in task.chunks)
    return [FoldTask(task, group.start, group.stop - 1) for group in groups_of(customers, at_least)]


def fold_usage(
    task: FoldTask, store: ObjectStore, database: Database, chain: MasterChain, desk: WalletDesk | None = None
) -> str:
    """Put the usage of one group; the prefix of what is put. Takes what executors pass to any work."""
    facts, chunks = _facts_and_chunks(task.of, chain)
    fold_group(store, facts, chunks, task.of.prefix, range(task.first, task.last + 1))
    return task.of.prefix


def put_together(task: GatherTask, folded: Sequence[FoldTask], store: ObjectStore, chain: MasterChain) -> None:
    """Put what the folded groups come to together, and what is read for all of them when they are known."""
    facts, chunks = _facts_and_chunks(task, chain)
    complete(store, facts, chunks, task.prefix, [range(one.first, one.last + 1) for one in folded])


def gather_usage(
    task: GatherTask, store: ObjectStore, database: Database, chain: MasterChain, desk: WalletDesk | None = None
) -> str:
    """Put the usage of all chunks of a run, one group after the other; the prefix of what is put."""
    if not is_gathered(store, task.prefix):
        folded = fold_tasks(task)
        for one in folded:
            fold_usage(one, store, database, chain)
        put_together(task, folded, store, chain)
    return task.prefix


def _facts_and_chunks(task: GatherTask, chain: MasterChain) -> tuple[UsageFacts, list[list[str]]]:
    facts = facts_of(task.chunks[0], chain)
    codes = billable(facts.master)
    return facts, [codes[one.first : one.first + one.customers] for one in task.chunks]


def facts_of(task: ChunkTask, chain: MasterChain) -> UsageFacts:
    return UsageFacts(
        task.tenant_id,
        chain.at(task.tenant_id, task.master_number),
        task.up_to,
        task.made_at,
        Cut.from_json(task.cut),
        Cut.from_json(task.previous_cut) if task.previous_cut else None,
    )


@dataclass(frozen=True)
class ChunkColumns:
    """A chunk's customers and documents in columns, those parked, and whose credit is held for which documents."""

    customers: list[str]
    columns: DocumentColumns
    parked: list[dict[str, str]]
    holders: Mapping[str, tuple[str, ...]]


def compute_columns(
    task: ChunkTask,
    store: ObjectStore,
    database: Database,
    chain: MasterChain,
    *,
    before: str | None = None,
    desk: WalletDesk | None = None,
    holds: bool = False,
) -> ChunkColumns:
    """A chunk's documents in columns: of most customers all at once, of the others one by one."""
    facts = facts_of(task, chain)
    customers = customers_of(facts.master, task)
    usage = (
        read_usage(UsageLogReader(store), facts, customers)
        if task.gathered is None
        else sliced(store, facts, customers, task.gathered, task.chunk)
    )
    chosen = plain(facts.master, customers, task.up_to)
    found = bill_plain(
        facts.master,
        chosen,
        usage.events,
        now=task.made_at,
        document_date=task.document_date,
        leave=frozenset(usage.rest),
        folded=usage.folded,
    )
    parts, parked = [found.documents], list[dict[str, str]]()
    holders: dict[str, tuple[str, ...]] = {}
    # Who turned out to need more than columns has no late usage: of him only what is due is looked at.
    turned = sorted(set(found.rest) - set(usage.rest))
    for these, events_from, kept in (
        (list(usage.rest), usage.needed_from, usage.events),
        (turned, task.up_to, _with_folded(store, facts, usage, chosen, turned)),
    ):
        if these:
            keys = [key for customer in these for key in facts.master.keys_of(customer)]
            events = kept.filter(pl.col("customer").is_in(keys))
            one_by_one = _one_by_one(
                task, database, chain, facts.master, these, events, events_from, before=before, desk=desk, holds=holds
            )
            parts.append(columns_of(one_by_one.result.documents, one_by_one.result.keys))
            parked += _parked(one_by_one.result)
            holders.update(one_by_one.holders)
    parked.sort(key=lambda one: customers.index(one["customer"]) if one["customer"] in customers else 0)
    return ChunkColumns(customers, together(parts), parked, holders)


def _with_folded(
    store: ObjectStore, facts: UsageFacts, usage: ChunkUsage, chosen: Plain, customers: Sequence[str]
) -> pl.DataFrame:
    """The events of some customers: of those whose usage was folded they are read again. Rare, so the log is asked."""
    folded = {customer for customer, folds in zip(chosen.customers, chosen.folding, strict=True) if folds}
    again = [customer for customer in customers if customer in folded]
    if not again:
        return usage.events
    read = read_events(UsageLogReader(store), facts, again, usage.due_from)
    return pl.concat([usage.events, read], how="diagonal_relaxed")


def compute_documents(
    task: ChunkTask,
    store: ObjectStore,
    database: Database,
    chain: MasterChain,
    *,
    before: str | None = None,
    only: Sequence[str] | None = None,
    master: MasterData | None = None,
    desk: WalletDesk | None = None,
) -> tuple[list[str], Sequence[Document], list[dict[str, str]]]:
    """A chunk's customers, their documents and those parked; stores nothing and takes no credit.

    `before` (the id of a run that is verified) leaves out what that run and later ones have billed. For previews and
    explanations: `only` are customers in place of the chunk's (the documents that go to them or have lines of them,
    whole, with the lines of whoever else is paid for on them), `master` is master data in place of the chain's. With a
    desk credit is what the lanes recorded for the run, or else what is free now; without, what documents left of it.
    """
    computed = _compute(task, store, database, chain, before=before, only=only, master=master, desk=desk)
    result = computed.billed.result
    parked = _parked(result)
    if only is None:
        return computed.customers, result.documents, parked
    wanted = set(only)
    concern = [one for one in result.documents if wanted & {one.customer, *(member.code for member in one.members)}]
    return list(only), concern, [one for one in parked if one["customer"] in wanted]


@dataclass(frozen=True)
class _Computed:
    customers: list[str]
    billed: Billed


def _compute(
    task: ChunkTask,
    store: ObjectStore,
    database: Database,
    chain: MasterChain,
    *,
    before: str | None = None,
    only: Sequence[str] | None = None,
    master: MasterData | None = None,
    desk: WalletDesk | None = None,
) -> _Computed:
    master = master or chain.at(task.tenant_id, task.master_number)
    if only is None:
        customers = customers_of(master, task)
    else:
        customers = sorted({member for customer in only for member in master.family(customer)})
    cut = Cut.from_json(task.cut)
    previous = Cut.from_json(task.previous_cut) if task.previous_cut else None
    reader = UsageLogReader(store)
    keys = [key for customer in customers for key in master.keys_of(customer)]
    events_from = _events_from(task, reader, master, customers, keys, cut, previous)
    events = rateable(reader, task.tenant_id, master, cut, previous, task.made_at, keys=keys, start=events_from)
    billed = _one_by_one(task, database, chain, master, customers, events, events_from, before=before, desk=desk)
    return _Computed(customers, billed)


def _one_by_one(
    task: ChunkTask,
    database: Database,
    chain: MasterChain,
    master: MasterData,
    customers: Sequence[str],
    events: pl.DataFrame,
    events_from: datetime | None,
    *,
    before: str | None = None,
    desk: WalletDesk | None = None,
    holds: bool = False,
) -> Billed:
    """The documents of some customers (of a family all), with the credit that they use."""
    whole = [customer for customer in customers if master.needs_all_documents(customer)]
    with database.tenant(task.tenant_id) as connection:
        billed = invoices.billed(connection, customers, events_from, whole, before=before)

    def make(chosen: Sequence[str], credit: Credit | None) -> BillResult:
        return bill(
            master,
            chosen,
            up_to=task.up_to,
            now=task.made_at,
            billed=billed,
            events=events,
            events_from=events_from,
            credit=credit,
            document_date=task.document_date,
        )

    with_wallet = [customer for customer in customers if customer in master.wallet_customers]
    if not with_wallet:
        return Billed(make(customers, None))
    if desk is None:
        return Billed(make(customers, _replayed(master, with_wallet, billed, task.made_at)))
    facts = Facts(task.tenant_id, task.run_id, task.made_at, task.master_number, master)
    if holds:
        return bill_with_credit(desk, facts, customers, with_wallet, make)
    replayed = _replayed(master, with_wallet, billed, task.made_at) if before is not None else None
    return Billed(make(customers, read_credit(desk, facts, with_wallet, replayed)))


def _replayed(master: MasterData, customers: Sequence[str], billed: Sequence[BilledDocument], now: datetime) -> Wallets:
    chosen = set(customers)
    own = [one for one in billed if chosen & {one.document.customer, *(m.code for m in one.document.members)}]
    return wallets_of(master, customers, own, now)


def _parked(result: BillResult) -> list[dict[str, str]]:
    return [{"customer": one.customer, "code": one.code, "reason": one.reason} for one in result.parked]


def _events_from(
    task: ChunkTask,
    reader: UsageLogReader,
    master: MasterData,
    customers: Sequence[str],
    keys: Sequence[str],
    cut: Cut,
    previous: Cut | None,
) -> datetime | None:
    """From which time on events are needed; None (all) where a level may carry over from long ago."""
    if any(meter.aggregation == "time_weighted_sum" for meter in master.meters.values()):
        return None
    late_since = None
    if previous is not None:
        free = [key for customer in released(master, customers) for key in master.keys_of(customer)]
        for frame in itertools.chain(
            reader.scan(task.tenant_id, cut, customers=keys, since=previous),
            scan_counting(reader, task.tenant_id, cut, customers=free) if free else (),
        ):
            earliest = frame["time"].min()
            if isinstance(earliest, datetime) and (late_since is None or earliest < late_since):
                late_since = earliest
        earliest = earliest_backfilled(reader, task.tenant_id, previous, cut, keys)
        if earliest is not None and (late_since is None or earliest < late_since):
            late_since = earliest
        amended = amendments_at(reader, task.tenant_id, cut)[0].times.filter(pl.col("key").is_in(list(keys)))
        earliest = amended.filter(behind(amended, previous))["time"].min()
        if isinstance(earliest, datetime) and (late_since is None or earliest < late_since):
            late_since = earliest
    return events_needed_from(master, customers, task.up_to, late_since)


def rateable(
    reader: UsageLogReader,
    tenant_id: str,
    master: MasterData,
    cut: Cut,
    previous: Cut | None,
    now: datetime,
    *,
    keys: Sequence[str] | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
) -> pl.DataFrame:
    """The events in a cut that can be rated, of some customer keys, as amended; what is in suspense is left out.

    What is late says each finalised run's own cut; `previous` is the last one's, for runs that did not note theirs.
    """
    master = with_cut_of_last_run(master, previous)
    frames: list[pl.DataFrame] = []
    for frame in scan_counting(reader, tenant_id, cut, customers=keys, start=start, end=end):
        frames.append(frame.filter(reasons_of(frame, master, now).is_null()).select(SCAN_SCHEMA.names()))
    if not frames:
        return pl.DataFrame(schema=SCAN_SCHEMA)
    return pl.concat(frames)
