"""The features of the churn model: what a customer did before a moment, in windows that lie inside one another.

How long ago the last transaction was shows in which of the windows are empty; that they become fewer, in the quotients.
"""

from __future__ import annotations

from feature_store.definitions import Count, FeaturePlan, FeatureView, Sum, days

from models.fraud.features import CUSTOMER, TRANSACTIONS

WINDOW_DAYS = (1, 2, 4, 7, 14, 21, 30, 45, 60, 90)
POPULATION_DAYS = 90
"""Customers without a transaction for so long are not asked about."""
HORIZON_DAYS = 30
"""Who makes no transaction for so long has left."""

ACTIVITY = FeatureView(
    "activity",
    entity=CUSTOMER,
    source=TRANSACTIONS,
    aggregations=(Count(), Sum("amount")),
    windows=days(*WINDOW_DAYS),
)

# No request carries it: it is asked at cut-offs alone.
PLAN = FeaturePlan(model="churn", source=TRANSACTIONS, request_features=(), views=(ACTIVITY,))

QUOTIENTS = (
    ("activity_count_7d", "activity_count_30d"),
    ("activity_count_14d", "activity_count_60d"),
    ("activity_count_30d", "activity_count_90d"),
    ("activity_sum_amount_30d", "activity_sum_amount_90d"),
)
"""What the network also sees: whether it becomes less."""
