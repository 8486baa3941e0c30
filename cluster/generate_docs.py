"""`make docs`: writes the pages of `docs/` that are made from code, so that they cannot differ from it."""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic_core import PydanticUndefined

from cluster.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
_HEAD = """# Configuration

Made from `cluster/settings.py` by `make docs`; do not edit.

Every setting is an environment variable, or a line of the TOML file that `CLOUDBILLING_CONFIG` names (`port = 8081`:
the name in lower case without the prefix). The environment goes before the file. A value that is not allowed ends the
command with exit code 2 and the name of the setting.

| Variable | Default | Meaning |
|---|---|---|
"""
_FOOT = """
Besides these, `CLOUDBILLING_CONFIG` names the file, `CLOUDBILLING_TENANT` and `CLOUDBILLING_KEY` stand for `--tenant`
and `--key` of the commands. With traces on, the standard variables of OpenTelemetry count too, for example
`OTEL_TRACES_SAMPLER=parentbased_traceidratio` with `OTEL_TRACES_SAMPLER_ARG=0.05`.
"""


def configuration() -> str:
    """The text of docs/configuration.md."""
    lines: list[str] = []
    for name, field in Settings.model_fields.items():
        default = field.default
        shown = "(required)" if default is PydanticUndefined else "(empty)" if default == "" else f"`{default}`"
        lines.append(f"| `CLOUDBILLING_{name.upper()}` | {shown} | {field.description} |")
    return _HEAD + "\n".join(lines) + "\n" + _FOOT


PAGES = {"docs/configuration.md": configuration}


def main() -> int:
    for path, text in PAGES.items():
        (ROOT / path).write_text(text(), encoding="utf-8")
        print(f"wrote {path}")  # noqa: T201 - a command for people
    return 0


if __name__ == "__main__":
    sys.exit(main())
