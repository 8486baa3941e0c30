"""The tax table of a document, slow and obvious: whole units of the currency, fractions, no code of the product.

A line is (group, inclusive, stated): its tax group (category, percent), whether its price contains the tax, and what
the price gave in units (cents). Allowances are amounts in units; each is split over what is left of every pool.
"""

from __future__ import annotations

from fractions import Fraction

Group = tuple[str, Fraction]
Pool = tuple[Group, bool]


def half_away(number: Fraction) -> int:
    whole = int(abs(number) + Fraction(1, 2))  # cut: both are positive
    return -whole if number < 0 else whole


def tax_inside(gross: int, percent: Fraction) -> int:
    return half_away(gross - gross / (1 + percent / 100))


def by_largest_remainder(total: int, weights: list[int], ties: list[tuple[object, ...]]) -> list[int]:
    exact = [Fraction(total * weight, sum(weights)) for weight in weights]
    parts = [int(part) for part in exact]
    for _ in range(total - sum(parts)):
        best = min(range(len(parts)), key=lambda n: (parts[n] - exact[n], -weights[n], ties[n]))
        parts[best] += 1
        exact[best] = Fraction(-1)  # its turn is over
    return parts


def net_of_lines(net: int, grosses: list[int], percent: Fraction) -> list[int]:
    """Every line cut down, then one unit more to the line with the largest remainder, until they sum to the net."""
    exact = [gross / (1 + percent / 100) for gross in grosses]
    cut = [part.__floor__() for part in exact]
    order = sorted(range(len(cut)), key=lambda n: (-(exact[n] - cut[n]), -exact[n], n))
    return [cut[n] + (1 if order.index(n) < net - sum(cut) else 0) for n in range(len(cut))]


def table(lines: list[tuple[Group, bool, int]], allowances: list[int]) -> dict[Group, tuple[int, int]]:
    """Base and tax of each group."""
    stated: dict[Pool, int] = {}
    for group, inclusive, amount in lines:
        stated[group, inclusive] = stated.get((group, inclusive), 0) + amount
    pools = sorted(stated, key=lambda pool: (*pool[0], pool[1]))
    for allowance in allowances:
        positive = [pool for pool in pools if stated[pool] > 0]
        given = min(allowance, sum(stated.values()))
        if given <= 0:
            continue
        weights = [stated[pool] for pool in positive]
        ties = [(*pool[0], pool[1]) for pool in positive]
        for pool, part in zip(positive, by_largest_remainder(given, weights, ties), strict=True):
            stated[pool] -= part
    found: dict[Group, tuple[int, int]] = {}
    for group, inclusive in pools:
        amount = stated[group, inclusive]
        tax = tax_inside(amount, group[1]) if inclusive else half_away(amount * group[1] / 100)
        base, before = found.get(group, (0, 0))
        found[group] = (base + amount - (tax if inclusive else 0), before + tax)
    return found
