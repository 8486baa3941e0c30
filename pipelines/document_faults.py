"""What stops one document and what stops all of them: a fault of its own parks a document, the others go on.

Owns that difference only. What a document breaks is said by whoever makes it; what becomes of it, by `documents.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from billing.errors import BillingError

LOG = logging.getLogger("cloudbilling.documents")
REASON_MAX = 1_000  # characters of a fault that nobody foresaw
Made = TypeVar("Made")


@dataclass(frozen=True)
class Refused:
    """Why a document has no files, in words."""

    reason: str


def tried(work: Callable[[], Made], *numbers: str) -> Made | Refused:
    """What the work for these documents gives, or why it is refused; a fault that nobody foresaw is logged, too.

    What is of the machine and not of the document is raised: a store or database that is away (`Unavailable`), no
    memory, a full disk. It would park all documents, and nothing is wrong with them.
    """
    try:
        return work()
    except BillingError as error:
        if error.retryable:
            raise
        return Refused(error.detail)
    except BaseException as error:
        if not _of_the_document(error):
            raise
        shown = ", ".join(numbers[:3]) + (f" and {len(numbers) - 3} more" if len(numbers) > 3 else "")
        LOG.exception("the files of %s cannot be made", shown)
        return Refused(f"{type(error).__name__}: {error}"[:REASON_MAX])


def _of_the_document(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno is None  # with a number it is the system's; Pillow's for a broken picture has none
    # A panic inside Typst is no Exception, and each library written in Rust has a class of its own for it.
    panic = type(error).__name__ == "PanicException"
    return panic or (isinstance(error, Exception) and not isinstance(error, MemoryError))
