"""Words, numbers, dates, colours and charts of the pages, without a server."""

import re
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from deployments.front import charts
from deployments.front.formats import Formats
from deployments.front.lists import csv_text, cursor, cursor_values
from deployments.front.page import own_path, path_of
from deployments.front.texts import LANGUAGES, Texts, accepted_language, catalog

FRONT = Path(__file__).parents[2] / "deployments" / "front"
CSS = (FRONT / "static" / "tokens.css").read_text()
TOKENS = {name: (day, night) for name, day, night in re.findall(r"--([\w-]+):\s*light-dark\((#\w{6}), (#\w{6})\)", CSS)}
SURFACES = ("canvas", "surface", "sunken", "hover")
TEXT = [(ink, on) for ink in ("ink", "ink-2", "ink-3", "accent", "good", "warn", "bad") for on in SURFACES]
TEXT += [("on-accent", "accent"), ("on-accent", "accent-strong"), ("accent", "accent-soft"), ("ink", "accent-soft")]
TEXT += [(state, f"{state}-soft") for state in ("good", "warn", "bad", "calm")]
TEXT += [("ink", f"{state}-soft") for state in ("good", "warn", "bad")]
TEXT += [("ink-2", "accent-soft"), ("ink-2", "warn-soft"), ("ink-2", "bad-soft")]
TEXT += [("on-chart", colour) for colour in ("c1", "plain", "ink-3")]
SHAPES = [
    (colour, on)
    for colour in ("c1", "c2", "c3", "c4", "c5", "plain", "warn", "before", "edge")
    for on in ("surface", "canvas")
]


def _luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: str, two: str) -> float:
    low, high = sorted((_luminance(one), _luminance(two)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(("least", "pairs"), [(4.5, TEXT), (3.0, SHAPES)])
def test_every_pair_of_colours_that_meets_has_enough_contrast_day_and_night(
    least: float, pairs: list[tuple[str, str]]
) -> None:
    bad = [
        (front, back, mode)
        for front, back in pairs
        for mode in (0, 1)
        if _contrast(TOKENS[front][mode], TOKENS[back][mode]) < least
    ]
    assert len(pairs) > 10
    assert bad == []


def test_every_text_is_there_in_both_languages_with_the_same_places() -> None:
    def places(text: str) -> set[str]:
        return set(re.findall(r"\{(\w+)\}", text))

    for key, texts in catalog().items():
        assert set(texts) == set(LANGUAGES), key
        english, german = texts["en"], texts["de"]
        assert type(english) is type(german), key
        if isinstance(english, dict):
            assert set(english) == set(german) == {"one", "other"}, key
            for form in ("one", "other"):
                assert places(english[form]) == places(german[form]), key
        else:
            assert english.strip(), key
            assert german.strip(), key
            assert places(english) == places(german), key


def test_every_text_that_a_page_names_exists_and_no_text_is_left_over() -> None:
    source = "\n".join(
        path.read_text(encoding="utf-8") for path in (*FRONT.rglob("*.html"), *FRONT.rglob("*.py")) if path.is_file()
    )
    known = catalog()
    called = set(re.findall(r"""\b(?:t|texts|_texts)\(\s*["']([^"'{]+)["'](?!\s*~)""", source))
    assert sorted(called - set(known)) == []
    # Keys put together from a beginning and a value: t("month." ~ n), t(f"tax.{category}"), t.word("state", value).
    begun = set(re.findall(r"""\b(?:t|texts|_texts)\(\s*f?["']([\w.]+[._])(?:["']\s*~|\{)""", source))
    begun |= {f"{group}." for group in re.findall(r"""\.word\(\s*["'](\w+)["']""", source)}
    assert "month." in begun
    assert "state." in begun
    named = set(re.findall(r"""["']([a-z_]+\.[\w.:-]+)["']""", source))
    left_over = [key for key in known if key not in named and not any(key.startswith(one) for one in begun)]
    assert left_over == []


def test_numbers_have_groups_a_real_minus_sign_and_a_dash_for_what_is_missing() -> None:
    english, german = Formats(Texts("en"), "Europe/Berlin"), Formats(Texts("de"), "Europe/Berlin")
    assert english.amount(Decimal("-1234567.5"), "EUR") == "\u22121,234,567.50"
    assert german.amount(Decimal("-1234567.5"), "EUR") == "\u22121.234.567,50"
    assert german.amount(Decimal(0), "EUR") == "0,00"
    assert english.amount(Decimal("3"), "JPY") == "3"
    assert english.amount(Decimal("3"), "KWD") == "3.000"
    assert english.amount(None, "EUR") == "–"
    assert english.number(Decimal("0.1234567890123456789")) == "0.1234567890123456789"
    assert english.number(Decimal("1E+3")) == "1,000"
    assert english.change(Decimal(110), Decimal(100)) == "+10.0"
    assert english.change(1, 0) == "–"
    padded = str(english.pad(Decimal("1.5"), 4))
    assert padded == '1.5<i class="pad" aria-hidden="true">000</i>'


def test_periods_are_shown_inclusive_in_the_tenants_time_zone() -> None:
    english, german = Formats(Texts("en"), "Europe/Berlin"), Formats(Texts("de"), "Europe/Berlin")
    start, end = datetime(2026, 9, 30, 22, tzinfo=UTC), datetime(2026, 10, 31, 23, tzinfo=UTC)  # 25-hour day in it
    assert english.period(start, end) == "1–31 Oct 2026"
    assert german.period(start, end) == "01.–31.10.2026"
    assert english.days(date(2026, 12, 31), date(2027, 1, 1)) == "31 Dec 2026 – 1 Jan 2027"
    assert english.days(date(2026, 9, 28), date(2026, 10, 4)) == "28 Sep – 4 Oct 2026"
    assert english.period(datetime(2026, 1, 1, 11, 30, tzinfo=UTC), end).startswith("1 Jan 2026, 12:30 – ")
    assert 'title="2026-10-31 23:00:00 UTC"' in str(english.moment(end))


def test_the_language_is_the_one_that_the_browser_likes_best() -> None:
    assert accepted_language("de-AT,de;q=0.9,en;q=0.8") == "de"
    assert accepted_language("fr,en;q=0.7,de;q=0.9") == "de"
    assert accepted_language("fr") == "en"
    assert accepted_language("de;q=0, en;q=0.1") == "en"
    assert accepted_language(",,;;q=x" * 1000) == "en"


def test_an_axis_ends_above_the_highest_value_and_has_at_most_five_rules() -> None:
    for top in ("0.003", "1", "7", "999", "1000000"):
        end, values = charts.axis(Decimal(top))
        assert end >= Decimal(top)
        assert 1 <= len(values) <= 5
        assert max(values) <= end


def test_bars_stand_on_the_base_and_never_leave_the_picture() -> None:
    columns = [charts.Column(str(n), [("f1", Decimal(n)), ("f2", Decimal(-n))]) for n in range(31)]
    chart = charts.stacked(columns)
    for bar in chart.bars:
        assert bar.x >= 0
        assert bar.x + bar.width <= 100
        for part in bar.parts:
            assert part.y >= 0
            assert part.y + part.height <= chart.base


def test_bars_of_a_group_touch_and_its_tick_stands_in_the_middle_below_them() -> None:
    groups = [[charts.Column(side, [("f0", Decimal(5))], tick) for side, tick in (("a", "Oct"), ("b", ""))]] * 3
    chart = charts.side_by_side(groups)
    assert len(chart.bars) == 6
    assert len(chart.ticks) == 3
    for first, second, tick in zip(chart.bars[::2], chart.bars[1::2], chart.ticks, strict=True):
        assert abs(first.x + first.width - second.x) <= Decimal("0.02")
        assert abs(tick.x - second.x) <= Decimal("0.02")
    assert chart.bars[2].x - chart.bars[1].x > chart.bars[0].width


def test_a_cell_that_looks_like_a_formula_is_only_text_in_a_spreadsheet() -> None:
    assert csv_text("=HYPERLINK(1)") == "'=HYPERLINK(1)"
    assert csv_text("@x") == "'@x"
    assert csv_text(Decimal("-1.50")) == "-1.50"
    assert csv_text(None) == ""


def test_cursors_and_paths_carry_any_characters() -> None:
    assert cursor_values(cursor("a/b", "ü 🌊"), 2) == ["a/b", "ü 🌊"]
    assert path_of("customers", "/subscriptions/64e3 5") == "/customers/%2Fsubscriptions%2F64e3%205"


def test_nobody_is_led_to_another_host_after_signing_in() -> None:
    assert own_path("/invoices?q=1") == "/invoices?q=1"
    for other in ("//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)", "", None):
        assert own_path(other) == "/"
