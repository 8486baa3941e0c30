"""`cloudbilling usage backfill`: send a file under a backfill, go on where it stopped, say what it would change.

Owns the note beside the file that says how far it was sent. It only saves time: ids are kept for ever, so what is sent
twice is a duplicate. Nothing of the file counts before the backfill is committed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from billing.errors import InvalidInput
from cluster.client import Client, path_part

Progress = Callable[[str, int, int], None]
EVENTS_A_CALL = 20_000
NAMED_MAX = 1_000  # refused rows that the answer names; the counts are of all
LINES = (".ndjson", ".jsonl")
NDJSON = "application/x-ndjson"


def send_file(
    client: Client, file: Path, mapping_file: Path | None, *, name: str | None, note: str, progress: Progress
) -> dict[str, Any]:
    """Send a file under a backfill (default: one named by the file and its content) and give counts and the estimate.

    Lines of events as `POST /v1/usage` takes them, or with a mapping any table. The same call again goes on.
    """
    digest = _digest(file, mapping_file)
    chosen = name or f"{_plain(file.stem)}-{digest[:12]}"
    kept = _Note(file, chosen, digest)
    opened = client.post("/v1/usage/backfills", {"backfill": chosen, "note": note})
    if opened["state"] != "open":
        raise InvalidInput(f"the backfill {chosen} takes no more events: it is {opened['state']}")
    counts: dict[str, Any] = kept.counts
    begun = rows = counts["received"]
    path = f"/v1/usage/backfills/{path_part(chosen)}/events"
    total = _lines_in(file) if mapping_file is None else 0
    for first, body, media in _batches(file, mapping_file, begun):
        answer = client.post_bytes(path, body, media)
        for verdict in ("received", "accepted", "duplicates", "rejected"):
            counts[verdict] += int(answer[verdict])
        for error in answer["errors"]:
            if len(counts["errors"]) < NAMED_MAX:
                counts["errors"].append({**error, "position": first + int(error["position"])})
        rows = counts["received"]
        kept.write()
        progress("events", rows, total)
    result = {**counts, "backfill": chosen, "skipped": begun}
    return result | {"estimate": client.get(f"/v1/usage/backfills/{path_part(chosen)}/estimate")}


def forget(file: Path) -> None:
    """The file is committed: the note beside it has done its work."""
    _Note.beside(file).unlink(missing_ok=True)


class _Note:
    """How far a file was sent. Replaced whole, so a crash leaves the one before."""

    def __init__(self, file: Path, name: str, digest: str) -> None:
        self._path = self.beside(file)
        self._names = {"backfill": name, "digest": digest}
        self.counts: dict[str, Any] = {"received": 0, "accepted": 0, "duplicates": 0, "rejected": 0, "errors": []}
        try:
            found = json.loads(self._path.read_text())
        except (FileNotFoundError, ValueError):
            return  # none, or torn: all is sent from the start
        if isinstance(found, dict) and {key: found.get(key) for key in self._names} == self._names:
            self.counts = found["counts"]

    @staticmethod
    def beside(file: Path) -> Path:
        return file.with_name(f"{file.name}.backfill")

    def write(self) -> None:
        draft = self._path.with_name(f"{self._path.name}.draft")
        draft.write_text(json.dumps({**self._names, "counts": self.counts}))
        os.replace(draft, self._path)


def _digest(*files: Path | None) -> str:
    found = hashlib.blake2b(digest_size=16)
    for file in files:
        if file is not None:
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    found.update(block)
    return found.hexdigest()


def _plain(text: str) -> str:
    plain = "".join(one if one.isascii() and one.isalnum() else "-" for one in text)[:40].strip("-")
    return plain or "file"


def _lines_in(file: Path) -> int:
    with file.open("rb") as stream:
        return sum(1 for line in stream if line.strip())


def _batches(file: Path, mapping_file: Path | None, skip: int) -> Iterator[tuple[int, bytes, str]]:
    """(events before it, body, media type) of each call, after the first `skip` events."""
    if mapping_file is None:
        if file.suffix.lower() not in LINES:
            raise InvalidInput(f"{file.name} needs --mapping: without one only lines of events ({', '.join(LINES)}) go")
        yield from _line_batches(file, skip)
        return
    from cluster.import_command import events_of

    first = 0
    for events in events_of(file, mapping_file):
        for start in range(max(0, skip - first), events.height, EVENTS_A_CALL):
            buffer = io.BytesIO()
            part = events.slice(start, EVENTS_A_CALL)
            part.write_ipc_stream(buffer)
            yield first + start, buffer.getvalue(), "application/vnd.apache.arrow.stream"
        first += events.height


def _line_batches(file: Path, skip: int) -> Iterator[tuple[int, bytes, str]]:
    lines: list[bytes] = []
    first = count = 0
    with file.open("rb") as stream:
        for line in stream:
            if not line.strip():
                continue
            count += 1
            if count <= skip:
                first = count
                continue
            lines.append(line if line.endswith(b"\n") else line + b"\n")
            if len(lines) == EVENTS_A_CALL:
                yield first, b"".join(lines), NDJSON
                first, lines = count, []
    if lines:
        yield first, b"".join(lines), NDJSON
