"""The command `cloudbilling`: speaks to a platform over HTTP; only `up` starts one.

`main` keeps start-up short: nothing heavy is imported before a command needs it (no Ray, no Polars for `--help`).
"""

from __future__ import annotations


def main() -> None:
    import sys

    if sys.argv[1:2] == ["scenario"]:  # a road of its own: tried again and again, so it starts without the rest
        from cluster.scenario_command import main as scenario

        sys.exit(scenario(sys.argv[2:]))
    from cluster.cli.app import run

    run()
