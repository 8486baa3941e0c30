"""What every command shares: settings, the key, output for people or programs, and exit codes.

Exit codes: 0 fine, 1 the answer is no, 2 wrong call, 3 the platform cannot be reached.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import typer

if TYPE_CHECKING:
    from billing.errors import BillingError
    from cluster.client import Client
    from cluster.settings import Settings

NO, WRONG_CALL, UNREACHABLE = 1, 2, 3

Key = typer.Option(None, "--key", envvar="CLOUDBILLING_KEY", help="API key; default: a tenant key made with --tenant.")
Tenant = typer.Option(None, "--tenant", envvar="CLOUDBILLING_TENANT", help="Code of the tenant.")
AsJson = typer.Option(False, "--json", help="Print JSON for programs.")
Url = typer.Option(None, "--url", help="Address of the platform; default: the one of the settings.")


def settings() -> Settings:
    """The settings of this call; a mistake in them ends it with words."""
    from pydantic import ValidationError

    from cluster.settings import Settings

    try:
        return Settings()
    except ValidationError as error:
        for one in error.errors():
            name = "_".join(str(part) for part in one["loc"]).upper()
            fail(f"CLOUDBILLING_{name}: {one['msg']}", WRONG_CALL)
        raise


def database_url(settings: Settings) -> str:
    """Where PostgreSQL is: the one of the settings, or the embedded one of the platform that runs here."""
    if settings.database_url:
        return settings.database_url
    from storage.sql.embedded import EmbeddedPostgres

    server = EmbeddedPostgres(settings.data_dir / "postgres")
    if server.pid is None:
        fail("PostgreSQL does not run", UNREACHABLE, "start the platform: cloudbilling up")
    return server.dsn


def fail(words: str, code: int, *more: str) -> None:
    """Say what is wrong, on stderr, and end with the exit code. The last line is what helps."""
    print(f"cloudbilling: {words}", file=sys.stderr)  # noqa: T201 - this is the terminal's module
    for line in more:
        print(line, file=sys.stderr)  # noqa: T201
    raise typer.Exit(code)


@contextmanager
def problems() -> Iterator[None]:
    """Turn errors of the platform into words and exit codes."""
    from billing.errors import BillingError, Conflict, InvalidInput, NotAuthenticated, NotFound, Unavailable

    try:
        yield
    except Unavailable as error:
        fail(error.detail, UNREACHABLE, "try: cloudbilling status")
    except (InvalidInput, NotFound) as error:
        fail(error.detail, WRONG_CALL, *_places(error))
    except NotAuthenticated as error:
        fail(error.detail, WRONG_CALL, "try: cloudbilling keys create --tenant T --scopes usage:write")
    except Conflict as error:
        fail(error.detail, NO)
    except BillingError as error:
        fail(error.detail, NO, *_places(error))


def _places(error: BillingError) -> list[str]:
    """A line for each place that is wrong, but for one that the error's own text says."""
    said = (f"{one.pointer}: {one.detail}" for one in error.errors)
    return [f"  {one}" for one in said if one not in error.detail]


def platform_client(url: str | None = None) -> Client:
    """A client with the platform key that `up` wrote."""
    from cluster.client import Client

    chosen = settings()
    try:
        key = chosen.admin_key_file.read_text().strip()
    except FileNotFoundError:
        fail(f"there is no platform key in {chosen.data_dir}", UNREACHABLE, "try: cloudbilling up")
        raise
    return Client(url or chosen.url, key, deadline_s=5.0)


def tenant_client(tenant: str | None, key: str | None, scopes: Sequence[str], url: str | None = None) -> Client:
    """A client for one tenant: with the key given, or with a short-lived one made by the platform key."""
    from cluster.client import Client

    chosen = settings()
    if key:
        return Client(url or chosen.url, key)
    if not tenant:
        fail("which tenant?", WRONG_CALL, "give --tenant CODE, or --key KEY (or CLOUDBILLING_KEY)")
    from datetime import UTC, datetime, timedelta

    ends = (datetime.now(UTC) + timedelta(hours=12)).isoformat()
    with platform_client(url) as platform:
        form = {"tenant": tenant, "name": f"cli of {os.getpid()}", "scopes": list(scopes), "expires_at": ends}
        made = platform.post("/v1/keys", form)
    return Client(url or chosen.url, made["key"])


def show(value: Any, as_json: bool, people: Callable[[Any], None]) -> None:
    """Print a result: JSON for programs, or as `people` prints it."""
    if as_json:
        print(json.dumps(value, ensure_ascii=False, indent=1, default=str))  # noqa: T201
    else:
        people(value)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, right: Sequence[str] = ()) -> None:
    """Rows under their columns, aligned; nothing but text in a pipe."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*("–" if cell is None else str(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(made)


class Progress(Protocol):
    """Says how far something is; `left_s`: seconds left, from whoever does it."""

    def __call__(self, what: str, done: int, total: int, left_s: float | None = None) -> None: ...


def progress_printer(*, reckons: bool = True) -> Progress:
    """Progress on stderr: a line that renews itself on a terminal, a line a step elsewhere.

    It reckons speed and time left from what it sees; not so (`reckons` off) where it only looks on and may have come
    late: then it says what it is told.
    """
    import time

    on_terminal = sys.stderr.isatty()
    state: dict[str, Any] = {"what": "", "began": time.monotonic(), "said": 0.0}

    def say(what: str, done: int, total: int, left_s: float | None = None) -> None:
        now = time.monotonic()
        if what != state["what"]:
            if state["what"] and on_terminal:
                sys.stderr.write("\n")
            state.update(what=what, began=now, said=0.0)
        last = total and done >= total
        if not last and now - state["said"] < (0.1 if on_terminal else 5.0):
            return
        state["said"] = now
        seconds = max(now - state["began"], 0.001)
        rate = done / seconds
        if reckons and total and done and done < total:
            left_s = (total - done) / rate
        said = [f"{rate:,.0f}/s"] if reckons else []
        said += [f"{left_s:,.0f} s left"] if left_s is not None else []
        text = f"{what}: {done:,}" + (f" of {total:,}" if total else "") + (f" ({', '.join(said)})" if said else "")
        sys.stderr.write(f"\r\x1b[K{text}" if on_terminal else f"{text}\n")
        sys.stderr.flush()

    return say


def write_files(out: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Put files into a folder, which is made; what the disk refuses is told in words."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, data in files:
            (out / name).write_bytes(data)
    except OSError as error:
        fail(str(error), NO)


def day(text: str | None, option: str) -> date | None:
    """A date of the command line; a wrong call in words otherwise."""
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).date()
    except ValueError:
        fail(f"{option}: {text!r} is no date like 2026-12-01", WRONG_CALL)
