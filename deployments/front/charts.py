"""Charts as geometry: numbers in, places of bars, lines and words out; `frame/charts.html` draws them as SVG.

x is in percent, y in pixels, so that words keep their size at every width. All exact; only what is drawn is rounded.
One axis, labels at the line, and a table behind every chart is the page's duty.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

STEPS = (Decimal(1), Decimal(2), Decimal("2.5"), Decimal(5), Decimal(10))
LEFT_PERCENT = Decimal(9)  # room for the labels of the axis
TENTH = Decimal("0.1")


@dataclass(frozen=True)
class Rule:
    y: Decimal
    value: Decimal


@dataclass(frozen=True)
class Part:
    """One rectangle; `style` is the class that gives the colour (f1 ... f5 meters, fp plain, fw wants a look)."""

    style: str
    y: Decimal
    height: Decimal


@dataclass(frozen=True)
class Bar:
    x: Decimal
    width: Decimal
    title: str
    parts: tuple[Part, ...]
    marked: bool = False

    @property
    def middle(self) -> Decimal:
        return self.x + self.width / 2


@dataclass(frozen=True)
class Tick:
    x: Decimal
    label: str
    anchor: str = "middle"


@dataclass(frozen=True)
class Bars:
    """Stacked bars over a row of days or months."""

    height: int
    base: int
    rules: tuple[Rule, ...]
    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class Column:
    """What a bar is made of: parts (style, value) from the bottom up, the words of its tooltip and of its tick."""

    title: str
    parts: Sequence[tuple[str, Decimal]]
    tick: str = ""
    marked: bool = False


@dataclass(frozen=True)
class Curve:
    """A cost curve over a quantity: `path` in a box of 1000 x 1000, marks at the bounds of the tiers."""

    height: int
    base: int
    rules: tuple[Rule, ...]
    path: str
    ticks: tuple[Tick, ...]
    marks: tuple[Tick, ...]
    end: Decimal


def axis(top: Decimal, most: int = 4) -> tuple[Decimal, tuple[Decimal, ...]]:
    """The top of an axis that holds `top`, and the values that get a rule: 1, 2, 2.5 or 5 times a power of ten."""
    if top <= 0:
        return Decimal(1), ()
    raw = top / most
    power = Decimal(1).scaleb(raw.adjusted())
    step = next(step * power for step in STEPS if step * power >= raw)
    count = int((top / step).to_integral_value(rounding="ROUND_FLOOR"))
    return max(top, step), tuple(step * number for number in range(1, count + 1)) or (step,)


def stacked(columns: Sequence[Column], *, height: int = 260, labels: bool = True) -> Bars:
    """Bars from zero; a negative total is drawn as nothing (its table shows it)."""
    return side_by_side([[column] for column in columns], height=height, labels=labels)


def side_by_side(groups: Sequence[Sequence[Column]], *, height: int = 260, labels: bool = True) -> Bars:
    """Bars from zero, those of a group next to each other; the tick of a group's first bar is that of the group."""
    head, foot = 14, 26
    base = height - foot
    columns = [column for group in groups for column in group]
    sums = [sum((max(value, Decimal(0)) for _, value in column.parts), Decimal(0)) for column in columns]
    top, values = axis(max(sums, default=Decimal(0)))
    room = Decimal(base - head)
    left = LEFT_PERCENT if labels else Decimal(0)
    slot = (100 - left) / max(len(groups), 1)
    most = max((len(group) for group in groups), default=1)
    width = min(slot * Decimal("0.72") / most, Decimal(9)).quantize(Decimal("0.01"))
    bars: list[Bar] = []
    ticks: list[Tick] = []
    placed = [(place, nth, column) for place, group in enumerate(groups) for nth, column in enumerate(group)]
    for place, nth, column in placed:
        middle = left + slot * place + slot / 2
        x = (middle - width * len(groups[place]) / 2 + width * nth).quantize(Decimal("0.01"))
        parts: list[Part] = []
        y = Decimal(base)
        for style, value in column.parts:
            if value > 0:
                part = (value * room / top).quantize(TENTH)
                y -= part
                parts.append(Part(style, y, part))
        bars.append(Bar(x, width, column.title, tuple(parts), column.marked))
        if column.tick:
            ticks.append(Tick(middle.quantize(Decimal("0.01")), column.tick))
    rules = tuple(Rule((base - value * room / top).quantize(TENTH), value) for value in values) if labels else ()
    return Bars(height, base, rules, tuple(bars), tuple(ticks))


def curve(points: Sequence[tuple[Decimal, Decimal]], bounds: Sequence[tuple[Decimal, str]], ends: str) -> Curve:
    """A line through (quantity, amount); `bounds` are the tiers' ends with their words, `ends` the last quantity's."""
    height, head, foot = 300, 16, 32
    base = height - foot
    last = points[-1][0]
    top, values = axis(max(amount for _, amount in points))
    box = [((x * 1000 / last).quantize(TENTH), (1000 - y * 1000 / top).quantize(TENTH)) for x, y in points]
    path = "M" + "L".join(f"{x} {y}" for x, y in box)
    room = Decimal(base - head)
    rules = tuple(Rule((base - value * room / top).quantize(TENTH), value) for value in values)
    marks = tuple(Tick((x * 100 / last).quantize(TENTH), label) for x, label in bounds if x < last)
    shown: list[Tick] = [Tick(Decimal(0), "0", "start")]
    for mark in marks:
        if mark.x - shown[-1].x >= 12 and mark.x <= 86:
            shown.append(mark)
    shown.append(Tick(Decimal(100), ends, "end"))
    end = (base - points[-1][1] * room / top).quantize(TENTH)
    return Curve(height, base, rules, path, tuple(shown), marks, end)


def style_of(place: int) -> str:
    """A meter's colour belongs to it for good: its place in the catalog; from the fifth on all share the last one."""
    return f"{min(place, 4) + 1}"
