"""`cloudbilling scenario FILE...`: run scenario and price files, here or on a running platform, and show differences.

Owns the command's options, reading the files, and printing. Without `--url` the pure core does the rest in this process
and nothing is stored; with it `cluster/scenario_url.py` does the same through the API. Starts in well under a second:
nothing is imported that the call does not need (no HTTP, no settings, no Ray).
"""

from __future__ import annotations

import argparse
import json as json_text
import sys
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import yaml

if TYPE_CHECKING:
    from cluster.scenario_url import Platform

FILE_BYTES_MAX = 20_000_000
JOBS_MAX = 32
AGREES, DIFFERS, REFUSED = 0, 1, 2
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


def main(arguments: Sequence[str]) -> int:
    """The command line; the exit code: 0 all agree, 1 a difference or a wrong file, 2 a wrong call or a refusal."""
    options = _parser().parse_args(arguments)
    return run_files(
        options.files,
        options.json,
        url=options.url,
        api_key_file=options.api_key_file,
        keep=options.keep,
        jobs=options.jobs,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cloudbilling scenario",
        description="Run customer lives on a test clock and compare their documents to the cent: in this process, or on"
        " a running platform through its API, in a fresh test tenant for each file.",
        epilog="Exit code: 0 all agree, 1 there is a difference, 2 a wrong call, or a platform or key that refuses.",
        allow_abbrev=False,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="Scenario and price files (docs/rules.md).")
    parser.add_argument("--url", help="Address of a running platform; default: run here, without one.")
    parser.add_argument(
        "--api-key-file",
        type=Path,
        metavar="F",
        help="File with a platform key that may make tenants; default: the one that `up` wrote to the data folder.",
    )
    parser.add_argument("--keep", action="store_true", help="Leave the key of each test tenant open, and print it.")
    parser.add_argument("--jobs", type=int, default=4, metavar="N", help="Files at a time on a platform (default 4).")
    parser.add_argument("--json", action="store_true", help="Print JSON for programs.")
    return parser


def run_files(
    paths: Sequence[str | Path],
    json: bool = False,
    *,
    url: str | None = None,
    api_key_file: str | Path | None = None,
    keep: bool = False,
    jobs: int = 4,
) -> int:
    """Run files and print; what `main` returns."""
    if url is None:
        if api_key_file is not None or keep:
            return _refuse("--api-key-file and --keep are about a running platform", "give --url, too")
        results = (_run_file(Path(path), _here) for path in paths)
        return _print(results, json, {})
    if not 1 <= jobs <= JOBS_MAX:
        return _refuse(f"--jobs is from 1 to {JOBS_MAX}")
    platform = _connect(url, api_key_file)
    if platform is None:
        return REFUSED
    return _run_there(paths, platform, json, keep, jobs)


def _connect(url: str, api_key_file: str | Path | None) -> Platform | None:
    """The platform, if it answers and takes the key; else None, after saying what is wrong."""
    from billing.errors import BillingError, NotAllowed, NotAuthenticated, Unavailable
    from cluster.scenario_url import Platform

    path = api_key_file
    if path is None:
        from cluster.settings import Settings

        path = Settings().admin_key_file
    try:
        key = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        _refuse(f"the key file {path} cannot be read: {error}", "give --api-key-file F with a platform key")
        return None
    try:
        return Platform.at(url, key)
    except Unavailable as error:
        _refuse(error.detail, "is it running? try: cloudbilling status")
    except NotAuthenticated as error:
        _refuse(f"{url} does not take the key of {path}: {error.detail}", "the key that `up` wrote: <data>/admin.key")
    except NotAllowed as error:
        detail = f"the key of {path} may not make tenants: {error.detail}"
        _refuse(detail, "a platform key is needed, not a tenant's: <data>/admin.key")
    except BillingError as error:
        _refuse(f"{url} answers, but not like this product: {error.detail}", "check the address")
    return None


def _refuse(words: str, *more: str) -> int:
    sys.stderr.write("\n".join([f"cloudbilling: {words}", *more]) + "\n")
    return REFUSED


def _run_there(paths: Sequence[str | Path], platform: Platform, json: bool, keep: bool, jobs: int) -> int:
    from concurrent.futures import ThreadPoolExecutor

    from billing.errors import NotAllowed, NotAuthenticated, Unavailable
    from cluster.scenario_url import check_prices_at, check_scenario_at

    def there(form: Any, result: dict[str, Any]) -> Any:
        if isinstance(form, list):
            return check_prices_at(form, platform)
        differences, tenant = check_scenario_at(form, platform, keep)
        result["tenant"] = {"code": tenant.code, "key": tenant.key} if keep else {"code": tenant.code}
        return differences

    pool = ThreadPoolExecutor(jobs)
    try:
        return _print(pool.map(lambda path: _run_file(Path(path), there), paths), json, {"url": platform.url})
    except (NotAuthenticated, NotAllowed, Unavailable) as error:
        return _refuse(f"{platform.url} gave up: {error.detail}", "is it running? try: cloudbilling status")
    finally:
        pool.shutdown(cancel_futures=True)


def _here(form: Any, result: dict[str, Any]) -> Any:
    from billing.scenario import check_prices, check_scenario

    return check_prices(form) if isinstance(form, list) else check_scenario(form)


def _run_file(path: Path, check: Callable[[Any, dict[str, Any]], Any]) -> dict[str, Any]:
    from billing.errors import BillingError, NotAllowed, NotAuthenticated, Unavailable

    result: dict[str, Any] = {"file": str(path), "agrees": False, "differences": [], "error": None}
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            return {**result, "error": f"is larger than {FILE_BYTES_MAX} bytes"}
        found = check(load(path.read_text(encoding="utf-8")), result)
    except OSError as error:
        return {**result, "error": f"cannot be read: {error.strerror or error}"}
    except UnicodeDecodeError:
        return {**result, "error": "is not UTF-8 text"}
    except yaml.YAMLError as error:
        return {**result, "error": f"is no valid YAML: {error}"}
    except (NotAuthenticated, NotAllowed, Unavailable):
        raise  # about the platform, not about this file
    except BillingError as error:
        places = [{"place": one.pointer, "detail": one.detail} for one in error.errors]
        return {**result, "error": error.detail, "errors": places}
    result["differences"] = [{"place": d.place, "expected": d.expected, "actual": d.actual} for d in found]
    return {**result, "agrees": not found}


def _print(results: Iterable[dict[str, Any]], json: bool, about: dict[str, Any]) -> int:
    """Each result as soon as it is there, or all as JSON at the end; the exit code."""
    done: list[dict[str, Any]] = []
    for result in results:
        done.append(result)
        if not json:
            sys.stdout.write(_shown(result))
            sys.stdout.flush()
    good = sum(1 for result in done if result["agrees"])
    if json:
        sys.stdout.write(json_text.dumps({**about, "files": done}, ensure_ascii=False, indent=2) + "\n")
    else:
        sys.stdout.write(f"{good} of {len(done)} files agree\n")
    return AGREES if done and good == len(done) else DIFFERS


def _shown(result: dict[str, Any]) -> str:
    lines: list[str] = []
    if result["agrees"]:
        lines.append(f"ok    {result['file']}")
    elif result["error"] is not None:
        errors = result.get("errors") or []
        lines.append(f"ERROR {result['file']}: {result['error']}")
        lines.extend(f"      {one['place'] or '/'}: {one['detail']}" for one in errors[1:])
    else:
        lines.append(f"DIFF  {result['file']}")
    for one in result["differences"]:
        lines.append(f"      {one['place']}")
        lines.append(f"        expected  {one['expected']}")
        lines.append(f"        got       {one['actual']}")
    tenant = result.get("tenant") or {}
    if "key" in tenant:
        lines.append(f"      kept: tenant {tenant['code']}, key {tenant['key']}")
    return "\n".join(lines) + "\n"
