"""The commands of docs/simulation.md run as they stand there, after those of the README's tour."""

import json
import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.postgres

ROOT = Path(__file__).resolve().parents[2]
BASE = "http://127.0.0.1:8080"


def commands(page: str) -> list[list[str]]:
    """The curl commands of a page's shell blocks, as their words."""
    found: list[list[str]] = []
    for block in re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S):
        words = shlex.split(block, comments=True)
        starts = [place for place, word in enumerate(words) if word == "curl"]
        found += [words[start:end] for start, end in pairwise([*starts, len(words)])]
    return found


def run(tenant: Any, words: list[str]) -> Any:
    """One curl command against the application."""
    urls = [word for word in words if word.startswith(BASE)]
    assert len(urls) == 1, words
    path = urls[0].removeprefix(BASE)
    data = next((words[place + 1] for place, word in enumerate(words) if word in ("-d", "--data-binary")), None)
    answer = tenant.get(path) if data is None else tenant.post(path, json.loads(data))
    assert answer.status_code < 300, (path, answer.text)
    return answer.json()


def test_the_commands_of_the_page_give_what_it_says(api: Any) -> None:
    tenant = api.tenant()
    steps = next(words for words in commands("README.md") if f"{BASE}/v1/steps" in words)
    run(tenant, steps)
    events = re.findall(r"'(\{\"source\":.*?\})'", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert tenant.usage("\n".join(events)).status_code == 200
    assert tenant.post("/v1/bill-runs", {"up_to": "2026-11-01"}).status_code == 202
    number = tenant.get("/v1/invoices").json()["items"][0]["number"]
    page = commands("docs/simulation.md")
    assert len(page) == 6
    answers = [run(tenant, [word.replace("RE-2026-000001", number) for word in words]) for words in page]
    explanation, events_of_line, following, change, _, listed = answers
    assert (explanation["amount"]["net"], explanation["derived"]["agrees"]) == ("14.04", True)
    assert [one["id"] for one in events_of_line["items"]] == ["a1", "a2"]
    assert following["parked"] is None
    assert change["customers"][0]["customer"] == "rhein"
    (done,) = listed["items"]
    (euro,) = done["result"]["currencies"]
    assert (done["state"], euro["before"], euro["after"]) == ("done", "14.04", "18.06")
