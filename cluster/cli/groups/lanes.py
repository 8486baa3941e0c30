"""`cloudbilling lanes`: load, partitions, moves."""

from __future__ import annotations

import typer

from cluster.cli.context import AsJson, Url

lanes = typer.Typer(
    no_args_is_help=True, help="Lanes of the usage log: load, partitions, moves.", rich_markup_mode=None
)


DryRun = typer.Option(False, "--dry-run", help="Say what would move; move nothing.")


@lanes.command("list")
def lanes_list(url: str = Url, as_json: bool = AsJson) -> None:
    """Each lane with its partitions and what waits in front of it."""
    from cluster.cli import lanes as commands

    commands.show(url, as_json)


@lanes.command("plan")
def lanes_plan(url: str = Url, as_json: bool = AsJson) -> None:
    """What scaling by load would do now, and why; nothing is done."""
    from cluster.cli import lanes as commands

    commands.plan(url, as_json)


@lanes.command("move")
def lanes_move(
    partition: int = typer.Argument(help="0 to 255."),
    lane: int = typer.Argument(help="The lane it goes to."),
    url: str = Url,
    as_json: bool = AsJson,
) -> None:
    """Move one partition to a lane."""
    from cluster.cli import lanes as commands

    commands.move(partition, lane, url, as_json)


@lanes.command("spread")
def lanes_spread(
    chosen: list[int] = typer.Argument(help="Exactly these lanes have partitions then, evenly."),
    dry_run: bool = DryRun,
    url: str = Url,
    as_json: bool = AsJson,
) -> None:
    """Share all partitions among these lanes."""
    from cluster.cli import lanes as commands

    commands.spread(chosen, dry_run, url, as_json)


@lanes.command("drain")
@lanes.command("remove", hidden=True)
def lanes_drain(
    lane: int = typer.Argument(help="The lane that is emptied; it stays, without partitions."),
    dry_run: bool = DryRun,
    url: str = Url,
    as_json: bool = AsJson,
) -> None:
    """Let the other lanes share what one has."""
    from cluster.cli import lanes as commands

    commands.drain(lane, dry_run, url, as_json)


@lanes.command("leave")
def lanes_leave(
    node: str = typer.Argument(help="How the id of a node begins: see `lanes list`."),
    stays: bool = typer.Option(False, "--stay", help="It stays after all."),
    url: str = Url,
    as_json: bool = AsJson,
) -> None:
    """Have a node's lanes taken over elsewhere: before it leaves."""
    from cluster.cli import lanes as commands

    commands.leave(node, stays, url, as_json)


@lanes.command("close")
def lanes_close(
    lane: int = typer.Argument(help="A lane without partitions; its number is not used again."),
    url: str = Url,
    as_json: bool = AsJson,
) -> None:
    """End an empty lane for good: its process goes."""
    from cluster.cli import lanes as commands

    commands.close(lane, url, as_json)


@lanes.command("add")
def lanes_add(dry_run: bool = DryRun, url: str = Url, as_json: bool = AsJson) -> None:
    """One lane more: one that was emptied, or the next there is not yet."""
    from cluster.cli import lanes as commands

    commands.add(dry_run, url, as_json)
