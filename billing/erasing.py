"""Forgetting a customer: what marks him in forms, and the same forms without it. Decides; where forms lie is storage's.

Owns three things. Which texts are his (`marks_of`): codes that name him or what is his alone, and whatever his own
forms say. What a step of master data becomes (`forgotten_step`): the same contract, dates, quantities and amounts, of a
customer without a name, under codes that say nothing. And what any other form that names him becomes (`Marks.without`).

A pseudonym is a keyed hash: the same text is the same pseudonym in every store while the key is known. The key is
random and goes with the end of the erasure, so that nobody can try names on what is left.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, cast

from billing.documents import Allowance, Corrects, Document, Line, Member, TaxTotal

PREFIX = "erased-"
ERASED = "erased"  # in place of a free text
WORD_LENGTH_MIN = 4  # of a free text that is looked for inside of others: shorter ones are parts of anything
CODES_MAX = 10_000  # of one customer

# What a customer's form keeps: billing rests on it, and it is of many customers.
_KEPT_OF_CUSTOMER = frozenset({"country", "tax_treatment", "language", "payment_days", "legal_entity", "einvoice"})
# Where a form says what the catalog, the platform or the law has named: never about one person.
_STRUCTURE = frozenset(
    {
        *("kind", "type", "state", "mime", "event_type", "action", "model", "anchor", "interval", "when_", "trial_end"),
        *("plan", "charges", "tax", "tax_code", "tax_category", "tax_behavior", "tax_treatment", "currency", "unit"),
        *("country", "language", "period", "mode", "aggregation", "meter", "entity", "legal_entity", "series", "year"),
        *("number", "refers_to", "run_id"),
    }
)
# Where a form of somebody else may name a customer, a key, a subscription or a budget.
_REFERENCES = frozenset(
    {
        *(
            "customer",
            "customers",
            "payer",
            "key",
            "keys",
            "code",
            "subject",
            "subscription",
            "subscriptions",
            "budget",
        ),
        *("parked", "held", "released", "source", "add_on", "parent", "holders", "members"),
    }
)
_FIELDS = frozenset(
    {
        *(one.name for form in (Document, Line, Allowance, TaxTotal, Member, Corrects) for one in fields(form)),
        *_STRUCTURE,
        *_REFERENCES,
        *(
            "id",
            "body",
            "data",
            "documents",
            "invoice",
            "events",
            "note",
            "address",
            "contact",
            "name",
            "rule",
            "steps",
        ),
    }
)
_CATALOG = frozenset({"price", "quantities"})  # numbers, by names of the catalog
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_MOMENT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9:.]+(Z|[+-][0-9:]+)?)?")


@dataclass(frozen=True)
class Marks:
    """What tells a customer. `codes` name him or what is his alone; `texts` are what his own forms say beside.

    `secret` is 64 hexadecimal signs.
    """

    customer: str
    keys: tuple[str, ...]  # that events carry, his own code first
    subscriptions: frozenset[str]
    codes: frozenset[str]
    texts: frozenset[str]
    secret: str

    def pseudonym(self, text: str) -> str:
        return PREFIX + hashlib.blake2b(text.encode(), digest_size=10, key=bytes.fromhex(self.secret)).hexdigest()

    @property
    def stands_for(self) -> str:
        """The code under which what is left of the customer goes on."""
        return self.pseudonym(self.customer)

    @property
    def words(self) -> tuple[str, ...]:
        """Everything to look for in a store, the longest first."""
        texts = (text for text in self.texts if len(text) >= WORD_LENGTH_MIN)
        return tuple(sorted({*self.codes, *texts}, key=lambda one: (-len(one), one)))

    def exactly(self, text: str) -> str:
        """A text that is a code or a text of his as a whole becomes its pseudonym; any other stays."""
        return self.pseudonym(text) if text in self.codes or text in self.texts else text

    def within(self, text: str) -> str:
        """A text without the words of his that it says. A code counts as a whole word, a free text anywhere."""
        if text in self.codes or text in self.texts:
            return self.pseudonym(text)
        return self._pattern.sub(lambda found: self.pseudonym(found[0]) if found[0] in self.codes else ERASED, text)

    def names(self, form: Any, key: str = "") -> bool:
        """Whether a form of somebody else says something of him: one of his codes where forms name, or his texts."""
        if isinstance(form, str):
            if key in _REFERENCES and form in self.codes:
                return True
            return key not in _STRUCTURE and self._texts_pattern.search(form) is not None
        if isinstance(form, Mapping):
            if self.about(cast("Mapping[Any, Any]", form)):
                return True
            return any(name in self.codes or self.names(value, str(name)) for name, value in form.items())  # pyright: ignore
        if isinstance(form, Sequence) and not isinstance(form, bytes):
            return any(self.names(value, key) for value in form)  # pyright: ignore[reportUnknownVariableType]
        return False

    def without(self, form: Any, key: str = "", *, own: bool = True) -> Any:
        """A form without him. `own`: all of it is about him; else codes go only where forms name somebody."""
        if isinstance(form, str):
            if key in _STRUCTURE or _is_fixed(form):
                return form if key not in _REFERENCES else self.exactly(form)
            if own or key in _REFERENCES:
                return self.within(form)
            return self._texts_pattern.sub(ERASED, form)
        if isinstance(form, Mapping):
            own = own or self.about(cast("Mapping[Any, Any]", form))
            return {
                self._name(str(name), own): self.without(value, str(name), own=own)  # pyright: ignore[reportUnknownArgumentType]
                for name, value in form.items()  # pyright: ignore[reportUnknownVariableType]
            }
        if isinstance(form, Sequence) and not isinstance(form, bytes):
            return [self.without(value, key, own=own) for value in form]  # pyright: ignore[reportUnknownVariableType]
        return form

    def _name(self, name: str, own: bool) -> str:
        """A name of a field stays, whatever his code is; a name that he gave, or that holds his code, does not."""
        if name in _FIELDS:
            return name
        return self.within(name) if own else self.exactly(name)

    def about(self, form: Mapping[Any, Any]) -> bool:
        """Whether a form says that it is about him."""
        return form.get("customer") in (self.customer, self.stands_for)

    def to_form(self) -> dict[str, Any]:
        return {
            "customer": self.customer,
            "keys": list(self.keys),
            "subscriptions": sorted(self.subscriptions),
            "codes": sorted(self.codes),
            "texts": sorted(self.texts),
            "secret": self.secret,
        }

    @classmethod
    def of_form(cls, form: Mapping[str, Any]) -> Marks:
        subscriptions, codes, texts = (frozenset(form[name]) for name in ("subscriptions", "codes", "texts"))
        return cls(form["customer"], tuple(form["keys"]), subscriptions, codes, texts, form["secret"])

    def with_more(self, other: Marks) -> Marks:
        """What this one and another one of the same customer tell."""
        assert self.customer == other.customer
        return Marks(
            self.customer,
            tuple(dict.fromkeys((*self.keys, *other.keys))),
            self.subscriptions | other.subscriptions,
            self.codes | other.codes,
            (self.texts | other.texts) - self.codes - other.codes,
            self.secret,
        )

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        codes = sorted(self.codes, key=len, reverse=True)
        texts = sorted((text for text in self.texts if len(text) >= WORD_LENGTH_MIN), key=len, reverse=True)
        parts = [re.escape(text) for text in texts]
        # `-` and `.` are signs of codes: acme-2 is another customer than acme.
        parts += [rf"(?<![\w.-]){re.escape(code)}(?![\w-]|\.\w)" for code in codes]
        return re.compile("|".join(parts))

    @cached_property
    def _texts_pattern(self) -> re.Pattern[str]:
        texts = sorted((text for text in self.texts if len(text) >= WORD_LENGTH_MIN), key=len, reverse=True)
        # As whole words: whoever is called Cloud does not take the word out of what others wrote about clouds.
        return re.compile("|".join(rf"(?<!\w){re.escape(text)}(?!\w)" for text in texts) if texts else r"(?!)")


def marks_of(steps: Iterable[Mapping[str, Any]], customer: str, secret: str) -> Marks:
    """What tells a customer, by all that his steps have ever said: names and addresses of before count, too."""
    subscriptions: set[str] = set()
    codes, texts, keys = {customer}, set[str](), list[str]([customer])
    for step in steps:
        kind, form = _kind_of(step)
        if not _is_of(kind, form, customer, subscriptions):
            continue
        if kind == "customer":
            keys.extend(key for key in form.get("keys") or () if isinstance(key, str) and key not in keys)
            rest = {name: value for name, value in form.items() if name not in (*_KEPT_OF_CUSTOMER, "code", "payer")}
            texts.update(_free_texts(rest))
            continue
        if kind == "subscribe":
            subscriptions.add(str(form["code"]))
        if kind in ("subscribe", "budget", "ad_hoc"):
            codes.add(str(form["code"]))
        if kind == "add_on":
            codes.add(str(form["code"]))
        texts.update(text for name, text in _named_texts(form) if _is_free(name, text) and name != "add_on")
    codes |= set(keys)
    assert len(codes) <= CODES_MAX, "a customer has more codes than one erasure takes"
    return Marks(customer, tuple(keys), frozenset(subscriptions), frozenset(codes), frozenset(texts - codes), secret)


def forgotten_step(step: Mapping[str, Any], marks: Marks, rule: str) -> dict[str, Any]:
    """A step without the customer; steps of others stay as they are, but for whom they name as payer or as left out.

    Done twice it gives the same.
    """
    kind, form = _kind_of(step)
    own = _is_of(kind, form, marks.customer, marks.subscriptions)
    if own and kind == "customer":
        kept = {name: form[name] for name in _KEPT_OF_CUSTOMER if isinstance(form.get(name), str | int)}
        known: dict[str, Any] = {"code": marks.stands_for, "name": ERASED, **kept, "erased": rule}
        if form.get("keys"):
            known["keys"] = [marks.exactly(key) for key in form["keys"]]
        if "payer" in form:
            known["payer"] = form["payer"] and marks.exactly(form["payer"])
        return _with(step, kind, known)
    if own:
        return _with(step, kind, _own_value(form, "", marks))
    if kind == "customer" and form.get("payer") == marks.customer:
        return _with(step, kind, {**form, "payer": marks.stands_for})
    if kind == "bill_run" and marks.customer in (form.get("parked") or ()):
        parked = sorted(marks.stands_for if one == marks.customer else one for one in form["parked"])
        return _with(step, kind, {**form, "parked": parked})
    return dict(step)


def _own_value(value: Any, key: str, marks: Marks) -> Any:
    if isinstance(value, str):
        if key in ("subscription", "customer", "code", "add_on"):
            return marks.exactly(value)
        return marks.exactly(value) if _is_free(key, value) else value
    if isinstance(value, Mapping):  # quantities by charge, prices: their names are the catalog's
        return {
            str(name): one if name in _CATALOG else _own_value(one, str(name), marks)  # pyright: ignore
            for name, one in value.items()  # pyright: ignore[reportUnknownVariableType]
        }
    if isinstance(value, list):
        return [_own_value(one, key, marks) for one in value]  # pyright: ignore[reportUnknownVariableType]
    return value


def _kind_of(step: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    kind = next(key for key in step if key != "at")
    form = step[kind]
    return kind, form if isinstance(form, Mapping) else {}  # pyright: ignore[reportUnknownVariableType]


def _is_of(kind: str, form: Mapping[str, Any], customer: str, subscriptions: frozenset[str] | set[str]) -> bool:
    if kind == "customer":
        return form.get("code") == customer
    # Whatever kind it is, also one of a later version: a step that names a customer is his.
    return form.get("customer") == customer or form.get("subscription") in subscriptions


def _with(step: Mapping[str, Any], kind: str, form: Mapping[str, Any]) -> dict[str, Any]:
    return {name: dict(form) if name == kind else value for name, value in step.items()}


def _is_free(key: str, text: str) -> bool:
    """Whether a text of a contract's step is somebody's own words: no number, no moment, nothing the catalog names."""
    fixed = key in _STRUCTURE or key in ("when", "charge", "at", "up_to", "expires", "price", "model")
    return bool(text) and not fixed and not _is_fixed(text)


def _is_fixed(text: str) -> bool:
    """A number or a moment: an amount that holds somebody's post code by chance stays what it is."""
    return _NUMBER.fullmatch(text) is not None or _MOMENT.fullmatch(text) is not None


def _named_texts(form: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(form, str):
        yield key, form
    elif isinstance(form, Mapping):
        for name, value in form.items():  # pyright: ignore[reportUnknownVariableType]
            if name in _CATALOG:
                continue
            yield from _named_texts(value, str(name))  # pyright: ignore[reportUnknownArgumentType]
    elif isinstance(form, list):
        for value in form:  # pyright: ignore[reportUnknownVariableType]
            yield from _named_texts(value, key)


def _free_texts(form: Any) -> Iterator[str]:
    """Every text of a customer's own form, also what is written as a number, and the names he gave (`ids`, `tags`)."""
    if isinstance(form, str):
        if form:
            yield form
    elif isinstance(form, Mapping):
        for name, value in form.items():  # pyright: ignore[reportUnknownVariableType]
            yield from _free_texts(value)
            if isinstance(name, str) and len(name) > 24:  # a name of a field is ours; what is longer may be his
                yield name
    elif isinstance(form, list):
        for value in form:  # pyright: ignore[reportUnknownVariableType]
            yield from _free_texts(value)
