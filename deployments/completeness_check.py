"""The ledger of completeness, looked at by itself: once a day each tenant's log is read again from its first number on
and compared with what was written and counted then. A difference is an alarm: in the platform's log, to the tenant's
endpoints, on pages.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from billing.errors import BillingError, NotFound
from billing.events import COMPLETENESS_BROKEN
from billing.webhooks import message_body
from pipelines.usage_proof import Proof
from pipelines.usage_queries import UsageQueries
from storage.master_chain import MasterChain
from storage.sql import completeness, webhooks
from storage.sql.database import Database

LOG = logging.getLogger("cloudbilling.completeness")
EVERY = timedelta(hours=24)
AT_ONCE = 5  # tenants of one round
TOLD_MAX = 10  # places that a message names


@dataclass(frozen=True)
class CompletenessCheck:
    """`round` is everything; it remembers in SQL, so it may be called by anybody at any time."""

    database: Database
    queries: UsageQueries
    masters: MasterChain
    clock: Callable[[], datetime]

    def round(self) -> int:
        """Check the tenants whose last check is a day old; how many."""
        now = self.clock()
        with self.database.system() as connection:
            tenants = completeness.tenants_to_check(connection, now - EVERY, AT_ONCE)
        for tenant_id in tenants:
            try:
                self.check(tenant_id)
            except BillingError as error:  # the store or a lane is away: the next round tries again
                LOG.warning("tenant %s could not be checked: %s", tenant_id, error.detail)
        return len(tenants)

    def check(self, tenant_id: str) -> Proof:
        """Read everything of a tenant again, note what was found, and raise the alarm where it differs."""
        now = self.clock()
        try:
            _, master = self.masters.newest(tenant_id)
        except NotFound:  # made a moment ago: it has nothing yet
            proof = Proof(0, 0)
        else:
            proof = self.queries.prove(tenant_id, master, now)
        with self.database.tenant(tenant_id) as connection:
            completeness.record(
                connection,
                tenant_id,
                at=now,
                stored=proof.stored,
                rated=proof.rated,
                suspended=proof.suspended,
                voided=proof.voided,
                counted=proof.counted,
                complete=proof.complete,
                found=proof.found,
                differences=proof.shown_differences(),
            )
            if not proof.complete:
                told = {"stored": proof.stored, "counted": proof.counted, "rated": proof.rated, "at": now}
                told |= {"found": proof.found, "differences": proof.shown_differences()[:TOLD_MAX]}
                webhooks.add_message(
                    connection,
                    tenant_id,
                    id=f"completeness_{tenant_id}_{now:%Y%m%d}",
                    event_type=COMPLETENESS_BROKEN,
                    body=message_body(COMPLETENESS_BROKEN, now, told),
                    happened_at=now,
                    now=now,
                )
        if not proof.complete:
            LOG.error(
                "completeness is broken: tenant %s has %s events where %s were counted, and %s objects are not as they "
                "were written (%s); nothing was changed, run `cloudbilling verify usage` and keep the store as it is",
                tenant_id,
                proof.stored,
                proof.counted,
                proof.found,
                "; ".join(f"{one.key}: {one.detail}" for one in proof.differences[:TOLD_MAX]),
            )
        return proof
