"""Master data while steps change them: copies of the maps, one copy for any number of steps."""

from __future__ import annotations

from billing.master import MasterData


class Draft:
    """A changeable copy of master data. A step that is refused leaves it half changed: throw it away then."""

    def __init__(self, master: MasterData, *, fresh: bool = False) -> None:
        self.fresh = fresh  # whether the steps are new: what is stored is never refused again
        self.tenant = master.tenant
        self.timezone = master.tenant.timezone
        self.step_count = master.step_count
        self.tax_codes = dict(master.tax_codes)
        self.meters = dict(master.meters)
        self.plans = dict(master.plans)
        self.published = master.published
        self.customers = dict(master.customers)
        self.key_owners = dict(master.key_owners)
        self.paid_by: dict[str, set[str]] = {}  # who pays, or ever paid, for whom; the empty code for those who do not
        for customer in master.customers.values():
            for payer in customer.payers:
                self.paid_by.setdefault(payer.code, set()).add(customer.code)
        self.subscriptions = dict(master.subscriptions)
        self.subscriptions_of = dict(master.subscriptions_of)
        self.top_ups = list(master.top_ups)
        self.budgets = dict(master.budgets)
        self.ad_hoc = dict(master.ad_hoc)
        self.runs = list(master.runs)
        self.log = list(master.log)

    def finish(self) -> MasterData:
        return MasterData(
            tenant=self.tenant,
            step_count=self.step_count,
            tax_codes=self.tax_codes,
            meters=self.meters,
            plans=self.plans,
            published=self.published,
            customers=self.customers,
            key_owners=self.key_owners,
            subscriptions=self.subscriptions,
            subscriptions_of=self.subscriptions_of,
            top_ups=tuple(self.top_ups),
            budgets=self.budgets,
            ad_hoc=self.ad_hoc,
            runs=tuple(self.runs),
            log=tuple(self.log),
        )
