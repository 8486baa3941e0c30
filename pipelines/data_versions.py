"""Which versions of outside data a result rests on: time zones, code lists, rates. Recorded with each bill run.

Owns how they are read. A machine whose time zone data differ from those of the run must not compute a part of it:
where a month begins would depend on which machine did.
"""

from __future__ import annotations

import hashlib
import zoneinfo
from functools import lru_cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from billing.errors import Conflict
from billing.master import MasterData
from billing.money import ISO_4217

TAX_CODES_SHOWN = 50


def data_versions(master: MasterData) -> dict[str, str]:
    """What results rest on beside the usage log and the master data: product, time zones, currencies, tax codes.

    `tax_codes` says by which step each of the tenant's codes got its percents.
    """
    return {
        "product": version("cloud-billing"),
        "time_zones": time_zones(),
        "currencies": f"ISO 4217, {ISO_4217}",
        "tax_codes": _tax_codes(master),
    }


def _tax_codes(master: MasterData) -> str:
    codes = [
        f"{code.code} (step {code.step})" for code in sorted(master.tax_codes.values(), key=lambda code: code.code)
    ]
    more = len(codes) - TAX_CODES_SHOWN
    return ", ".join(codes[:TAX_CODES_SHOWN]) + (f" and {more} more" if more > 0 else "")


@lru_cache(maxsize=1)
def time_zones() -> str:
    """The version of the time zone data that this process computes with: those of the system, else the package's.

    A system that does not tell its version is known by a hash of what one zone says.
    """
    for folder in map(Path, zoneinfo.TZPATH):
        zone = folder / "Europe" / "Berlin"
        if not zone.is_file():
            continue
        for name in ("+VERSION", "tzdata.zi"):
            if (folder / name).is_file():
                with (folder / name).open(encoding="ascii") as lines:
                    first = lines.readline().strip()
                return f"{first.removeprefix('# version').strip()} of the system"
        return f"of the system, {hashlib.sha256(zone.read_bytes()).hexdigest()[:16]}"
    return f"{import_module('tzdata').IANA_VERSION} of the package"


def check_time_zones(planned: str | None) -> None:
    """Raise Conflict if a run was planned with other time zone data than this machine has."""
    here = time_zones()
    if planned is not None and planned != here:
        raise Conflict(
            f"the run was planned with time zone data {planned}, this machine has {here}: "
            "bring all machines to one version, or cancel the run and start it again"
        )
