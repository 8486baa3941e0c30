"""Corner cases of periods, pieces, discounts and documents, each with its arithmetic in words (docs/rules.md)."""

from __future__ import annotations

from typing import Any

import pytest
from lives import documents, flat, life, lines, plan, run, subscribe, usage, used

from billing.errors import InvalidInput
from billing.scenario import check_scenario, documents_of


def nets(scenario: dict[str, Any]) -> list[tuple[str, str]]:
    return [(document["type"], document["net"]) for document in documents(scenario)]


def test_an_anniversary_runs_from_the_local_time_of_the_start_in_full_periods() -> None:
    start = "2026-01-10T15:30:00+01:00"
    made = documents(life([plan(flat("30"))], [subscribe(start, anchor="anniversary"), run("2026-02-11")]))
    assert lines(made[0]) == [
        ("base", start, "2026-02-10T15:30:00+01:00", "1", "30.00"),
        ("base", "2026-02-10T15:30:00+01:00", "2026-03-10T15:30:00+01:00", "1", "30.00"),
    ]


def test_on_the_calendar_a_day_that_has_begun_does_not_count() -> None:
    """31.00 from 10 January 15:30: the 11th to the 31st are 21 days."""
    start = "2026-01-10T15:30:00+01:00"
    made = documents(life([plan(flat("31"))], [subscribe(start), run("2026-01-11")]))
    assert lines(made[0]) == [("base", start, "2026-02-01", "1", "21.00")]


def test_a_piece_without_a_counted_day_makes_no_line() -> None:
    """From 31 January 15:30 to midnight no day begins; February is a line of its own."""
    made = documents(life([plan(flat("31"))], [subscribe("2026-01-31T15:30:00+01:00"), run("2026-02-01")]))
    assert lines(made[0]) == [("base", "2026-02-01", "2026-03-01", "1", "31.00")]


def test_the_day_of_a_change_in_the_morning_is_the_old_plans() -> None:
    """Change on the 11th at 06:00: the old plan has 11 days of 31, the new one 20."""
    change = {"at": "2026-01-11T06:00:00+01:00", "change": {"subscription": "s", "plan": "q", "when": "now"}}
    plans = [plan(flat("31", timing="arrears")), plan(flat("62", timing="arrears"), code="q")]
    made = documents(life(plans, [subscribe("2026-01-01"), change, run("2026-02-01")]))
    assert [line[4] for line in lines(made[0])] == ["11.00", "40.00"]


QUARTERS = [("2026-11-30", "2027-02-28"), ("2027-02-28", "2027-05-30"), ("2027-05-30", "2027-08-30")]


def test_quarters_from_the_last_day_of_november_come_back_to_the_30th() -> None:
    made = documents(
        life([plan(flat("9"), interval="quarter")], [subscribe("2026-11-30", anchor="anniversary"), run("2027-06-01")])
    )
    assert [line[1:3] for line in lines(made[0])] == QUARTERS


def test_a_change_before_the_period_was_billed_gives_no_credit_line() -> None:
    change = {"at": "2026-01-11", "change": {"subscription": "s", "plan": "q", "when": "now"}}
    made = documents(
        life([plan(flat("31")), plan(flat("62"), code="q")], [subscribe("2026-01-01"), change, run("2026-01-31")])
    )
    assert lines(made[0]) == [
        ("base", "2026-01-01", "2026-01-11", "1", "10.00"),
        ("base", "2026-01-11", "2026-02-01", "1", "42.00"),
    ]


def test_without_refund_the_whole_started_period_is_owed_also_when_billed_later() -> None:
    cancel = {"at": "2026-01-11", "cancel": {"subscription": "s", "when": "now", "refund_unused": False}}
    made = documents(life([plan(flat("31"))], [subscribe("2026-01-01"), cancel, run("2026-02-01")]))
    assert lines(made[0]) == [("base", "2026-01-01", "2026-02-01", "1", "31.00")]


@pytest.mark.parametrize("refund", [True, False])
def test_with_refund_or_not_a_cancellation_on_the_day_of_the_bill_run(refund: bool) -> None:
    """February is billed on the 1st, then cancelled at the same moment: all of it back, or nothing."""
    cancel = {"at": "2026-02-01", "cancel": {"subscription": "s", "when": "now", "refund_unused": refund}}
    made = nets(life([plan(flat("28"))], [subscribe("2026-02-01"), run("2026-02-01"), cancel, run("2026-03-01")]))
    assert made == ([("invoice", "28.00"), ("credit_note", "28.00")] if refund else [("invoice", "28.00")])


def test_without_proration_a_started_period_is_due_in_full_and_changes_wait() -> None:
    """Start on the 10th: all of January. The new quantity and the new plan wait for the next period."""
    charge = flat("31", proration="none")
    steps = [
        subscribe("2026-01-10"),
        run("2026-01-10"),
        {"at": "2026-01-15", "quantity": {"subscription": "s", "charge": "base", "quantity": "3"}},
        run("2026-02-01"),
        {"at": "2026-02-10", "change": {"subscription": "s", "plan": "q", "when": "now"}},
        run("2026-03-01"),
        {"at": "2026-03-10", "cancel": {"subscription": "s", "when": "now"}},
        run("2026-05-01"),
    ]
    made = documents(life([plan(charge), plan(flat("50", proration="none"), code="q")], steps))
    assert [lines(document) for document in made] == [
        [("base", "2026-01-10", "2026-02-01", "1", "31.00")],
        [("base", "2026-02-01", "2026-03-01", "3", "93.00")],
        [("base", "2026-03-01", "2026-04-01", "3", "150.00")],
    ]


def test_without_proration_arrears_end_with_the_cancellation_at_the_full_amount() -> None:
    cancel = {"at": "2026-01-11", "cancel": {"subscription": "s", "when": "now"}}
    charge = flat("31", proration="none", timing="arrears")
    made = documents(life([plan(charge)], [subscribe("2026-01-01"), cancel, run("2026-02-01")]))
    assert lines(made[0]) == [("base", "2026-01-01", "2026-01-11", "1", "31.00")]


def test_a_quantity_stays_with_the_charge_over_a_plan_change_and_an_override_ends() -> None:
    steps = [
        subscribe("2026-01-01", quantities={"base": "2"}),
        {
            "at": "2026-01-01",
            "override": {"subscription": "s", "charge": "base", "price": {"model": "flat", "amount": "1"}},
        },
        {"at": "2026-01-11", "quantity": {"subscription": "s", "charge": "base", "quantity": "3"}},
        {"at": "2026-01-21", "change": {"subscription": "s", "plan": "q", "when": "now"}},
        run("2026-02-01"),
    ]
    plans = [plan(flat("31", timing="arrears")), plan(flat("310", timing="arrears"), code="q")]
    # 2 x 1 x 10/31 = 0.645; 3 x 1 x 10/31 = 0.968 (the override still holds); 3 x 310 x 11/31 = 330
    made = documents(life(plans, steps))
    assert [line[3:] for line in lines(made[0])] == [("2", "0.65"), ("3", "0.97"), ("3", "330.00")]


def test_an_override_of_an_advance_charge_that_is_billed_gives_a_credit_line_and_a_new_one() -> None:
    steps = [
        subscribe("2026-01-01"),
        run("2026-01-01"),
        {
            "at": "2026-01-11",
            "override": {"subscription": "s", "charge": "base", "price": {"model": "flat", "amount": "62"}},
        },
        run("2026-01-11"),
    ]
    made = documents(life([plan(flat("31"))], steps))
    assert lines(made[1]) == [
        ("base", "2026-01-11", "2026-02-01", "-1", "-21.00"),
        ("base", "2026-01-11", "2026-02-01", "1", "42.00"),
    ]
    assert made[1]["lines"][0]["corrects"] == {"document": "1", "line": "1"}


def test_a_credit_takes_back_the_discount_and_the_tax_percent_of_its_line() -> None:
    """31.00 less 10 % at 20 % tax; the customer moves abroad, half of it comes back at 20 % all the same."""
    steps = [
        subscribe("2026-01-01", discounts=[{"percent": "10"}]),
        run("2026-01-01"),
        {"at": "2026-01-11", "customer": {"code": "c", "tax_treatment": "outside_scope"}},
        {"at": "2026-01-11", "cancel": {"subscription": "s", "when": "now"}},
        run("2026-01-11"),
    ]
    made = documents(life([plan({**flat("31"), "tax": "vat"})], steps))
    assert made[1]["type"] == "credit_note"
    assert made[1]["lines"][0] | {"allowance": "2.10", "amount": "18.90", "tax_percent": "20"} == made[1]["lines"][0]
    assert made[1]["gross"] == "22.68"


def test_a_zero_sum_is_an_invoice_and_a_negative_one_a_credit_note() -> None:
    assert nets(life([plan(flat("0"))], [subscribe("2026-01-01"), run("2026-01-01")])) == [("invoice", "0.00")]
    assert nets(life([plan(flat("-5"))], [subscribe("2026-01-01"), run("2026-01-01")])) == [("credit_note", "5.00")]


def test_an_amount_discount_is_used_by_invoices_with_a_positive_net_only() -> None:
    """The first invoice is 0.00 and uses nothing; the second takes 5 of 7, the rest lapses."""
    steps = [
        subscribe("2026-01-01", quantities={"base": "0"}, discounts=[{"amount": "7"}]),
        run("2026-01-01"),
        {"at": "2026-02-01", "quantity": {"subscription": "s", "charge": "base", "quantity": "1"}},
        run("2026-02-01"),
        run("2026-03-01"),
    ]
    made = documents(life([plan(flat("5"))], steps))
    assert [(one["net"], [a["amount"] for a in one["allowances"]]) for one in made] == [
        ("0.00", []),
        ("0.00", ["5.00"]),
        ("5.00", []),
    ]


def test_equal_remainders_go_to_the_smaller_category_and_parts_sum_up() -> None:
    """3.33 over 10.00 at 20 % (S) and 10.00 at 0 % (Z): 1.67 and 1.66."""
    charges = [flat("10", "a"), {**flat("10", "b"), "tax": "vat"}]
    made = documents(
        life([plan(*charges)], [subscribe("2026-01-01", discounts=[{"amount": "3.33"}]), run("2026-01-01")])
    )
    assert [(tax["category"], tax["base"]) for tax in made[0]["taxes"]] == [("S", "8.33"), ("Z", "8.34")]


def test_a_minimum_of_a_usage_charge_is_owed_without_usage() -> None:
    made = documents(life([plan(usage(minimum="5"))], [subscribe("2026-01-01"), run("2026-02-01")]))
    assert lines(made[0]) == [("n", "2026-01-01", "2026-02-01", "0", "5.00")]


def test_late_usage_changes_the_plan_minimum_by_a_correction() -> None:
    """30 used + 20 minimum, then 15 late: +15.00 and a correction minimum of -15.00 (quantity -1)."""
    steps = [
        subscribe("2026-01-01"),
        used("2026-01-10", ("2026-01-09", "30")),
        run("2026-02-01"),
        used("2026-02-05", ("2026-01-20", "15")),
        {"at": "2026-02-05", "cancel": {"subscription": "s", "when": "period_end"}},
        run("2026-02-28"),
    ]
    made = documents(life([plan(usage(), minimum="50")], steps))
    assert lines(made[0]) == [
        ("n", "2026-01-01", "2026-02-01", "30", "30.00"),
        ("minimum", "2026-01-01", "2026-02-01", "1", "20.00"),
    ]
    assert lines(made[1]) == [
        ("n", "2026-01-01", "2026-02-01", "15", "15.00"),
        ("minimum", "2026-01-01", "2026-02-01", "-1", "-15.00"),
    ]
    assert [line["corrects"] for line in made[1]["lines"]] == [
        {"document": "1", "line": "1"},
        {"document": "1", "line": "2"},
    ]
    assert made[1]["type"] == "invoice"


def test_events_of_a_late_unknown_customer_are_billed_as_a_correction_only_where_the_period_was_billed() -> None:
    """A subscription that starts in the past is billed as such: nothing of it was billed before."""
    steps = [
        run("2026-02-01"),
        subscribe("2026-02-10", start="2026-01-01"),
        used("2026-02-10", ("2026-01-20", "3")),
        run("2026-02-10"),
    ]
    made = documents(life([plan(usage())], steps))
    assert made[0]["lines"][0]["correction"] is False
    assert lines(made[0]) == [("n", "2026-01-01", "2026-02-01", "3", "3.00")]


def test_periods_due_at_several_dates_come_on_one_invoice_dated_by_the_clock() -> None:
    made = documents(life([plan(flat("10"))], [subscribe("2026-01-01"), run("2026-03-15", "2026-03-01")]))
    assert made[0]["date"] == "2026-03-15"
    assert len(made[0]["lines"]) == 3


def test_a_second_run_with_nothing_new_makes_nothing() -> None:
    steps = [subscribe("2026-01-01"), used("2026-01-10", ("2026-01-09", "5")), run("2026-02-01"), run("2026-02-01")]
    assert len(documents(life([plan(flat("3"), usage())], steps))) == 1


REISSUE = {"tenant": {"late_usage": "reissue"}}


def test_a_reissued_invoice_is_the_one_that_a_second_late_event_corrects() -> None:
    steps = [
        subscribe("2026-01-01"),
        used("2026-01-10", ("2026-01-09", "5")),
        run("2026-02-01"),
        used("2026-02-02", ("2026-01-09", "1")),
        run("2026-02-02"),
        used("2026-02-03", ("2026-01-09", "2")),
        run("2026-02-03"),
    ]
    made = documents(life([plan(usage())], steps, **REISSUE))
    assert [(one["type"], one["net"], one["refers_to"]) for one in made] == [
        ("invoice", "5.00", None),
        ("credit_note", "5.00", "1"),
        ("invoice", "6.00", "1"),
        ("credit_note", "6.00", "3"),
        ("invoice", "8.00", "3"),
    ]


def test_an_invoice_that_was_credited_by_hand_is_not_reissued() -> None:
    steps = [
        subscribe("2026-01-01"),
        used("2026-01-10", ("2026-01-09", "5")),
        run("2026-02-01"),
        {"at": "2026-02-02", "credit_note": {"document": "1"}},
        used("2026-02-02", ("2026-01-09", "1")),
        run("2026-02-02"),
    ]
    made = documents(life([plan(usage())], steps, **REISSUE))
    assert [(one["type"], one["net"], one["lines"][0]["correction"]) for one in made] == [
        ("invoice", "5.00", False),
        ("credit_note", "5.00", False),
        ("invoice", "1.00", True),
    ]


def test_a_reissue_decides_the_plan_minimum_again_and_keeps_the_same_discount() -> None:
    """30 used + 20 minimum less 5; 10 late: 40 + 10 less 5. The credit note shows both."""
    steps = [
        subscribe("2026-01-01", discounts=[{"amount": "5"}]),
        used("2026-01-10", ("2026-01-09", "30")),
        run("2026-02-01"),
        used("2026-02-02", ("2026-01-09", "10")),
        run("2026-02-02"),
    ]
    made = documents(life([plan(usage(), minimum="50")], steps, **REISSUE))
    assert [(one["type"], one["net"]) for one in made] == [
        ("invoice", "45.00"),
        ("credit_note", "45.00"),
        ("invoice", "45.00"),
    ]
    assert [line[4] for line in lines(made[2])] == ["40.00", "10.00"]


def test_credit_by_lines_never_gives_back_more_tax_than_the_invoice_had() -> None:
    """68.33 twice at 20 %: the invoice's tax is 27.33; 13.67, then 13.66."""
    charges = [{**flat("68.33", code), "tax": "vat"} for code in ("a", "b")]
    steps = [
        subscribe("2026-01-01"),
        run("2026-01-01"),
        {"at": "2026-01-02", "credit_note": {"document": "1", "lines": [{"line": "1"}]}},
        {"at": "2026-01-02", "credit_note": {"document": "1", "lines": [{"line": "2"}]}},
    ]
    made = documents(life([plan(*charges)], steps))
    assert [one["taxes"][0]["amount"] for one in made] == ["27.33", "13.67", "13.66"]


def test_credit_by_lines_takes_its_share_of_the_document_allowances() -> None:
    """100.00 and 50.00 less 10.00: crediting the 100.00 takes 6.67 of the allowance, the rest 3.33."""
    steps = [
        subscribe("2026-01-01", discounts=[{"amount": "10"}]),
        run("2026-01-01"),
        {"at": "2026-01-02", "credit_note": {"document": "1", "lines": [{"line": "1"}]}},
        {"at": "2026-01-02", "credit_note": {"document": "1", "lines": [{"line": "2"}]}},
    ]
    made = documents(life([plan(flat("100", "a"), flat("50", "b"))], steps))
    assert [(one["net"], one["allowances"][0]["amount"]) for one in made[1:]] == [("93.33", "6.67"), ("46.67", "3.33")]


def test_more_than_is_left_of_a_line_cannot_be_credited() -> None:
    steps = [
        subscribe("2026-01-01"),
        run("2026-01-01"),
        {"at": "2026-01-02", "credit_note": {"document": "1", "lines": [{"line": "1", "amount": "3"}]}},
        {"at": "2026-01-02", "credit_note": {"document": "1", "lines": [{"line": "1", "amount": "8"}]}},
    ]
    with pytest.raises(InvalidInput, match=r"at most 7\.00"):
        documents(life([plan(flat("10"))], steps))


def test_a_change_to_another_interval_starts_a_new_anniversary_grid() -> None:
    steps = [
        subscribe("2026-01-10", anchor="anniversary"),
        {"at": "2026-01-20", "change": {"subscription": "s", "plan": "q", "when": "now"}},
        run("2026-02-01"),
    ]
    plans = [plan(flat("31", timing="arrears")), plan(flat("91"), code="q", interval="quarter")]
    made = documents(life(plans, steps))
    assert lines(made[0]) == [
        ("base", "2026-01-10", "2026-01-20", "1", "10.00"),
        ("base", "2026-01-20", "2026-04-20", "1", "91.00"),
    ]


def test_prorated_usage_scales_bounds_but_not_units() -> None:
    """16 of 31 days: included 31 becomes 16, so of 20 units 4 are paid at 1."""
    made = documents(
        life(
            [plan(usage(included="31", prorate_usage=True))],
            [subscribe("2026-01-16"), used("2026-01-20", ("2026-01-19", "20")), run("2026-02-01")],
        )
    )
    assert lines(made[0]) == [("n", "2026-01-16", "2026-02-01", "20", "4.00")]


def test_a_treatment_counts_from_its_step_on_by_the_tax_point() -> None:
    """January ends under domestic tax, February under reverse charge, though both are on one invoice."""
    steps = [
        subscribe("2026-01-01"),
        {"at": "2026-02-10", "customer": {"code": "c", "tax_treatment": "reverse_charge"}},
        run("2026-03-01"),
    ]
    made = documents(life([plan({**flat("10", timing="arrears"), "tax": "vat"})], steps))
    assert [(tax["category"], tax["percent"], tax["base"]) for tax in made[0]["taxes"]] == [
        ("AE", "0", "10.00"),
        ("S", "20", "10.00"),
    ]


def test_wallet_credit_given_back_by_a_whole_credit_note_pays_the_next_invoice() -> None:
    steps = [
        {"at": "2026-01-01", "top_up": {"customer": "c", "amount": "10", "kind": "purchased"}},
        subscribe("2026-01-01"),
        run("2026-01-01"),
        {"at": "2026-01-02", "credit_note": {"document": "1"}},
        run("2026-02-01"),
    ]
    made = documents(life([plan(flat("8"))], steps))
    assert [(one["prepaid"], one["due"]) for one in made] == [("8.00", "0.00"), ("8.00", "0.00"), ("8.00", "0.00")]


def test_committed_credit_is_used_even_if_it_has_expired_since() -> None:
    steps = [
        {"at": "2026-01-01", "top_up": {"customer": "c", "amount": "10", "kind": "purchased", "expires": "2026-01-15"}},
        {"at": "2026-01-02", "reserve": {"customer": "c", "id": "r", "amount": "6"}},
        {"at": "2026-01-02", "commit": {"id": "r", "amount": "4"}},
        subscribe("2026-02-01"),
        run("2026-02-01"),
    ]
    made = documents(life([plan(flat("8"))], steps))
    assert (made[0]["prepaid"], made[0]["due"]) == ("4.00", "4.00")


def test_a_budget_alerts_at_once_for_what_is_already_spent() -> None:
    steps = [
        subscribe("2026-01-01"),
        used("2026-01-10", ("2026-01-09", "60")),
        {
            "at": "2026-01-12",
            "budget": {"code": "b", "customer": "c", "amount": "100", "period": "month", "thresholds": ["50", "100"]},
        },
        used("2026-01-13", ("2026-01-13", "40")),
    ]
    alerts = [
        {"budget": "b", "threshold": "50", "at": "2026-01-12"},
        {"budget": "b", "threshold": "100", "at": "2026-01-13"},
    ]
    assert check_scenario(life([plan(usage())], steps, expect={"alerts": alerts})) == []


def test_ten_euros_of_use_hold_eleven_ninety_of_purchased_credit() -> None:
    steps = [
        {"at": "2026-01-01", "top_up": {"customer": "c", "amount": "100", "kind": "purchased"}},
        subscribe("2026-01-01"),
        {"at": "2026-01-02", "reserve": {"customer": "c", "id": "r", "usage": {"meter": "n", "quantity": "10"}}},
    ]
    form = life([plan({**usage(), "tax": "vat"})], steps, expect={"wallets": [{"customer": "c", "reserved": "12.00"}]})
    assert check_scenario(form) == []


def test_every_line_says_how_it_came_about() -> None:
    tiers = [{"up_to": "10", "unit": "1"}, {"up_to": None, "unit": "0.5"}]
    charge = {**usage(), "price": {"model": "graduated", "tiers": tiers}}
    steps = [subscribe("2026-01-16"), used("2026-01-20", ("2026-01-19", "12")), run("2026-02-01")]
    made = documents_of(life([plan(flat("31", timing="arrears"), charge)], steps))[0].document
    fee, use = made.lines
    assert fee.explanation["proration"] == {"active": 16, "full": 31, "by": "day"}
    assert fee.explanation["exact"] == "16"
    assert use.explanation["tiers"] == [
        {"up_to": "10", "quantity": "10", "unit": "1", "flat": "0", "amount": "10"},
        {"up_to": None, "quantity": "2", "unit": "0.5", "flat": "0", "amount": "1"},
    ]
    assert (use.explanation["exact"], use.explanation["events"]) == ("11", 1)
    assert use.explanation["first"] == use.explanation["last"] == "2026-01-18T23:00:00Z"
    assert use.explanation["catalog"] == {"plan": "p", "version": 1, "charge": "n"}
