"""Import of usage files: mapping applied here, events sent to the platform, every refused row named.

And `derive`: the catalog and customers that rows with their own price list give, as files to look at and to change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cluster.client import Client

Progress = Callable[[str, int, int], None]
EVENTS_A_CALL = 20_000
NAMED_MAX = 1_000  # refused rows that the answer names; the counts are of all


def import_file(client: Client, file: Path, mapping_file: Path, *, progress: Progress) -> dict[str, Any]:
    """Send every row of a file as an event. Ids are kept for ever, so a second import changes nothing.

    Gives counts by verdict and the rows (1-based, without the header) that are not accepted, with their reasons.
    """
    counts = {"rows": 0, "accepted": 0, "duplicates": 0, "suspended": 0, "rejected": 0}
    named: list[dict[str, Any]] = []
    for events in events_of(file, mapping_file):
        for start in range(0, events.height, EVENTS_A_CALL):
            answer = client.usage(events.slice(start, EVENTS_A_CALL))
            for verdict in ("accepted", "duplicates", "suspended", "rejected"):
                counts[verdict] += int(answer[verdict])
            before = counts["rows"] + start
            for error in answer.get("errors", ()):
                if len(named) < NAMED_MAX:
                    named.append({**error, "position": before + int(error["position"])})
            progress("events", before + min(EVENTS_A_CALL, events.height - start), 0)
        counts["rows"] += events.height
    return {**counts, "errors": named}


def derive(file: Path, mapping_file: Path, business_file: Path, directory: Path) -> list[Path]:
    """Write catalog.yaml and customers.yaml (steps in the API's forms) made of the rows of a file."""
    import polars as pl
    import yaml

    from pipelines.price_list import PriceList, business_steps
    from pipelines.usage_mapping import UsageMapping
    from storage.sources.tables import read_table

    mapping = UsageMapping.parse(yaml.safe_load(mapping_file.read_text()))
    prices = PriceList.parse(yaml.safe_load(business_file.read_text()))
    rows = mapping.with_derived(pl.concat(read_table(file, missing=mapping.missing)))
    steps = business_steps(rows, prices, by="consumption")
    people = [step for step in steps if {"customer", "subscribe"} & set(step)]
    catalog = [step for step in steps if step not in people]
    directory.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for name, part, about in (
        ("catalog.yaml", catalog, "Meters and the plan by consumption"),
        ("customers.yaml", people, "Customers and their subscriptions"),
    ):
        head = f"# {about}, derived from {file.name} by {mapping_file.name} and {business_file.name}.\n"
        path = directory / name
        path.write_text(head + yaml.safe_dump({"steps": part}, sort_keys=False, allow_unicode=True, width=118))
        written.append(path)
    return written


def events_of(file: Path, mapping_file: Path) -> Iterator[Any]:
    """The rows of a file as events, frame by frame."""
    import yaml

    from pipelines.usage_mapping import UsageMapping
    from storage.sources.tables import read_table

    mapping = UsageMapping.parse(yaml.safe_load(mapping_file.read_text()))
    for table in read_table(file, missing=mapping.missing):
        yield mapping.events(table)
