"""Who ends a process that hangs, and when: a clock by hand, a process that answers as the test says."""

from __future__ import annotations

from actors.silence import SILENT_S_MAX, STARTING_S_MAX, SilenceWatch


class Process:
    def __init__(self) -> None:
        self.answer: bool | None = True
        self.ended = 0

    def answers(self) -> bool | None:
        return self.answer

    def end(self) -> None:
        self.ended += 1


class Scene:
    def __init__(self) -> None:
        self.now_s, self.process = 100.0, Process()
        self.watch = SilenceWatch(self.process, "it", now_s=lambda: self.now_s)

    def passes(self, seconds: float, answer: bool | None) -> int:
        """Rounds of two seconds; how often it was ended meanwhile."""
        before, self.process.answer = self.process.ended, answer
        for _ in range(int(seconds // 2)):
            self.watch.round()
            self.now_s += 2.0
        return self.process.ended - before


def test_one_that_is_silent_for_too_long_is_ended_once_and_its_successor_has_the_time_of_a_start() -> None:
    scene = Scene()
    assert scene.passes(60, True) == 0
    assert scene.passes(SILENT_S_MAX, False) == 0
    assert scene.passes(2, False) == 1
    assert scene.passes(STARTING_S_MAX, False) == 0, "it starts"
    assert scene.passes(4, False) == 1, "it does not come up"
    assert scene.passes(2, True) == 0
    assert scene.passes(SILENT_S_MAX + 2, False) == 1, "it was up: a silence is one again"


def test_a_silence_that_ends_is_forgotten_and_one_that_is_not_there_is_not_ours() -> None:
    scene = Scene()
    for _ in range(5):
        assert scene.passes(SILENT_S_MAX - 2, False) == 0
        assert scene.passes(2, True) == 0
    assert scene.passes(300, None) == 0
