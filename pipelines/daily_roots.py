"""Signed roots of all archives, day by day, also of those that nobody puts anything into or looks at: in rounds."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from billing.errors import BillingError
from storage.archive import Archive
from storage.sql import tenant_ends
from storage.sql.database import Database

LOG = logging.getLogger("cloudbilling.archive")


@dataclass(frozen=True)
class DailyRoots:
    """A reconciler: it may run twice and be cut off anywhere; what is signed is seen in the store and the register."""

    database: Database
    archive: Archive

    def round(self) -> int:
        """Sign what was added before today, and ask again for stamps that are missing; how many tenants were well."""
        roots = self.archive.roots
        if roots is None:
            return 0
        with self.database.system() as connection:
            found = tenant_ends.standing(connection)  # of one that is erased no new object must stay
        well = 0
        for tenant_id in found:
            try:
                self.archive.close_day(tenant_id)
                roots.stamp_missing(tenant_id)
                well += 1
            except BillingError as error:  # a store is away: the next round tries again, the others go on
                LOG.warning("the archive of tenant %s could not be signed: %s", tenant_id, error.detail)
        return well
