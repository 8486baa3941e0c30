"""Properties are read out of the JSON text exactly, on the fast road and on the slow one."""

from __future__ import annotations

import json
from decimal import Decimal

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.meters import numbers, property_text

TEXTS: list[tuple[str, str | None]] = [
    ('{"n":"5"}', "5"),
    ('{"n":5}', "5"),
    ('{ "a" : 1 , "n"\t:\n5.50 }', "5.50"),
    ('{"n":0.1234567890123456789}', "0.1234567890123456789"),
    ('{"n":-1E3,"a":2}', "-1E3"),
    ('{"n":true}', "true"),
    ('{"n":null}', None),
    ('{"n":"null"}', "null"),
    ('{"n":""}', ""),
    ('{"n":"a,b}c:d"}', "a,b}c:d"),
    ('{"a":"n","n":"7"}', "7"),
    ('{"a":"n"}', None),
    ('{"nn":"1"}', None),
    ('{"N":"1"}', None),
    ("{}", None),
    ('{"n":1,"n":2}', "1"),
    ('{"n":"\\u0035"}', "5"),
    ('{"\\u006e":"5"}', "5"),
    ('{"x\\"n":"1","n":"2"}', "2"),
    ('{"x":"\\"n\\":9"}', None),
    ('{"x":{"n":1},"n":2}', "2"),
    ('{"x":{"n":1}}', None),
    ('{"x":[{"n":1}]}', None),
    ('{"n":[1,2.50]}', '["1","2.50"]'),
    ('{"n":{"n":1}}', '{"n":"1"}'),
    ('{"x":"{","n":"1"}', "1"),
    ('{"x":"ä","n":"é1"}', "é1"),
    ('{"ä":"x","n":-1.50}', "-1.50"),
    ('{"n":"a"', "a"),
    ("no json", None),
    ("[1]", None),
    ('{"n":' + "[" * 100_000, None),
]  # fmt: skip


def test_a_property_is_found_where_it_stands_and_nowhere_else() -> None:
    column = property_text(pl.Series([text for text, _ in TEXTS]), "n")
    for (text, wanted), found in zip(TEXTS, column.to_list(), strict=True):
        assert found == wanted, text[:60]


values = st.one_of(st.none(), st.booleans(), st.text(max_size=8), st.integers(-(10**20), 10**20))


@settings(deadline=None)
@given(
    st.lists(
        st.dictionaries(
            st.one_of(st.sampled_from(["n", "nn", "ä", 'q"', "a.b*"]), st.text(max_size=3)),
            st.one_of(values, st.dictionaries(st.just("n"), values, max_size=1)),
            max_size=4,
        ),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from(["n", "ä", 'q"', "a.b*", "\\"]),
    st.booleans(),
    st.booleans(),
)
def test_columns_read_what_a_json_reader_reads(
    rows: list[dict[str, object]], name: str, plain: bool, tight: bool
) -> None:
    texts = [json.dumps(row, ensure_ascii=plain, separators=(",", ":") if tight else (" , ", " : ")) for row in rows]
    for row, found in zip(rows, property_text(pl.Series(texts), name).to_list(), strict=True):
        value = row.get(name)
        if value is None or isinstance(value, dict):
            assert found is None or isinstance(value, dict)
        elif isinstance(value, bool):
            assert found == str(value).lower()
        else:
            assert found == str(value)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1.5", "1.5"), ("-0", "0"), ("1e3", "1000"), ("+5", "5"), (".5", "0.5"), ("1.500000000000000", "1.5"),
        ("12345678901234567890123456.123456789012", "12345678901234567890123456.123456789012"),
        ("many", None), ("NaN", None), ("1" * 40, None), ("0.1234567890123", None), ("", None), (" 5", None),
        ("1e-12", "0.000000000001"), ("1e-13", None), ("5E-13", None), ("0.0000000000009", None),
        ("1e99", None), ("true", None), ("[1]", None), (None, None),
    ],
)  # fmt: skip
def test_numbers_are_exact_or_nothing(text: str | None, number: str | None) -> None:
    read = numbers(pl.Series([text, "2"], dtype=pl.String)).to_list()
    assert read == [None if number is None else Decimal(number), Decimal(2)]
