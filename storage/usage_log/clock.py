"""The writer's clock: one protocol, so that simulations can jump and go back."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def now_us(self) -> int:
        """Microseconds since 1970 UTC; may jump, also backwards."""
        ...


class SystemClock:
    def now_us(self) -> int:
        return time.time_ns() // 1000
