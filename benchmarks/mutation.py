"""`make mutation`: change the core on purpose and see whether a test notices. The score is the share of those noticed.

A driver around mutmut: it copies the project, lets mutmut make every mutant of `billing/`, draws a sample by a seed,
and lets mutmut run those tests of the core (`[tool.mutmut]`) that reach the changed function. Everything drawn counts:
a mutant that no test reaches has survived, one that changes nothing that can be seen has, too; one that never ends was
noticed.
`python -m benchmarks.mutation [--sample 400] [--seed 1] [--folder DIR] [FILES...]`, such as `'billing/pricing/*'`; the
last line is JSON. A kept folder spares the next run most of the five minutes that it takes to make the mutants.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from math import sqrt
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("billing", "storage", "cluster", "actors", "pipelines", "deployments", "tests", "docs", "examples",
          "README.md")  # fmt: skip
TESTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutmut"][
    "pytest_add_cli_args_test_selection"
]
SMALLEST = "billing/einvoice/units.py"  # mutmut makes all mutants on its first run, even if it is to try those of one
NOT_RUN = 255  # pytest did not take the names of the tests: mutmut would call that a time-out
NOTICED = ("killed", "timeout")
# Forked test processes hang on their first column if the process that they come from has used Polars' threads.
THREADS = """
import pathlib, sys, pytest
if pytest.main(["--collect-only", "-qqq", "-p", "no:cacheprovider", *sys.argv[1:]]):
    sys.exit("the tests cannot be collected")
names = {(task / "comm").read_text().strip() for task in pathlib.Path("/proc/self/task").iterdir()}
if any(name.startswith("polars-") and name[7:].isdigit() for name in names):
    sys.exit("importing the tests starts Polars' threads: some module computes columns while it is imported")
"""

# Most mutants fall to a quick test: with the quick ones first a run takes a third of the time.
PLUGIN = """
import json, pathlib, pytest

@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    stats = pathlib.Path("mutmut-stats.json")
    took = json.loads(stats.read_text())["duration_by_test"] if stats.exists() else {}
    items.sort(key=lambda item: took.get(item.nodeid, 0.0))
"""


def copy_project(folder: Path, files: Sequence[str]) -> None:
    """The project as it is, told which files to mutate; what an earlier run found out in the folder stays if it can."""
    mutated = f"\nonly_mutate = {json.dumps([SMALLEST, *files])}\n" if files else "\n"
    settings = (
        (ROOT / "pyproject.toml").read_text(encoding="utf-8").replace("[tool.mutmut]\n", f"[tool.mutmut]{mutated}")
    )
    if (folder / "pyproject.toml").exists() and (folder / "pyproject.toml").read_text(encoding="utf-8") != settings:
        shutil.rmtree(folder / "mutants", ignore_errors=True)
    (folder / "pyproject.toml").write_text(settings, encoding="utf-8")
    (folder / "plugins").mkdir(exist_ok=True)
    (folder / "plugins" / "quick_tests_first.py").write_text(PLUGIN, encoding="utf-8")
    for part in COPIED:
        source, target = ROOT / part, folder / part
        if source.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    for mutants in (folder / "mutants").glob("*"):
        if mutants.name in COPIED and mutants.name != "billing":
            shutil.rmtree(mutants) if mutants.is_dir() else mutants.unlink()  # or files that are gone would stay


def environment(folder: Path) -> dict[str, str]:
    """No example of one mutant's run may lead another's, and no deadline may kill one: Hypothesis' profile for CI."""
    return {**os.environ, "POLARS_MAX_THREADS": "1", "CI": "true", "PYTHONPATH": str(folder / "plugins"),
            "PYTEST_ADDOPTS": "-p quick_tests_first"}  # fmt: skip


def mutmut(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "mutmut", *arguments]
    with (folder / "mutmut.log").open("ab") as log:
        done = subprocess.run(command, cwd=folder, env=environment(folder), stdout=log, stderr=log, check=False)
    if done.returncode != 0:
        tail = (folder / "mutmut.log").read_text(encoding="utf-8", errors="replace")[-4_000:]
        raise SystemExit(f"mutmut {arguments[0]} ended with {done.returncode}:\n{tail}")


def verdicts(folder: Path, files: Sequence[str]) -> dict[str, str]:
    """What mutmut has found out about each mutant, by name; "not checked" where it did not try."""
    from mutmut.stats import status_by_exit_code

    found: dict[str, str] = {}
    for path in sorted((folder / "mutants" / "billing").rglob("*.meta")):
        name = path.relative_to(folder / "mutants").with_suffix("").as_posix()
        if files and not any(fnmatch(name, pattern) for pattern in files):
            continue
        codes: Mapping[str, int | None] = json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"]
        if NOT_RUN in codes.values():
            raise SystemExit(f"mutmut could not run the tests of {name}: is there a backslash in the name of a test?")
        found.update((name, status_by_exit_code[code]) for name, code in codes.items())
    return found


def difference(folder: Path, name: str) -> str:
    shown = subprocess.run([sys.executable, "-m", "mutmut", "show", name], cwd=folder, env=environment(folder),
                           capture_output=True, text=True, check=True).stdout  # fmt: skip
    lines = [line for line in shown.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    return "\n".join(f"    {line[0]} {line[1:].strip()}" for line in lines)


def summary(names: Iterable[str], found: Mapping[str, str]) -> dict[str, object]:
    counts = Counter(found[name] for name in names)
    tried, noticed = sum(counts.values()), sum(counts[one] for one in NOTICED)
    share = noticed / tried
    modules: dict[str, list[int]] = {}
    for name in sorted(names):
        module = modules.setdefault(name.rpartition(".")[0], [0, 0])
        module[0] += found[name] in NOTICED
        module[1] += 1
    return {
        "figure": round(100 * share, 1), "unit": "% killed",
        "margin": round(196 * sqrt(share * (1 - share) / tried), 1),  # of 19 in 20 samples of this size
        "mutants": len(found), "sample": tried, **{key.replace(" ", "_"): count for key, count in counts.items()},
        "modules": modules,
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="what to change, such as 'billing/pricing/*'; default: all of billing")
    parser.add_argument("--sample", type=int, default=400, help="how many mutants; 0 = all (days)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--children", type=int, default=1, help="mutants at a time")
    parser.add_argument("--folder", type=Path, help="where to work, and to stay; default: a folder that goes away")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="cb-mutation-") as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        copy_project(folder, options.files)
        subprocess.run(
            [sys.executable, "-c", THREADS, *TESTS], cwd=folder, env=environment(folder), stdout=sys.stderr, check=True
        )
        children = ("--max-children", str(options.children))
        mutmut(folder, "run", *children, SMALLEST.removesuffix(".py").replace("/", ".") + ".*")
        names = sorted(verdicts(folder, options.files))
        if not names:
            raise SystemExit("there is nothing to change in such files")
        if 0 < options.sample < len(names):
            names = random.Random(options.seed).sample(names, options.sample)
        print(f"trying {len(names)} mutants; tail -f {folder / 'mutmut.log'}", file=sys.stderr, flush=True)
        mutmut(folder, "run", *children, *names)
        found = verdicts(folder, options.files)
        for name in sorted(names):
            if found[name] not in NOTICED:
                print(f"{found[name]}: {name}\n{difference(folder, name)}", flush=True)
        result = summary(names, found)
    for module, (noticed, tried) in result["modules"].items():  # type: ignore[attr-defined]
        print(f"{module:40} {noticed:4} of {tried:4} noticed")
    print(json.dumps({**result, "seed": options.seed}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
