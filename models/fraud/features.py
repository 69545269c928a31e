"""The features of the fraud model, defined once for every mode (real time, batch, streaming).

Source of the feature set: Le Borgne et al., "Reproducible Machine Learning for Credit Card Fraud Detection".
"""

from __future__ import annotations

from datetime import timedelta

from feature_store.definitions import (
    Count,
    Entity,
    FeaturePlan,
    FeatureView,
    LabelSource,
    Mean,
    RequestFeature,
    Share,
    Source,
    days,
)

CUSTOMER = Entity("customer", key="customer_id")
TERMINAL = Entity("terminal", key="terminal_id")

TRANSACTIONS = Source(
    "transactions",
    message="trine.events.v1.Transaction",
    topic="trine.transactions",
    key="customer_id",
    id="transaction_id",
    time="event_time_us",
    fields=("amount",),
)

FRAUD_REPORTS = LabelSource(
    "fraud_reports",
    message="trine.events.v1.FraudReport",
    topic="trine.fraud-reports",
    key="transaction_id",
    id="transaction_id",
    time="event_time_us",
    known_at="reported_at_us",
    value="fraud",
    labels=TRANSACTIONS,
)

CUSTOMER_SPENDING = FeatureView(
    "customer",
    entity=CUSTOMER,
    source=TRANSACTIONS,
    aggregations=(Count(), Mean("amount")),
    windows=days(1, 7, 30),
)

TERMINAL_RISK = FeatureView(
    "terminal",
    entity=TERMINAL,
    source=TRANSACTIONS,
    aggregations=(Count(), Share(FRAUD_REPORTS, "fraud")),
    windows=days(1, 7, 30),
    delay=timedelta(days=7),
)

QUOTIENTS = (
    ("amount", "customer_mean_amount_1d"),
    ("amount", "customer_mean_amount_7d"),
    ("amount", "customer_mean_amount_30d"),
    ("customer_mean_amount_1d", "customer_mean_amount_30d"),
    ("customer_mean_amount_7d", "customer_mean_amount_30d"),
)
"""What the network also sees: an amount, and the customer's last day and week, beside what they usually spend."""

PLAN = FeaturePlan(
    model="fraud",
    source=TRANSACTIONS,
    request_features=(
        RequestFeature("amount", "field", "amount"),
        RequestFeature("is_weekend", "weekend"),
        RequestFeature("is_night", "night"),
    ),
    views=(CUSTOMER_SPENDING, TERMINAL_RISK),
)
