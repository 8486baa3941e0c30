"""Work that runs side by side and passes some places in its order."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition

from billing.errors import Unavailable


class Turns:
    """Lets work that runs side by side pass one place in its order; whoever comes after a failure is turned away."""

    def __init__(self) -> None:
        self._next = 0
        self._end = sys.maxsize  # from here on nobody passes
        self._changed = Condition()

    @contextmanager
    def of(self, number: int) -> Iterator[None]:
        """Work of this number: when it ends well the next one may pass, when it fails nobody does."""
        try:
            yield
        except BaseException:
            self.stop(number)
            raise
        self.wait(number)
        with self._changed:
            self._next = number + 1
            self._changed.notify_all()

    def wait(self, number: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._end <= number or self._next >= number)
            if self._end <= number:
                raise Unavailable("a chunk before this one could not be made final; drive the run again")

    def stop(self, number: int = 0) -> None:
        """Let nobody pass from this number on; those before it may, they are complete without it."""
        with self._changed:
            self._end = min(self._end, number)
            self._changed.notify_all()
