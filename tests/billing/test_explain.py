"""Lines explain themselves: whole explanations of lines that the engine made, prices in words, exactly their events."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import polars as pl
import pytest
from lives import METER, NO_TAX, TAX, flat, plan, subscribe, usage

from billing.bill import BilledDocument, bill
from billing.catalog import PriceRow
from billing.catalog_forms import parse_charge, parse_price
from billing.documents import Document, Line
from billing.explain import arithmetic, piece_of_line, price_words, span_of_line, tiers_filled
from billing.master import MasterData
from billing.periods import parse_moment
from billing.rating import UsagePiece, events_counted
from billing.usage import EVENT_SCHEMA

TENANT = {"currency": "EUR", "timezone": "Europe/Berlin", "country": "DE"}
LEVEL = {"code": "level", "event_type": "l", "aggregation": "time_weighted_sum", "value": "v", "unit": "GB"}
USERS = {"code": "users", "event_type": "u", "aggregation": "unique_count", "value": "who"}
TIERS = {"model": "graduated", "tiers": [{"up_to": "10", "unit": "2"}, {"up_to": None, "unit": "0.335", "flat": "1"}]}


def moment(text: str) -> Any:
    return parse_moment(text, "Europe/Berlin")


def master(*charges: dict[str, Any], steps: list[dict[str, Any]] | None = None, **more: Any) -> MasterData:
    """A customer with a subscription since 10 January on a plan of these charges."""
    first: list[dict[str, Any]] = [{"tax_code": TAX}, {"tax_code": NO_TAX}, {"meter": {**METER, "unit": "GB"}}]
    first += [{"meter": LEVEL}, {"meter": USERS}, {"publish": {"plan": plan(*charges, **more)}}]
    first += [{"customer": {"code": "c", "name": "C", "country": "DE", "keys": ["k"]}}]
    return MasterData.start(TENANT).apply_all([*first, *(steps or [subscribe("2026-01-10")])])


def events(*rows: tuple[str, str, str], **more: Any) -> pl.DataFrame:
    """(id, time, data) of events of the customer."""
    fixed = {"source": "t", "type": "n", "customer": "c", "subscription": None, **more}
    made = [{**fixed, "id": id_, "time": moment(time), "data": data} for id_, time, data in rows]
    return pl.DataFrame(made, schema=EVENT_SCHEMA)


def billed(
    known: MasterData, sent: pl.DataFrame, up_to: str = "2026-02-01", before: list[BilledDocument] | None = None
) -> Document:
    result = bill(known, ["c"], up_to=moment(up_to), now=moment(up_to), billed=before or [], events=sent)
    assert result.parked == ()
    (document,) = result.documents
    return document


def line_of(document: Document, charge: str) -> Line:
    return next(line for line in document.lines if line.charge == charge)


def test_a_tiered_usage_line_is_explained_whole() -> None:
    known = master(usage(price=TIERS, tax="vat"))
    line = line_of(billed(known, events(("e", "2026-01-12T10:00+01:00", '{"v":"13"}'))), "n")
    found = arithmetic(known, line, "EUR", "c")
    found["tax"].pop("rate", None)  # of the tax code's own history
    assert found == {
        "quantity": {
            "value": "13", "exact": "13", "unit": "GB", "meter": {"code": "n", "aggregation": "sum"}, "included": None,
        },
        "price": {
            "model": "graduated",
            "words": "each part in its own tier: 2 EUR per GB up to 10, 0.335 EUR per GB plus 1 EUR above",
            "unit_price": None,
            "tiers": [
                {"from": "0", "up_to": "10", "quantity": "10", "unit": "2", "flat": "0", "amount": "20",
                 "share": "0.7692"},
                {"from": "10", "up_to": None, "quantity": "3", "unit": "0.335", "flat": "1", "amount": "2.005",
                 "share": "0.2307"},
            ],
            "package": None, "percent": None, "minimum": None, "maximum": None,
        },
        "proration": None,
        "difference": None,
        "amount": {
            "currency": "EUR", "exact": "22.005", "rounded": "22.01", "rounding": "0.005",
            "rule": "once a line, half away from zero", "discount": "0", "with_tax": None, "net": "22.01",
        },
        "tax": {
            "code": "vat", "category": "S", "percent": "20", "treatment": "domestic",
            "point": "2026-01-31T22:59:59.999999+00:00",
        },
        "corrects": None,
        "catalog": {"plan": "p", "version": 1, "charge": "n", "step": 8, "own_price": False},
    }  # fmt: skip


def test_a_prorated_fee_with_a_discount_is_explained_whole() -> None:
    steps = [subscribe("2026-01-10", discounts=[{"percent": "10"}])]
    known = master({**flat("31.00"), "timing": "arrears", "tax": "vat"}, steps=steps)
    found = arithmetic(known, line_of(billed(known, events()), "base"), "EUR", "c")
    found["tax"].pop("rate", None)
    assert (found["quantity"], found["proration"], found["difference"]) == (
        {"value": "1", "exact": "1", "unit": "", "meter": None, "included": None},
        {"active": 22, "full": 31, "by": "day"},
        None,
    )
    assert found["price"] == {
        "model": "flat", "words": "31 EUR flat", "unit_price": "31", "tiers": [], "package": None, "percent": None,
        "minimum": None, "maximum": None,
    }  # fmt: skip
    assert found["amount"] == {
        "currency": "EUR", "exact": "22", "rounded": "22.00", "rounding": "0",
        "rule": "once a line, half away from zero", "discount": "2.20", "with_tax": None, "net": "19.80",
    }  # fmt: skip


def test_an_exact_amount_without_an_end_is_a_fraction_and_so_is_its_rounding() -> None:
    known = master({**flat("10.00"), "timing": "arrears"})
    line = line_of(billed(known, events()), "base")
    assert arithmetic(known, line, "EUR", "c")["amount"]["exact"] == "220/31"
    assert arithmetic(known, line, "EUR", "c")["amount"]["rounding"] == "1/310"


def test_a_correction_names_both_sides_and_no_rounding_of_its_own() -> None:
    known = master(usage("2"))
    first = events(("e", "2026-01-12T10:00+01:00", '{"v":"1"}'))
    before = BilledDocument("R1", billed(known, first), 1, moment("2026-02-01"))
    known = known.apply({"at": "2026-02-01", "bill_run": {"up_to": "2026-02-01"}})
    both = pl.concat([first, events(("late", "2026-01-13T10:00+01:00", '{"v":"4"}'))])
    line = line_of(billed(known, both, "2026-02-02", [before]), "n")
    found = arithmetic(known, line, "EUR", "c")
    assert found["difference"] == {
        "billed": {"document": "R1", "quantity": "1", "amount": "2.00"},
        "rated": {"quantity": "5", "amount": "10.00"},
        "late": True,
    }
    assert found["corrects"] == {"document": "R1", "line": 1}
    assert (found["amount"]["exact"], found["amount"]["rounded"], found["amount"]["rounding"]) == ("10", "8.00", None)
    assert (found["quantity"]["value"], found["quantity"]["exact"]) == ("4", "5")


def test_a_minimum_and_an_amount_ad_hoc_have_no_price_and_no_piece() -> None:
    charge = {"customer": "c", "code": "help", "name": "Help", "amount": "5.00", "tax": "vat"}
    steps = [subscribe("2026-01-01"), {"at": "2026-01-05", "ad_hoc": charge}]
    known = master(usage("2"), steps=steps, minimum="40.00")
    document = billed(known, events(("e", "2026-01-12T10:00+01:00", '{"v":"1"}')))
    for name, model, plan_ in (("minimum", None, "p"), ("help", "ad_hoc", None)):
        line = line_of(document, name)
        found = arithmetic(known, line, "EUR", "c")
        assert (found["price"]["model"], found["price"]["words"]) == (model, "")
        assert (found["quantity"]["meter"], found["catalog"]["own_price"]) == (None, False)
        assert found["catalog"]["plan"] == plan_
        assert piece_of_line(known, line) is None
        assert span_of_line(known, line) is None
    assert arithmetic(known, line_of(document, "n"), "EUR", "nobody")["tax"]["treatment"] is None


def test_an_own_price_is_found_by_its_step_and_said_to_be_one() -> None:
    own = {"subscription": "s", "charge": "n", "price": {"model": "per_unit", "unit": "3"}}
    steps = [subscribe("2026-01-01"), {"at": "2026-01-11", "override": own}]
    known = master(usage("2"), steps=steps)
    sent = events(("a", "2026-01-05T10:00+01:00", '{"v":"1"}'), ("b", "2026-01-20T10:00+01:00", '{"v":"1"}'))
    first, second = billed(known, sent).lines
    assert [arithmetic(known, line, "EUR", "c")["catalog"]["own_price"] for line in (first, second)] == [False, True]
    assert [arithmetic(known, line, "EUR", "c")["price"]["words"] for line in (first, second)] == [
        "2 EUR per GB",
        "3 EUR per GB",
    ]
    for line, ids in ((first, ["a"]), (second, ["b"])):
        piece, row = piece_of_line(known, line) or pytest.fail("a usage line has a piece")
        assert (piece.start, piece.end, row) == (line.start, line.end, 0)
        assert events_counted(piece, row, sent, known.meters, "Europe/Berlin")["id"].to_list() == ids


@pytest.mark.parametrize(
    ("price", "limits", "words"),
    [
        ({"model": "flat", "amount": "5.00"}, {}, "5 EUR flat"),
        ({"model": "per_unit", "unit": "0.10"}, {"included": "5"}, "0.1 EUR per GB; 5 GB included"),
        (
            {"model": "volume", "tiers": [{"up_to": "10", "unit": "2"}, {"up_to": None, "unit": "1"}]},
            {"minimum": "3", "maximum": "9"},
            "the whole quantity at the tier that it reaches: 2 EUR per GB up to 10, 1 EUR per GB above;"
            " at least 3 EUR; at most 9 EUR",
        ),
        ({"model": "package", "size": "100", "amount": "4"}, {}, "4 EUR per started package of 100 GB"),
        ({"model": "event_amount", "property": "cost"}, {}, "the amount that each event states in 'cost'"),
        ({"model": "percentage", "percent": "1.5"}, {}, "1.5 % of each event's value"),
        (
            {
                "model": "percentage", "percent": "1.5", "per_event": "0.25", "min_per_event": "1",
                "max_per_event": "20", "free_events": "3", "free_value": "500",
            },
            {},
            "1.5 % of each event's value plus 0.25 EUR, at least 1 EUR, at most 20 EUR, the first 3 events free,"
            " the first 500 EUR of value free",
        ),
        (
            {"model": "bands", "otherwise": "3",
             "bands": [{"days": ["sat", "sun"], "unit": "1"}, {"from": "22:00", "to": "06:30", "unit": "2"}]},
            {},
            "per GB by local time: sat/sun 00:00-24:00 1 EUR, every day 22:00-06:30 2 EUR, otherwise 3 EUR",
        ),
        (
            {"model": "bands", "bands": [{"from": f"0{n}:00", "to": f"0{n}:30", "unit": "1"} for n in range(7)],
             "otherwise": "3"},
            {},
            "per GB by local time: every day 00:00-00:30 1 EUR, every day 01:00-01:30 1 EUR,"
            " every day 02:00-02:30 1 EUR, every day 03:00-03:30 1 EUR, every day 04:00-04:30 1 EUR,"
            " 2 more bands, otherwise 3 EUR",
        ),
    ],
    ids=lambda value: value.get("model") if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_price_is_one_sentence(price: dict[str, Any], limits: dict[str, str], words: str) -> None:
    numbers = {name: Decimal(text) for name, text in limits.items()}
    assert price_words(PriceRow(parse_price(price), **numbers), "GB", "EUR") == words


def test_a_quantity_without_a_unit_is_counted_in_units() -> None:
    row = PriceRow(parse_price({"model": "per_unit", "unit": "2"}), included=Decimal(7))
    assert price_words(row, "", "USD") == "2 USD per unit; 7 units included"


def test_the_parts_of_tiers_are_shares_of_the_whole_also_with_turned_signs() -> None:
    tiers = [{"up_to": "1", "quantity": "-1"}, {"up_to": "5", "quantity": "-2"}, {"up_to": None, "quantity": None}]
    assert tiers_filled(tiers) == [
        {"from": "0", "up_to": "1", "quantity": "-1", "share": "0.3333"},
        {"from": "1", "up_to": "5", "quantity": "-2", "share": "0.6666"},
        {"from": "5", "up_to": None, "quantity": None, "share": "0"},
    ]
    assert tiers_filled([{"up_to": None, "quantity": "0"}]) == [
        {"from": "0", "up_to": None, "quantity": "0", "share": "0"}
    ]
    assert tiers_filled([]) == []


def piece(charge: dict[str, Any], **more: Any) -> UsagePiece:
    start, end = moment("2026-01-10"), moment("2026-02-01")
    return UsagePiece(
        "c", "s", parse_charge({"code": "n", "kind": "usage", "tax": "none", **charge}), start, end, **more
    )


SENT = [
    ("b", "2026-01-12T10:00+01:00", '{"v":"2","region":"eu"}'),
    ("a", "2026-01-12T10:00+01:00", '{"v":"1.5","region":"us"}'),
    ("edge", "2026-01-10T00:00+01:00", '{"v":"4"}'),
    ("early", "2026-01-09T23:59:59+01:00", '{"v":"8","region":"eu"}'),
    ("end", "2026-02-01T00:00+01:00", '{"v":"16","region":"eu"}'),
    ("odd", "2026-01-13T10:00+01:00", '{"v":"many","region":"eu"}'),
    ("none", "2026-01-13T10:00+01:00", '{"region":"eu"}'),
]


def counted(asked: UsagePiece, row: int, sent: pl.DataFrame) -> list[tuple[Any, ...]]:
    known = master(usage("1"))
    return events_counted(asked, row, sent, known.meters, "Europe/Berlin").select("id", "value", "text").rows()


def test_the_events_behind_a_line_are_those_of_its_time_in_order_of_time_and_id() -> None:
    one = piece({"meter": "n", "price": {"model": "per_unit", "unit": "1"}})
    assert counted(one, 0, events(*SENT)) == [
        ("edge", Decimal(4), None),
        ("a", Decimal("1.5"), None),
        ("b", Decimal(2), None),
    ]
    assert counted(one, 0, events(*SENT, customer="other")) == []
    assert counted(one, 0, events(*SENT, type="other")) == []
    assert counted(one, 0, events(*SENT, subscription="s9")) == []
    assert len(counted(one, 0, events(*SENT, subscription="s"))) == 3
    keyed = piece({"meter": "n", "price": {"model": "per_unit", "unit": "1"}}, keys=("c", "k"))
    assert len(counted(keyed, 0, events(*SENT, customer="k"))) == 3


def test_each_price_row_has_its_own_events_and_the_first_match_takes_them() -> None:
    price = {"model": "per_unit", "unit": "1"}
    rows = [{"when": {"region": "eu"}, "price": price}, {"price": price}]
    one = piece({"meter": "n", "price_by": ["region"], "prices": rows})
    assert counted(one, 0, events(*SENT)) == [("b", Decimal(2), None)]
    assert counted(one, 1, events(*SENT)) == [("edge", Decimal(4), None), ("a", Decimal("1.5"), None)]


def test_levels_bring_the_events_before_their_period_and_texts_are_what_was_read() -> None:
    level = piece({"meter": "level", "price": {"model": "per_unit", "unit": "1"}})
    sent = events(*SENT[:4], type="l")
    assert [row[0] for row in counted(level, 0, sent)] == ["early", "edge", "a", "b"]
    users = piece({"meter": "users", "price": {"model": "per_unit", "unit": "1"}})
    who = events(("1", "2026-01-12T10:00+01:00", '{"who":"Ann"}'), ("2", "2026-01-13T10:00+01:00", "{}"), type="u")
    assert counted(users, 0, who) == [("1", None, "Ann")]


def test_a_line_of_price_rows_leads_back_to_its_row() -> None:
    price = {"model": "per_unit", "unit": "1"}
    rows = [{"when": {"region": "eu"}, "price": price}, {"when": {"region": "us"}, "price": {**price, "unit": "5"}}]
    known = master(usage(price_by=["region"], prices=rows))
    document = billed(known, events(*SENT[:2]))
    assert [(dict(line.when or {}), piece_of_line(known, line)[1]) for line in document.lines] == [  # type: ignore[index]
        ({"region": "eu"}, 0),
        ({"region": "us"}, 1),
    ]
    assert arithmetic(known, document.lines[1], "EUR", "c")["price"]["words"] == "5 EUR per GB"


def test_a_contract_that_is_not_there_has_no_span() -> None:
    known = master(usage("2"))
    line = line_of(billed(known, events(("e", "2026-01-12T10:00+01:00", '{"v":"1"}'))), "n")
    other = Line("none", "n", line.start, line.end, Decimal(1), Decimal(1), "S", Decimal(19), step=line.step)
    assert span_of_line(known, other) is None
    assert span_of_line(known, line) is not None
