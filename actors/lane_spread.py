"""Which partitions move so that some lanes share all of them evenly. Pure, and light: the command line uses it, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def even_moves(held: Mapping[int, Sequence[int]], lanes: Sequence[int]) -> list[tuple[int, int, int]]:
    """The fewest moves after which these lanes have all partitions, none more than one above another.

    (partition, from lane, to lane). Lanes that are not among `lanes` are emptied: so a lane is added, and drained.
    """
    whole: dict[int, Sequence[int]] = {lane: () for lane in lanes} | dict(held)
    share, more = divmod(sum(len(partitions) for partitions in whole.values()), len(lanes))
    ranked = sorted(lanes, key=lambda lane: (-len(whole[lane]), lane))
    wanted = {lane: share + (1 if place < more else 0) for place, lane in enumerate(ranked)}
    spare = [
        (partition, lane)
        for lane, partitions in sorted(whole.items())
        for partition in partitions[wanted.get(lane, 0) :]
    ]
    moves: list[tuple[int, int, int]] = []
    for lane in ranked:
        for _ in range(wanted[lane] - len(whole[lane])):
            if spare:
                partition, from_lane = spare.pop()
                moves.append((partition, from_lane, lane))
    return moves
