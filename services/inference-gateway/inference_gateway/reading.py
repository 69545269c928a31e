"""The plan that this process reads features by: of the current release, and of those staged beside it.

Every event goes into the tails of all its views, so that whichever release decides next sees it. It grows while the
process serves, when a release is staged whose views the feature state has.
"""

from __future__ import annotations

import asyncio
import time

from feature_store.definitions import FeaturePlan
from feature_store.online import OnlineFeatures
from service_kit.logs import get_logger

from inference_gateway.feature_access import FeatureAccess
from inference_gateway.settings import GatewaySettings
from inference_gateway.transaction_adapter import TransactionAdapter

_MARGIN_S = 1.0

log = get_logger(__name__)


class Reading:
    """`since_us`: since when events go into the tails of all views of `plan`."""

    def __init__(self, plan: FeaturePlan, settings: GatewaySettings) -> None:
        self.plan, self._settings = plan, settings
        self.since_us = time.time_ns() // 1_000

    @property
    def shards(self) -> int:
        return self._settings.shards

    async def connect(self) -> OnlineFeatures:
        """Raises StoreUnavailable, StoreMisconfigured."""
        return await self._connect(self.plan)

    async def _connect(self, plan: FeaturePlan) -> OnlineFeatures:
        settings = self._settings
        return await OnlineFeatures.connect(
            settings.redis_url,
            plan,
            settings.shards,
            timeout_s=settings.redis_timeout_ms / 1_000,
            lease_ms=settings.lease_ms,
            ledger_ttl_ms=settings.ledger_ttl_s * 1_000,
        )

    async def grow(self, plan: FeaturePlan, adapter: TransactionAdapter, access: FeatureAccess) -> None:
        """Read by `plan`, which has all that was read before. Raises as `connect`, and reads on as before."""
        known = {entity.name for entity in self.plan.entities}
        adapter.key_by(plan)
        if any(entity.name not in known for entity in plan.entities):
            # Requests that were taken in before have no key for it; by then they are all answered.
            longest_ms = max(self._settings.longest_deadline_ms, self._settings.bulk_deadline_ms)
            await asyncio.sleep(longest_ms / 1_000 + _MARGIN_S)
        await access.replace(await self._connect(plan))
        self.plan = plan
        self.since_us = time.time_ns() // 1_000
        log.info("reads more views", views=[view.name for view in plan.views])
