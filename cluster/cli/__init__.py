"""The command `cloudbilling`: speaks to a platform over HTTP; only `up` starts one.

`main` keeps start-up short: nothing heavy is imported before a command needs it (no Ray, no Polars for `--help`).
"""

from __future__ import annotations


def main() -> None:
    from cluster.cli.app import run

    run()
