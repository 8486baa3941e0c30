"""Every worked example once more, through the API: the platform must agree with the pure core to the last digit."""

from pathlib import Path
from typing import Any

import pytest

from cluster.client import Client
from cluster.scenario_command import load
from cluster.scenario_url import Platform, check_prices_at, check_scenario_at

pytestmark = [pytest.mark.postgres]
CASES = Path(__file__).parents[1] / "cases"
SCENARIOS = sorted([*(CASES / "scenarios").glob("*.yaml"), *(CASES / "own").glob("*.yaml")])
PRICES = sorted((CASES / "prices").glob("*.yaml"))


@pytest.fixture(scope="module")
def platform(api: Any) -> Platform:
    return Platform("http://testserver", Client("http://testserver", api.platform_key, http=api.http), api.http)


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_the_scenario_comes_out_over_rest_as_in_process(platform: Platform, path: Path) -> None:
    differences, _ = check_scenario_at(load(path.read_text(encoding="utf-8")), platform)
    assert differences == []


@pytest.mark.parametrize("path", PRICES, ids=lambda path: path.stem)
def test_the_price_file_comes_out_over_rest(platform: Platform, path: Path) -> None:
    assert check_prices_at(load(path.read_text(encoding="utf-8")), platform) == []
