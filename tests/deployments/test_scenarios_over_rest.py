"""Every worked example once more, through the API: the platform must agree with the pure core to the last digit."""

from pathlib import Path
from typing import Any

import pytest

from billing.errors import InvalidInput, NotAuthenticated
from billing.scenario import check_scenario
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


def _form(name: str) -> Any:
    path = next(path for path in SCENARIOS if path.stem == name)
    return load(path.read_text(encoding="utf-8"))


def _tenants(platform: Platform) -> set[str]:
    return {row["code"] for row in platform.admin.pages("/v1/tenants")}


def test_what_comes_out_otherwise_is_a_difference_with_its_place(platform: Platform) -> None:
    form = _form("reserve-commit-release")
    form["timeline"][2]["reserve"]["expect"]["granted"] = "5.99"
    form["expect"]["documents"][0]["prepaid"] = "7.13"
    form["expect"]["wallets"][0]["balance"] = "2.85"
    differences, _ = check_scenario_at(form, platform)
    assert [(one.place, one.expected, one.actual) for one in differences] == [
        ("/timeline/2/reserve/expect/granted", "5.99", "6.00"),
        ("/expect/documents/0/prepaid", "7.13", "7.14"),
        ("/expect/wallets/0/balance", "2.85", "2.86"),
    ]
    assert differences == check_scenario(form)


def test_a_mistake_in_the_file_is_found_before_anything_is_sent(platform: Platform) -> None:
    before = _tenants(platform)
    form = _form("fourteen-of-31-days")
    form["timeline"].append({"at": "2018-03-01", "bil_run": {"up_to": "2018-03-01"}})
    with pytest.raises(InvalidInput) as caught:
        check_scenario_at(form, platform)
    assert [error.pointer for error in caught.value.errors] == ["/timeline/2/bil_run"]
    assert _tenants(platform) == before


@pytest.mark.parametrize(
    ("step", "place"),
    [
        ({"credit_note": {"document": "9"}}, "credit_note/document"),
        ({"credit_note": {"document": "1", "lines": [{"line": "1"}, {"line": "7"}]}}, "credit_note/lines/1/line"),
        ({"credit_note": {"document": "1", "amount": "9999"}}, "credit_note/amount"),
        ({"correct": {"source": "a", "id": "e1", "data": {}}}, "correct"),
    ],
    ids=["no such document", "no such line", "more than is left", "an event that is not in suspense"],
)
def test_a_step_that_is_refused_is_named_by_its_place_in_the_file_both_ways(
    platform: Platform, step: Any, place: str
) -> None:
    form = _form("late-usage-delta")
    form["timeline"].append({"at": form["timeline"][-1]["at"], **step})
    pointer = f"/timeline/{len(form['timeline']) - 1}/{place}"
    for check in (check_scenario, lambda form: check_scenario_at(form, platform)):
        with pytest.raises(InvalidInput) as caught:
            check(form)
        (error,) = caught.value.errors
        assert error.pointer.startswith(pointer), error


def test_the_key_of_the_tenant_has_ended_unless_it_is_kept(platform: Platform) -> None:
    for keep in (False, True):
        _, tenant = check_scenario_at(_form("fourteen-of-31-days"), platform, keep)
        with platform.client(tenant.key) as client:
            if keep:
                assert client.get("/v1/tenant")["code"] == tenant.code
            else:
                with pytest.raises(NotAuthenticated):
                    client.get("/v1/tenant")
