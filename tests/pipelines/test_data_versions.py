"""What a result rests on beside log and master data is written down, and machines that differ do not mix."""

from __future__ import annotations

import zoneinfo
from collections.abc import Iterator
from pathlib import Path

import pytest

from billing.errors import Conflict
from billing.master import MasterData
from pipelines.data_versions import check_time_zones, data_versions, time_zones


@pytest.fixture(autouse=True)
def unread() -> Iterator[None]:
    """The version is read once a process: read it again in each test, and after it."""
    before = zoneinfo.TZPATH
    time_zones.cache_clear()
    yield
    zoneinfo.reset_tzpath(before)
    time_zones.cache_clear()


def zones_in(folder: Path, **files: str) -> str:
    (folder / "Europe").mkdir(parents=True)
    (folder / "Europe" / "Berlin").write_bytes(b"TZif2")
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text, encoding="ascii")
    zoneinfo.reset_tzpath([str(folder)])
    return time_zones()


def test_the_version_is_that_of_the_files_that_are_read(tmp_path: Path) -> None:
    assert zones_in(tmp_path / "a", tzdata_zi="# version 2031c\nR x\n") == "2031c of the system"


def test_files_without_a_version_are_known_by_what_they_say(tmp_path: Path) -> None:
    assert zones_in(tmp_path / "a") == "of the system, ad65d8f2e1cdcd7b"


def test_without_files_of_the_system_it_is_the_package(tmp_path: Path) -> None:
    zoneinfo.reset_tzpath([str(tmp_path)])
    import tzdata

    assert time_zones() == f"{tzdata.IANA_VERSION} of the package"


def test_a_machine_with_other_time_zone_data_computes_no_part_of_a_run() -> None:
    check_time_zones(time_zones())
    check_time_zones(None)  # runs of versions that did not write it down
    with pytest.raises(Conflict, match="planned with time zone data 1999a of the system, this machine has"):
        check_time_zones("1999a of the system")


def test_tax_codes_are_named_with_the_step_of_their_percents() -> None:
    master = MasterData.start({"currency": "EUR", "timezone": "UTC"})
    for percent in ("19", "16"):
        form = {"code": "t", "percents": [{"from": "2021-01-01", "percent": percent}]}
        master = master.apply_all([{"tax_code": form}, {"tax_code": {**form, "code": "a"}}])
    versions = data_versions(master)
    assert versions["tax_codes"] == "a (step 4), t (step 3)"
    assert versions["currencies"] == "ISO 4217, list one of 2026-01-01"
    assert set(versions) == {"product", "time_zones", "currencies", "tax_codes"}
    again = MasterData.from_bytes(master.to_bytes())
    assert data_versions(again) == versions
