"""`cloudbilling scenario FILE...`: run scenario and price files in this process and show every difference.

Owns reading the files and printing; the pure core does the rest. No server, no Ray, nothing is stored.
"""

from __future__ import annotations

import json as json_text
import sys
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import yaml

FILE_BYTES_MAX = 20_000_000
TEXT_TAGS = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:bool", "tag:yaml.org,2002:merge")


class DuplicateKey(yaml.YAMLError):
    """A key is written twice in one object: which one counts would be a guess."""


class TextLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML in which everything but null, true and false is text: no float, no date, no octal number."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [
            (tag, pattern)
            for tag, pattern in resolvers
            if tag in TEXT_TAGS and not (tag.endswith(":bool") and first in "yYnNoO")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        written = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key in {key for key in written if written.count(key) > 1}:
            raise DuplicateKey(f"line {node.start_mark.line + 1}: key {key!r} is there twice")
        self.flatten_mapping(node)
        return super().construct_mapping(node, deep=deep)


def load(text: str) -> Any:
    """One YAML document as lists, objects, text, null, true and false."""
    return yaml.load(text, Loader=TextLoader)  # noqa: S506 (a safe loader with fewer types)


def run_files(paths: Sequence[str | Path], json: bool = False) -> int:
    """Run files one by one; 0 when all agree, 1 on any difference or a file that cannot be read."""
    results = [_run_file(Path(path)) for path in paths]
    if json:
        sys.stdout.write(json_text.dumps({"files": results}, ensure_ascii=False, indent=2) + "\n")
    else:
        sys.stdout.write("".join(_shown(result) for result in results))
        good = sum(1 for result in results if result["agrees"])
        sys.stdout.write(f"{good} of {len(results)} files agree\n")
    return 0 if results and all(result["agrees"] for result in results) else 1


def _run_file(path: Path) -> dict[str, Any]:
    from billing.errors import BillingError  # late: `cloudbilling --help` does not pay for the core
    from billing.scenario import check_prices, check_scenario

    result: dict[str, Any] = {"file": str(path), "agrees": False, "differences": [], "error": None}
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            return {**result, "error": f"is larger than {FILE_BYTES_MAX} bytes"}
        form = load(path.read_text(encoding="utf-8"))
        found = check_prices(form) if isinstance(form, list) else check_scenario(form)
    except OSError as error:
        return {**result, "error": f"cannot be read: {error.strerror or error}"}
    except UnicodeDecodeError:
        return {**result, "error": "is not UTF-8 text"}
    except yaml.YAMLError as error:
        return {**result, "error": f"is no valid YAML: {error}"}
    except BillingError as error:
        places = [{"place": one.pointer, "detail": one.detail} for one in error.errors]
        return {**result, "error": error.detail, "errors": places}
    result["differences"] = [{"place": d.place, "expected": d.expected, "actual": d.actual} for d in found]
    return {**result, "agrees": not found}


def _shown(result: dict[str, Any]) -> str:
    if result["agrees"]:
        return f"ok    {result['file']}\n"
    lines = [f"DIFF  {result['file']}"]
    if result["error"] is not None:
        errors = result.get("errors") or []
        lines[0] = f"ERROR {result['file']}: {result['error']}"
        lines.extend(f"      {one['place'] or '/'}: {one['detail']}" for one in errors[1:])
    for one in result["differences"]:
        lines.append(f"      {one['place']}")
        lines.append(f"        expected  {one['expected']}")
        lines.append(f"        got       {one['actual']}")
    return "\n".join(lines) + "\n"
