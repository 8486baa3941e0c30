"""Reading forms: what each kind of field takes, what it says of a mistake, and what stands in its place meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from billing.errors import FieldError, InvalidInput
from billing.forms import NO_MOMENT, Form, Mistakes, decimal_of, escape

BERLIN = "Europe/Berlin"
NUMBER = "is no decimal number of at most 14 digits before and 12 after the point, as text"
DATES = "neither a date (2026-01-31) nor a time (2026-01-31T10:00:00+01:00)"
DEFAULT = datetime(2026, 1, 1, tzinfo=UTC)
Ask = Callable[[Form], object]


def text(form: Form) -> object:
    return form.text("a")


def code(form: Form) -> object:
    return form.code("a")


def own_code(form: Form) -> object:
    return form.code()


def choice(form: Form) -> object:
    return form.choice("a", ("x", "y"))


def number(form: Form) -> object:
    return form.decimal("a", least=Decimal(1))


def positive(form: Form) -> object:
    return form.decimal("a", required=False, above=Decimal(0))


def count(form: Form) -> object:
    return form.count("a", 7, 2, 9)


def moment(form: Form) -> object:
    return form.moment("a", BERLIN)


def texts(form: Form) -> object:
    return form.texts("a")


# what is asked for, what was sent, what comes out, what is said (by place)
FIELDS: list[tuple[Ask, Any, object, dict[str, str]]] = [
    (text, "x", "x", {}),
    (text, "x" * 4_000, "x" * 4_000, {}),
    (text, "x" * 4_001, "x" * 4_001, {"/a": "is longer than 4000 characters"}),
    (text, None, "", {"/a": "is missing"}),
    (text, "", "", {"/a": "a text is needed"}),
    (text, 5, "", {"/a": "a text is needed"}),
    (lambda form: form.text("a", "usual"), None, "usual", {}),
    (lambda form: form.text("a", "usual"), "", "", {}),
    (lambda form: form.text("a", "usual"), 5, "usual", {"/a": "a text is needed"}),
    (lambda form: form.text("a", "", 3), "four", "four", {"/a": "is longer than 3 characters"}),
    (code, " x", " x", {}),  # a reference finds what it names or nothing; only a new code is held to this
    (code, "x" * 257, "x" * 257, {"/a": "is longer than 256 characters"}),
    (code, "a\tb", "a\tb", {"/a": "must hold printable characters only"}),
    (choice, "y", "y", {}),
    (choice, "z", "x", {"/a": "must be one of x, y, not 'z'"}),
    (choice, None, "x", {"/a": "is missing"}),
    (lambda form: form.choice("a", ("x", "y"), "y"), None, "y", {}),
    (lambda form: form.choice("a", ("x", "y"), "y"), "z", "y", {"/a": "must be one of x, y, not 'z'"}),
    (lambda form: form.choice("a", ("x", "y"), ""), None, "", {}),
    (lambda form: form.truth("a", True), None, True, {}),
    (lambda form: form.truth("a", True), False, False, {}),
    (lambda form: form.truth("a", True), "no", True, {"/a": "true or false is needed"}),
    (lambda form: form.truth("a", False), 1, False, {"/a": "true or false is needed"}),
    (number, "1", Decimal(1), {}),
    (number, 5, Decimal(5), {}),
    (number, "0.999", Decimal("0.999"), {"/a": "must be at least 1"}),
    (number, None, None, {"/a": "is missing"}),
    (number, "x" * 50, None, {"/a": f"'{'x' * 40}' {NUMBER}"}),
    (number, 0.5, None, {"/a": f"'0.5' {NUMBER}"}),
    (number, 1 << 200, None, {"/a": f"a huge integer {NUMBER}"}),
    (number, (1 << 200) - 1, None, {"/a": f"'{str((1 << 200) - 1)[:40]}' {NUMBER}"}),
    (positive, None, None, {}),
    (positive, "0", Decimal(0), {"/a": "must be above 0"}),
    (positive, "0.000000000001", Decimal("0.000000000001"), {}),
    (count, None, 7, {}),
    (count, "2", 2, {}),
    (count, 9, 9, {}),
    (count, "1", 7, {"/a": "must be a whole number from 2 to 9"}),
    (count, "10", 7, {"/a": "must be a whole number from 2 to 9"}),
    (count, "2.5", 7, {"/a": "must be a whole number from 2 to 9"}),
    (count, "two", 7, {"/a": f"'two' {NUMBER}"}),
    (lambda form: form.count("a", 3), "0", 3, {"/a": "must be a whole number from 1 to 1000000"}),
    (moment, "2026-07-01", datetime(2026, 6, 30, 22, tzinfo=UTC), {}),
    (moment, "2026-07-01T10:00:00Z", datetime(2026, 7, 1, 10, tzinfo=UTC), {}),
    (moment, None, NO_MOMENT, {"/a": "is missing"}),
    (moment, "July", NO_MOMENT, {"/a": f"'July' is {DATES}"}),
    (lambda form: form.moment("a", BERLIN, DEFAULT), None, DEFAULT, {}),
    (lambda form: form.moment("a", BERLIN, DEFAULT), "July", DEFAULT, {"/a": f"'July' is {DATES}"}),
    (lambda form: form.moment("a", BERLIN, required=False), None, NO_MOMENT, {}),
    (texts, ["x", "y"], ("x", "y"), {}),
    (texts, None, (), {}),
    (texts, "x", (), {"/a": "a list is needed"}),
    (texts, ["x", 1, None], ("x",), {"/a/1": "a text is needed", "/a/2": "a text is needed"}),
    (lambda form: list(form.items("a", 2)), ["x", 5], [("/a/0", "x"), ("/a/1", 5)], {}),
    (lambda form: list(form.items("a", 2)), [1, 2, 3], [], {"/a": "has more than 2 entries"}),
    (lambda form: form.mapping("a"), {"k": 1}, {"k": 1}, {}),
    (lambda form: form.mapping("a"), None, {}, {}),
    (lambda form: form.mapping("a"), [], {}, {"/a": "an object is needed"}),
]


@pytest.mark.parametrize(
    ("ask", "sent", "result", "said"), FIELDS, ids=[f"{n} {case[0].__name__}" for n, case in enumerate(FIELDS)]
)
def test_a_field_gives_its_value_or_says_what_is_wrong(
    ask: Ask, sent: Any, result: object, said: dict[str, str]
) -> None:
    mistakes = Mistakes()
    form = Form({"a": sent}, "", mistakes)
    assert ask(form) == result
    form.done()  # what was asked for is known
    assert {one.pointer: one.detail for one in mistakes.errors} == said


@pytest.mark.parametrize(("sent", "fine"), [("x y", True), (" x", False), ("x ", False), ("x", True)])
def test_a_new_code_does_not_begin_or_end_with_a_space(sent: str, fine: bool) -> None:
    mistakes = Mistakes()
    assert own_code(Form({"code": sent}, "/p", mistakes)) == sent
    wanted = [] if fine else [FieldError("/p/code", "must not begin or end with a space")]
    assert mistakes.errors == wanted


def test_what_was_not_asked_for_is_unknown_in_the_order_of_the_alphabet() -> None:
    mistakes = Mistakes()
    form = Form({"z": 1, "a/b": 2, "c~d": 3, "kept": 4, "read": 5}, "/here", mistakes)
    assert form.raw("read") == 5
    assert form.rest(frozenset({"kept", "missing", "read"})) == {"kept": 4}
    form.done()
    assert mistakes.errors == [
        FieldError("/here/a~1b", "unknown key 'a/b'"),
        FieldError("/here/c~0d", "unknown key 'c~d'"),
        FieldError("/here/z", "unknown key 'z'"),
    ]
    assert escape("~/") == "~0~1"


def test_what_is_no_object_has_no_fields() -> None:
    mistakes = Mistakes()
    form = Form("text", "/here", mistakes)
    assert (dict(form.fields), form.raw("a")) == ({}, None)
    assert mistakes.errors == [FieldError("/here", "an object is needed")]


def test_all_mistakes_are_raised_at_once_and_the_first_is_said() -> None:
    mistakes = Mistakes()
    mistakes.check()  # nothing is wrong
    mistakes.add("/a", "is missing")
    with pytest.raises(InvalidInput) as one:
        mistakes.check()
    assert one.value.detail == "/a: is missing"
    mistakes.take(InvalidInput("two", errors=[FieldError("/b", "x"), FieldError("/c", "y")]))
    mistakes.take(InvalidInput("without a place"))
    with pytest.raises(InvalidInput) as all_of_them:
        mistakes.check()
    assert all_of_them.value.detail == "/a: is missing (and 3 more)"
    assert all_of_them.value.errors[2:] == (FieldError("/c", "y"), FieldError("", "without a place"))
    whole = Mistakes()
    whole.add("", "an object is needed")
    with pytest.raises(InvalidInput, match=r"^input: an object is needed$"):
        whole.check()


def test_no_more_than_a_hundred_mistakes_are_kept() -> None:
    mistakes = Mistakes()
    for place in range(150):
        mistakes.add(f"/{place}", "is wrong")
    assert [len(mistakes.errors), mistakes.errors[-1].pointer] == [100, "/99"]


@pytest.mark.parametrize(
    ("sent", "number"),
    [("12345678901234.123456789012", "12345678901234.123456789012"), ("-0.5", "-0.5"), (7, "7"),
     ("123456789012345", None), ("0.1234567890123", None), (True, None), ("", None), (" 1", None)],
)  # fmt: skip
def test_an_exact_number_has_so_many_digits_and_no_more(sent: object, number: str | None) -> None:
    assert decimal_of(sent) == (None if number is None else Decimal(number))
