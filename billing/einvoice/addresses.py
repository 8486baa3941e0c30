"""Identifiers of a buyer that a network routes by: electronic address (BT-49), further ids (BT-46), Leitweg-ID (BT-10).

Owns what they look like and which schemes there are. Whether an invoice needs them is `profiles.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import cast

from billing.einvoice.debits import check_creditor_id
from billing.einvoice.profiles import valid_leitweg_id
from billing.forms import CODE_LENGTH_MAX, Form, Mistakes

# Electronic Address Scheme (EAS), as the code list that EN 16931 is checked with has it (BR-CL-25).
_LISTED = (
    "0002 0007 0009 0037 0060 0088 0096 0097 0106 0130 0135 0142 0147 0151 0154 0158 0170 0177 0183 0184 0188 0190"
    " 0191 0192 0193 0194 0195 0196 0198 0199 0200 0201 0202 0203 0204 0205 0208 0209 0210 0211 0212 0213 0215 0216"
    " 0217 0218 0219 0220 0221 0225 0230 0235 0240 0242 0244 0245 0246 0248 9910 9913 9914 9915 9918 9919 9920 9922"
    " 9923 9924 9925 9926 9927 9928 9929 9930 9931 9932 9933 9934 9935 9936 9937 9938 9939 9940 9941 9942 9943 9944"
    " 9945 9946 9947 9948 9949 9950 9951 9952 9953 9957 9959 AN AQ AS AU EM"
)
EAS = frozenset(_LISTED.split())
EMAIL, LEITWEG, GLN = "EM", "0204", "0088"
IDS_MAX = 1  # BT-46 has one place


def check_endpoint(form: Form) -> None:
    """`endpoint: {id, scheme}` of a customer's or legal entity's form; null takes it away."""
    if form.fields.get("endpoint") is None:
        return
    one = Form(form.fields["endpoint"], form.at("endpoint"), form.mistakes)
    id_, scheme = _line(one, "id"), one.text("scheme")
    one.done()
    if scheme and scheme not in EAS:
        one.wrong("scheme", f"{scheme[:20]!r} is no scheme of electronic addresses (EAS): 0204, 0088, 9930, EM or so")
    elif id_ and (wrong := _wrong_id(id_, scheme)):
        one.wrong("id", wrong)


def check_seller(entity: Mapping[str, object], pointer: str = "") -> None:
    """What networks and banks need of a legal entity's form; raises InvalidInput naming every bad field."""
    mistakes = Mistakes()
    form = Form(entity, pointer, mistakes)
    check_endpoint(form)
    check_creditor_id(form)
    mistakes.check()


def check_ids(form: Form) -> None:
    """`ids: [{id, scheme}]` of a customer's form: the buyer's own id, in place of the customer number."""
    for pointer, entry in form.items("ids", IDS_MAX):
        one = Form(entry, pointer, form.mistakes)
        id_, scheme = _line(one, "id"), one.text("scheme", "")
        one.done()
        if scheme and not re.fullmatch(r"[0-9]{4}", scheme):
            one.wrong("scheme", "a scheme of identifiers is four digits (ISO 6523), as 0088")
        elif id_ and (wrong := _wrong_id(id_, scheme)):
            one.wrong("id", wrong)


def check_leitweg_id(form: Form, key: str = "leitweg_id") -> str:
    """The Leitweg-ID of a form, checked with its check digits; empty where there is none."""
    found = "" if form.fields.get(key) is None else _line(form, key)
    form.raw(key)
    if found and not valid_leitweg_id(found):
        form.wrong(key, f"{found[:60]!r} is no Leitweg-ID: its form or its check digits are wrong")
    return found


def _line(form: Form, key: str) -> str:
    """One line of text without blanks around it."""
    found = form.text(key, length_max=CODE_LENGTH_MAX)
    if found and (not found.isprintable() or found != found.strip()):
        form.wrong(key, "must be one line of printable characters, without spaces around it")
        return ""
    return found


def _wrong_id(id_: str, scheme: str) -> str:
    if scheme == EMAIL and not re.fullmatch(r"[^@\s]+@[^@\s]+", id_):
        return "is no e-mail address"
    if scheme == LEITWEG and not valid_leitweg_id(id_):
        return "is no Leitweg-ID: its form or its check digits are wrong"
    if scheme == GLN and not _valid_gln(id_):
        return "is no GLN: 13 digits, the last one a check digit"
    return ""


def _valid_gln(text: str) -> bool:
    """GS1: the weighted sum of all 13 digits (1 and 3 in turn) ends with 0."""
    if not re.fullmatch(r"[0-9]{13}", text):
        return False
    return sum(int(digit) * (3 if place % 2 else 1) for place, digit in enumerate(text)) % 10 == 0


def id_and_scheme(value: object) -> tuple[str, str | None] | None:
    """An id of a stored form; None where it has none that can be read (forms of old were not looked at)."""
    if not isinstance(value, Mapping):
        return None
    given = cast(Mapping[str, object], value)
    id_, scheme = given.get("id"), given.get("scheme")
    if not isinstance(id_, str) or not id_.strip():
        return None
    return id_.strip(), scheme.strip() if isinstance(scheme, str) and scheme.strip() else None
