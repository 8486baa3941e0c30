"""Which documents rest on usage that was erased."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from billing.master import MasterData
from pipelines.erased_usage import ErasedUsage, forgotten_in
from storage.object_store import LocalObjectStore
from storage.usage_log.erasing import ever_erased
from storage.usage_log.genesis import open_log
from tests.usage_log_support import OTHER_TENANT, TENANT


def document(customer: str, kind: str, quantity: str, whose: str = "") -> Any:
    return SimpleNamespace(
        customer=customer, lines=[SimpleNamespace(customer=whose, kind=kind, quantity=Decimal(quantity), plan="")]
    )


@pytest.mark.parametrize(
    ("kind", "quantity", "whose", "rule"),
    [
        ("usage", "2", "", "GDPR 17"),
        ("minimum", "1", "", "GDPR 17"),  # over usage that is unknown now
        ("usage", "0", "", None),  # nothing is missing
        ("recurring", "1", "", None),  # a fee is billed again as it was
        ("usage", "2", "stays", None),
    ],
)
def test_of_a_customer_who_was_forgotten_only_what_usage_made_cannot_be_billed_again(
    tmp_path: Path, kind: str, quantity: str, whose: str, rule: str | None
) -> None:
    store = LocalObjectStore(tmp_path)
    open_log(store)
    customers = {
        "erased-1": SimpleNamespace(form={"erased": "GDPR 17"}),
        "stays": SimpleNamespace(form={"name": "Stays"}),
    }
    facts = {"customers": customers, "plans": {}, "meters": {}, "keys_of": lambda code: [code]}
    master = cast(MasterData, SimpleNamespace(**facts))
    usage = ErasedUsage(store, TENANT, master, forgotten_in(master))
    assert usage.touched() == ["erased-1"]
    assert usage.beneath(document("erased-1", kind, quantity, whose)) == rule


def test_a_pass_that_was_killed_may_have_erased_and_says_so_of_its_tenant(tmp_path: Path) -> None:
    store = LocalObjectStore(tmp_path)
    open_log(store)
    assert not ever_erased(store, TENANT)
    store.put(f"log/erasing/going/{TENANT}/00000000000000000001-x.json", b"{}")
    assert ever_erased(store, TENANT)
    assert not ever_erased(store, OTHER_TENANT)
