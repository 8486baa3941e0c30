"""What goes on one document: by customer, subscription, order or cost centre, with the head that belongs to it."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lives import documents, flat, life, plan, run, subscribe, usage, used
from test_bill_properties import as_the_platform_bills, check_sums, day, days, lives, with_runs

from billing.credit_notes import CreditLine, credit_note
from billing.document_json import document_from, document_json
from billing.documents import Document, DocumentGroup
from billing.errors import InvalidInput
from billing.master import DOCUMENT_PER, MasterData
from billing.periods import parse_moment
from billing.scenario import check_scenario, documents_of

ZERO = Decimal(0)
LEITWEG = "04011000-1234512345-06"
HEAD = ("group", "order_reference", "buyer_reference", "cost_centre")


def customer(**more: Any) -> list[dict[str, Any]]:
    return [{"code": "c", "name": "C", "country": "DE", "tax_treatment": "domestic", **more}]


def heads(made: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Of each document its head, and whose lines it has."""
    return [(*(one[key] for key in HEAD), [line["subscription"] for line in one["lines"]]) for one in made]


THREE = [
    subscribe(day(0), "a", order_reference="4711", cost_centre="K2"),
    subscribe(day(0), "b", order_reference="4711", cost_centre="K1"),
    subscribe(day(0), "d", order_reference="4712", cost_centre="K1", leitweg_id=LEITWEG, buyer_reference="x"),
    subscribe(day(0), "e"),
]


@pytest.mark.parametrize(
    ("per", "expected"),
    [
        ("customer", [(None, None, None, None, ["a", "b", "d", "e"])]),
        (
            "subscription",
            [
                ("a", "4711", None, "K2", ["a"]),
                ("b", "4711", None, "K1", ["b"]),
                ("d", "4712", LEITWEG, "K1", ["d"]),
                ("e", None, None, None, ["e"]),
            ],
        ),
        (
            "order",
            [
                ("", None, None, None, ["e"]),
                ("4711", "4711", None, None, ["a", "b"]),
                ("4712", "4712", LEITWEG, "K1", ["d"]),
            ],
        ),
        (
            "cost_centre",
            [
                ("", None, None, None, ["e"]),
                ("K1", "4711", None, "K1", ["b"]),  # a document's head says one order and one reference
                ("K1", "4712", LEITWEG, "K1", ["d"]),
                ("K2", "4711", None, "K2", ["a"]),
            ],
        ),
    ],
)
def test_lines_are_grouped_by_what_the_setting_says(per: str, expected: list[tuple[Any, ...]]) -> None:
    made = documents(life([plan(flat("10"))], [*THREE, run(day(0))], customers=customer(document_per=per)))
    assert heads(made) == expected
    of_tenant = life([plan(flat("10"))], [*THREE, run(day(0))], tenant={"document_per": per})
    assert documents(of_tenant) == made


def test_contracts_of_one_order_with_references_of_their_own_share_no_document() -> None:
    """The head has one place for the buyer reference: an authority takes no document with somebody else's."""
    steps = [
        subscribe(day(0), "a", order_reference="4711", buyer_reference="x"),
        subscribe(day(0), "b", order_reference="4711", leitweg_id=LEITWEG),
        subscribe(day(0), "d", order_reference="4711", buyer_reference="x"),
        run(day(0)),
    ]
    made = documents(life([plan(flat("10"))], steps, customers=customer(document_per="order")))
    assert [(one["buyer_reference"], [line["subscription"] for line in one["lines"]]) for one in made] == [
        (LEITWEG, ["b"]),
        ("x", ["a", "d"]),
    ]


def test_the_customers_own_setting_counts_before_the_tenants_and_can_be_taken_away() -> None:
    steps = [
        *THREE,
        run(day(0)),
        {"at": day(1), "customer": {"code": "c", "document_per": "order"}},
        run(day(31)),
        {"at": day(32), "documents": {"per": "subscription"}},
        {"at": day(32), "customer": {"code": "c", "document_per": None}},
        run(day(60)),
    ]
    made = documents(life([plan(flat("10"))], steps))
    assert Counter(one["date"] for one in made) == {"2026-01-01": 1, "2026-02-01": 3, "2026-03-02": 4}


def test_references_change_from_a_moment_on_and_a_correction_keeps_those_of_what_it_corrects() -> None:
    steps = [
        subscribe(day(0), "s", order_reference="4711"),
        run(day(0)),
        {"at": day(10), "references": {"subscription": "s", "order_reference": "4712"}},
        {"at": day(16), "cancel": {"subscription": "s", "when": "now"}},
        {"at": day(16), "ad_hoc": {"customer": "c", "subscription": "s", "code": "end", "amount": "5", "tax": "none"}},
        run(day(31)),
    ]
    made = documents(life([plan(flat("31"))], steps, customers=customer(document_per="order")))
    assert [(one["type"], one["group"], one["net"]) for one in made] == [
        ("invoice", "4711", "31.00"),
        ("credit_note", "4711", "15.00"),
        ("invoice", "4712", "5.00"),
    ]


def test_an_invoice_made_again_keeps_its_head_and_only_that_of_the_contract_is_made_again() -> None:
    steps = [
        subscribe(day(0), "s", order_reference="4711"),
        subscribe(day(0), "t", order_reference="4712"),
        used(day(5), (day(5), "3"), subscription="s"),
        used(day(5), (day(5), "4"), subscription="t"),
        run(day(31)),
        {"at": day(32), "references": {"subscription": "s", "order_reference": "9"}},
        used(day(33), (day(6), "2"), subscription="s"),
        run(day(34)),
    ]
    form = life([plan(usage())], steps, customers=customer(document_per="order"), tenant={"late_usage": "reissue"})
    made = documents(form)
    assert [(one["type"], one["group"], one["net"], one["refers_to"]) for one in made] == [
        ("invoice", "4711", "3.00", None),
        ("invoice", "4712", "4.00", None),
        ("credit_note", "4711", "3.00", "1"),
        ("invoice", "4711", "5.00", "1"),
    ]


def test_late_usage_of_a_contract_without_a_line_makes_no_others_document_again() -> None:
    """Nobody's document is taken back for lines that are not on it: a correction comes with the next one."""
    steps = [
        subscribe(day(0), "s", order_reference="4711"),
        subscribe(day(0), "t", order_reference="4712"),
        used(day(5), (day(5), "3"), subscription="s"),
        run(day(31)),
        used(day(33), (day(6), "2"), subscription="t"),
        run(day(34)),
    ]
    form = life([plan(usage())], steps, customers=customer(document_per="order"), tenant={"late_usage": "reissue"})
    assert [(one["type"], one["group"], one["net"]) for one in documents(form)] == [
        ("invoice", "4711", "3.00"),
        ("invoice", "4712", "2.00"),
    ]


def test_a_discount_is_taken_off_its_own_contracts_document_and_credit_goes_to_one_after_the_other() -> None:
    steps = [
        {"at": day(0), "top_up": {"customer": "c", "amount": "8", "kind": "promotional"}},
        {"at": day(0), "top_up": {"customer": "c", "amount": "9", "kind": "purchased"}},
        subscribe(day(0), "s", order_reference="1", discounts=[{"amount": "4", "times": "1"}]),
        subscribe(day(0), "t", order_reference="2"),
        run(day(0)),
    ]
    made = documents(life([plan(flat("10"))], steps, customers=customer(document_per="order")))
    assert [(one["group"], one["allowances"], one["prepaid"], one["due"]) for one in made] == [
        ("1", [{"kind": "discount", "amount": "4.00"}, {"kind": "promotional", "amount": "6.00"}], "0.00", "0.00"),
        ("2", [{"kind": "promotional", "amount": "2.00"}], "8.00", "0.00"),
    ]
    together = documents(life([plan(flat("10"))], steps))
    assert (together[0]["prepaid"], together[0]["due"]) == ("8.00", "0.00")


def test_the_payers_setting_counts_for_the_lines_of_those_he_pays_for() -> None:
    customers = [*customer(code="p", document_per="cost_centre"), *customer(payer="p", document_per="subscription")]
    steps = [
        subscribe(day(0), "s", cost_centre="K1"),
        subscribe(day(0), "t", customer="p", cost_centre="K1"),
        subscribe(day(0), "u", customer="p"),
        run(day(0)),
    ]
    made = documents(life([plan(flat("10"))], steps, customers=customers))
    assert [(one["customer"], one["group"], [line["customer"] for line in one["lines"]]) for one in made] == [
        ("p", "", ["p"]),
        ("p", "K1", ["c", "p"]),
    ]


def test_a_credit_note_by_hand_has_the_head_of_its_invoice() -> None:
    form = life([plan(flat("10"))], [*THREE, run(day(0))], customers=customer(document_per="order"))
    billed = documents_of(form)[2]
    for lines in (None, [CreditLine(1, Decimal("3.00"))]):
        assert credit_note(billed, billed.document.date, lines=lines).group == billed.document.group


def test_a_document_of_no_group_is_written_as_before_and_one_of_a_group_is_read_again() -> None:
    form = life([plan(flat("10"))], [*THREE, run(day(0))])
    whole = documents_of(form)[0].document
    assert b'"group"' not in document_json(whole)
    assert document_from(document_json(whole)) == whole
    shuffled = dict(reversed(list(msgspec.json.decode(document_json(whole)).items())))  # as SQL's JSON gives it
    assert document_json(document_from({"group": None, **shuffled})) == document_json(whole)
    group = DocumentGroup("order", "4711", "4711")
    split = documents_of({**form, "customers": customer(document_per="order")})[1].document
    assert split.group == group
    assert document_from(document_json(split)) == split


def test_what_was_said_before_a_reference_was_looked_at_is_read_as_it_can_be() -> None:
    form = life([plan(flat("10"))], [])
    steps = [*({"tax_code": one} for one in form["tax_codes"]), {"publish": {"plan": form["plans"][0]}}]
    steps += [{"customer": {"code": "c"}}, subscribe(day(0), "s", order_reference=["4711"])]
    master = MasterData.start(form["tenant"]).apply_all(steps)
    assert master.subscriptions["s"].references == ()
    with pytest.raises(InvalidInput):
        MasterData.start(form["tenant"]).apply_all(steps, fresh=True)


@pytest.mark.parametrize(
    ("step", "pointer"),
    [
        ({"references": {"subscription": "x", "order_reference": "1"}}, "/references/subscription"),
        ({"references": {"subscription": "e"}}, "/references/order_reference"),
        ({"references": {"subscription": "e", "order_reference": " 1"}}, "/references/order_reference"),
        ({"references": {"subscription": "e", "cost_centre": "x" * 201}}, "/references/cost_centre"),
        ({"references": {"subscription": "e", "leitweg_id": "04011000-1234512345-07"}}, "/references/leitweg_id"),
        ({"references": {"subscription": "e", "project": "1"}}, "/references/project"),
        ({"documents": {"per": "contract"}}, "/documents/per"),
        ({"customer": {"code": "c", "document_per": "invoice"}}, "/customer/document_per"),
        ({"customer": {"code": "c", "leitweg_id": "1"}}, "/customer/leitweg_id"),
    ],
)
def test_what_cannot_stand_on_a_document_is_refused_by_its_place(step: dict[str, Any], pointer: str) -> None:
    form = life([plan(flat("10"))], [*THREE, {"at": day(1), **step}])
    with pytest.raises(InvalidInput) as found:
        documents_of(form)
    assert found.value.errors[0].pointer.endswith(pointer)


def test_references_come_in_order_of_time() -> None:
    changes = [{"at": day(n), "references": {"subscription": "e", "order_reference": str(n)}} for n in (5, 5, 3)]
    master = MasterData.start({"currency": "EUR"}).apply_all(
        [
            {"tax_code": {"code": "none", "percents": [{"from": "2000-01-01", "percent": "0"}]}},
            {"publish": {"plan": plan(flat("1"))}},
            {"customer": {"code": "c"}},
            subscribe(day(0), "e"),
            *changes[:2],
        ]
    )
    subscription = master.subscriptions["e"]
    at = [subscription.references_at(parse_moment(day(n), "UTC")).order_reference for n in (0, 4, 5, 9)]
    assert at == ["", "", "5", "5"]
    with pytest.raises(InvalidInput, match="later references"):
        master.apply(changes[2])
    assert MasterData.from_bytes(master.to_bytes()).subscriptions["e"] == subscription


# -- Whatever happens --------------------------------------------------------------------------------------------------


@st.composite
def many(draw: st.DrawFn) -> tuple[dict[str, Any], list[int]]:
    """A life of `s` and two more contracts whose references change, and when it is billed."""
    form, _ = draw(lives())
    words = st.sampled_from([None, "1", "2"])
    steps = list(form["timeline"])
    for code in ("t", "u"):
        said = {"order_reference": draw(words), "cost_centre": draw(words), "buyer_reference": draw(words)}
        form_ = subscribe(day(draw(days)), code, plan=draw(st.sampled_from("pq")))
        form_["subscribe"].update(said)
        steps.append(form_)
    for moment in draw(st.lists(days, max_size=3)):
        change = {"order_reference": draw(words), "buyer_reference": draw(words), "cost_centre": draw(words)}
        steps.append({"at": day(moment), "references": {"subscription": "s", **change}})
    steps.sort(key=lambda step: step["at"])
    return {**form, "timeline": steps}, [*draw(st.lists(days, min_size=1, max_size=3)), 90]


def per(form: dict[str, Any], setting: str) -> dict[str, Any]:
    return {**form, "customers": customer(document_per=setting)}


def stated(made: list[Document]) -> Counter[tuple[Any, ...]]:
    """Every line with its signed amount before the document's own discounts and tax."""
    return Counter(
        (line.contract, line.charge, line.start, line.end, line.step, str(line.when), sign * line.stated)
        for one in made
        for line in one.lines
        if (sign := -1 if one.type == "credit_note" else 1)
    )


@settings(max_examples=25, deadline=None)
@given(many(), st.sampled_from(DOCUMENT_PER[1:]))
def test_the_lines_of_all_documents_are_those_of_one_document(made: tuple[dict[str, Any], list[int]], by: str) -> None:
    form = with_runs(*made)
    split = [one.document for one in documents_of(per(form, by))]
    assert stated(split) == stated([one.document for one in documents_of(form)])
    for document in split:
        check_sums(document)
        assert document.group is not None
        assert document.group.per == by


@settings(max_examples=10, deadline=None)
@given(many(), st.sampled_from(DOCUMENT_PER[1:]))
def test_a_contracts_sum_is_the_same_where_invoices_are_made_again(
    made: tuple[dict[str, Any], list[int]], by: str
) -> None:
    form = with_runs(*made)
    form["tenant"]["late_usage"] = "reissue"

    def sums(of: dict[str, Any]) -> dict[tuple[str, str], Decimal]:
        found: dict[tuple[str, str], Decimal] = {}
        for one in documents_of(of):
            for line in one.document.lines:
                sign = -1 if one.document.type == "credit_note" else 1
                found[line.contract] = found.get(line.contract, ZERO) + sign * line.stated
        return {contract: amount for contract, amount in found.items() if amount}

    assert sums(per(form, by)) == sums(form)


@settings(max_examples=10, deadline=None)
@given(many(), st.sampled_from(DOCUMENT_PER[1:]), st.sampled_from(["delta", "reissue"]))
def test_a_bill_run_sees_enough_to_group_as_the_scenario_does(
    made: tuple[dict[str, Any], list[int]], by: str, late_usage: str
) -> None:
    form = per(with_runs(*made), by)
    form["tenant"]["late_usage"] = late_usage
    assert as_the_platform_bills(form) == [one.document for one in documents_of(form)]


def centres(made: list[dict[str, Any]]) -> list[list[str | None]]:
    return [[line["cost_centre"] for line in one["lines"]] for one in made]


def test_each_line_says_the_cost_centre_of_its_contract_when_its_document_is_made() -> None:
    steps = [
        *THREE,
        {"at": day(0), "ad_hoc": {"customer": "c", "code": "repair", "amount": "5", "tax": "none"}},
        run(day(0)),
        {"at": day(10), "references": {"subscription": "a", "cost_centre": "K9"}},
        {"at": day(16), "cancel": {"subscription": "a", "when": "now"}},
        {"at": day(20), "references": {"subscription": "b", "cost_centre": "K8"}},
        run(day(31)),
    ]
    # Without a contract, K2 of a, K1 of b, K1 of d, none of e; what is taken back of a is booked where it was.
    assert centres(documents(life([plan(flat("31"))], steps))) == [
        [None, "K2", "K1", "K1", None],
        ["K2", "K8", "K1", None],
    ]
    by_order = documents(life([plan(flat("31"))], steps, customers=customer(document_per="order")))
    said = sorted(centre for one in centres(by_order) for centre in one if centre)
    assert said == ["K1", "K1", "K1", "K2", "K2", "K8"]


def test_a_document_made_again_and_a_correction_keep_the_cost_centre_of_the_line() -> None:
    for late_usage, expected in (("delta", [["K1"], ["K1"]]), ("reissue", [["K1"]] * 3)):
        steps = [
            subscribe(day(0), "s", cost_centre="K1"),
            used(day(5), (day(5), "3")),
            run(day(31)),
            {"at": day(32), "references": {"subscription": "s", "cost_centre": "K2"}},
            used(day(33), (day(6), "2")),
            run(day(34)),
        ]
        form = life([plan(usage())], steps, tenant={"late_usage": late_usage})
        assert centres(documents(form)) == expected
        whole = documents_of(form)[0]
        note = credit_note(whole, whole.document.date, lines=[CreditLine(1, Decimal("1.00"))])
        assert [line.cost_centre for line in note.lines] == ["K1"]


def test_a_scenario_states_the_head_of_its_documents() -> None:
    form = life([plan(flat("10"))], [*THREE, run(day(0))], customers=customer(document_per="order"))
    wanted = [{"group": "", "order_reference": None}, {"group": "4711", "order_reference": "4711"},
              {"group": "4712", "buyer_reference": LEITWEG, "cost_centre": "K1"}]  # fmt: skip
    assert check_scenario({**form, "expect": {"documents": wanted}}) == []
    wrong = [*wanted[:2], {**wanted[2], "buyer_reference": "x"}]
    assert len(check_scenario({**form, "expect": {"documents": wrong}})) == 1
