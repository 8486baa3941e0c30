"""`make mutation`: change the core on purpose and see whether a test notices. The score is the share that was noticed.

Works on a copy of the project, one change at a time, chosen by a seed: an operator turned, a comparison shifted, a
constant moved, a condition negated. Each change runs the tests of `tests/billing` until the first failure.
`python -m benchmarks.mutation [--changes 40] [--seed 1] [MODULE...]`; the last line is JSON.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("billing", "storage", "cluster", "actors", "pipelines", "deployments", "tests", "docs", "pyproject.toml")
SECONDS_MAX = 300  # a change that loops for ever counts as noticed
TURNED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


def places(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Every node that can be changed, with what the change is called."""
    for node in ast.walk(tree):
        if (isinstance(node, ast.BinOp) and type(node.op) in TURNED) or (
            isinstance(node, ast.BoolOp) and type(node.op) in TURNED
        ):
            yield node, f"{type(node.op).__name__} -> {TURNED[type(node.op)].__name__}"
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in TURNED:
            yield node, f"{type(node.ops[0]).__name__} -> {TURNED[type(node.ops[0])].__name__}"
        elif isinstance(node, ast.Constant) and type(node.value) is int and 0 <= node.value < 100:
            yield node, f"{node.value} -> {node.value + 1}"
        elif isinstance(node, ast.If):
            yield node, "condition negated"


def change(node: ast.AST) -> None:
    if isinstance(node, ast.BinOp | ast.BoolOp):
        node.op = TURNED[type(node.op)]()  # type: ignore[assignment]
    elif isinstance(node, ast.Compare):
        node.ops[0] = TURNED[type(node.ops[0])]()  # type: ignore[assignment]
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        node.value += 1
    elif isinstance(node, ast.If):
        node.test = ast.UnaryOp(ast.Not(), node.test)


def noticed(folder: Path) -> bool:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "tests/billing"]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "POLARS_MAX_THREADS": "1"}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, timeout=SECONDS_MAX, check=False
        )
    except subprocess.TimeoutExpired:
        return True
    return done.returncode != 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", help="files below billing/; default: all of them")
    parser.add_argument("--changes", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    modules = [Path(name) for name in options.modules] or [
        path.relative_to(ROOT) for path in sorted((ROOT / "billing").rglob("*.py"))
    ]
    with tempfile.TemporaryDirectory(prefix="cb-mutation-") as name:
        folder = Path(name)
        for part in COPIED:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, folder / part)
        if noticed(folder):
            print("the tests fail without any change; nothing to measure", file=sys.stderr)
            return 1
        candidates = [
            (module, index, words, node.lineno)
            for module in modules
            for index, (node, words) in enumerate(places(ast.parse((ROOT / module).read_text(encoding="utf-8"))))
        ]
        chosen = random.Random(options.seed).sample(candidates, min(options.changes, len(candidates)))
        survived: list[str] = []
        for module, index, words, line in chosen:
            text = (ROOT / module).read_text(encoding="utf-8")
            tree = ast.parse(text)
            change(list(places(tree))[index][0])
            (folder / module).write_text(ast.unparse(tree), encoding="utf-8")
            seen = noticed(folder)
            (folder / module).write_text(text, encoding="utf-8")
            print(f"  {'noticed ' if seen else 'SURVIVED'} {module}:{line} {words}", file=sys.stderr, flush=True)
            if not seen:
                survived.append(f"{module}:{line} {words}")
    score = round(100 * (1 - len(survived) / len(chosen)), 1)
    print(json.dumps({"figure": score, "unit": "% noticed", "changes": len(chosen), "survived": survived}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
