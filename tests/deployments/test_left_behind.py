"""What is begun again: only what lasts, and only where nobody drives it."""

from __future__ import annotations

from deployments.left_behind import LeftBehind


class Scene:
    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []
        self.marks: dict[tuple[str, str], str] = {}
        self.drivers: set[str] = set()
        self.started: list[tuple[str, str]] = []
        self.left = LeftBehind(
            lambda: {one: self.marks.get(one) for one in self.found}, self.drivers.__contains__, self.start
        )

    def start(self, tenant_id: str, work: str) -> None:
        self.drivers.add(tenant_id)
        self.started.append((tenant_id, work))

    def round(self) -> list[tuple[str, str]]:
        self.started.clear()
        self.left.round()
        return list(self.started)


def test_the_first_round_takes_all_that_nobody_drives_all_of_a_tenant_together() -> None:
    scene = Scene()
    scene.found = [("a", "1"), ("b", "2"), ("a", "3")]
    scene.drivers.add("b")
    assert scene.round() == [("a", "1"), ("a", "3")]
    assert scene.round() == []


def test_later_only_what_lasts_is_taken_as_whoever_asked_for_it_may_drive_it_himself() -> None:
    scene = Scene()
    assert scene.round() == []
    scene.found = [("a", "1")]
    assert scene.round() == []
    scene.found = [("a", "2")]
    assert scene.round() == []
    assert scene.round() == [("a", "2")]


def test_what_was_begun_and_lost_its_driver_is_begun_again() -> None:
    scene = Scene()
    scene.found = [("a", "1")]
    assert scene.round() == [("a", "1")]
    scene.drivers.clear()
    assert scene.round() == [("a", "1")]


def test_what_stands_still_is_begun_again_though_a_driver_lives_and_then_has_a_round_to_come_on() -> None:
    scene = Scene()
    scene.drivers.update("ab")
    scene.found = [("a", "1"), ("b", "2"), ("b", "3")]
    scene.marks = {("a", "1"): "planned None", ("b", "2"): "running 12:00"}  # of ("b", "3") nothing can be told
    assert scene.round() == []
    scene.marks["b", "2"] = "running 12:01"
    assert scene.round() == [("a", "1")]
    assert scene.round() == [("b", "2")]
    assert scene.round() == [("a", "1")]
