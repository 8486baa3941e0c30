"""Chunks that fail while others go on: what is computed passes first, then the first failure is raised.

Owns when no more are begun. A resume takes what is missing, so each chunk that comes through is one less.
"""

from __future__ import annotations

from billing.errors import BillingError

FAILURES_MAX = 5  # then it is no matter of one chunk's data


class Failures:
    """Collects what chunks raise."""

    def __init__(self) -> None:
        self._found: list[Exception] = []
        self.is_enough = False  # whether to begin no more chunks

    def note(self, error: Exception) -> None:
        """Of one chunk. Where a database or store is away, the next one would only wait for it, too."""
        self._found.append(error)
        is_away = isinstance(error, BillingError) and error.retryable
        self.is_enough = self.is_enough or is_away or len(self._found) >= FAILURES_MAX

    def raise_first(self) -> None:
        """When all others have passed."""
        if self._found:
            raise self._found[0]
