"""Every answered transaction counts once: in the feature state, among the archived events, among the decisions."""

from __future__ import annotations

import io
import itertools
import tarfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import grpc
from batch_scorer.run_risks import RunRisks
from feature_store.warehouse import Warehouse
from trine.features.v1 import features_pb2, features_pb2_grpc
from trine_cli.decision_replay import replay_decisions
from trine_cli.warehouse_archive import WarehouseArchive

from models.fraud.sources import TRANSACTION_FILES
from trine_k8s.installation import Installation
from trine_k8s.outside import address
from trine_k8s.polling import eventually, until_equal

FEATURE_STORE_PORT = 50052
WAREHOUSE = "/var/lib/trine/warehouse"
ARCHIVER = "archiver"
_KEYS = 200
#: Python, for a pod without tar: a folder's content to stdout, and from stdin into a folder.
_PACK = """
import os, sys, tarfile
with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as archive:
    for name in os.listdir(sys.argv[1]):
        if name != "lost+found":
            archive.add(os.path.join(sys.argv[1], name), name)
"""
_UNPACK = "import sys, tarfile; tarfile.open(fileobj=sys.stdin.buffer, mode='r|').extractall(sys.argv[1])"


def counts_of(installation: Installation, customers: Iterable[str]) -> Counter[str]:
    """The live state's number of transactions of each customer, of the last 30 days."""
    found: Counter[str] = Counter()
    keys = sorted(customers)
    with (
        address(installation, "feature-store", FEATURE_STORE_PORT) as target,
        grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel,
    ):
        stub = features_pb2_grpc.FeatureStoreServiceStub(channel)
        for part in (keys[i : i + _KEYS] for i in range(0, len(keys), _KEYS)):
            asked = features_pb2.GetFeaturesRequest(view="customer", keys=part)
            for entity in stub.GetFeatures(asked, timeout=30, wait_for_ready=True).entities:
                found[entity.key] = round(entity.features["customer_count_30d"])
    return found


def absorbed(installation: Installation, since: float) -> bool:
    """All that was in Kafka at `since`, Unix seconds, is in the state of every shard."""
    with (
        address(installation, "feature-store", FEATURE_STORE_PORT) as target,
        grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel,
    ):
        stub = features_pb2_grpc.FeatureStoreServiceStub(channel)
        asked = time.time()
        shards = stub.GetFreshness(features_pb2.GetFreshnessRequest(), timeout=30, wait_for_ready=True).shards
    return bool(shards) and all(s.offset >= 0 and asked - s.lag_ms / 1e3 > since for s in shards)


def await_counted(installation: Installation, expected: Counter[str], timeout_s: float = 300) -> None:
    """Until the live state counts as many transactions of each customer as were answered; and no more come later."""
    until_equal("transactions in the state", +expected, lambda: +counts_of(installation, expected), timeout_s, 2)
    counted = time.time()
    eventually("the worker absorbs what is in Kafka", lambda: absorbed(installation, counted), timeout_s, 2)
    found = +counts_of(installation, expected)
    assert found == +expected, f"counted twice: {found - expected}, lost: {expected - found}"


def copied_warehouse(installation: Installation, out: Path) -> Path:
    """The warehouse as it is now, in a folder here."""
    pod = installation.pods("archiver")[0].metadata.name
    packed = installation.namespace.exec_bytes(pod, "python", "-c", _PACK, WAREHOUSE, container=ARCHIVER, timeout_s=300)
    out.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(out, filter="data")
    return out


def fill_warehouse(installation: Installation, dataset: Path) -> None:
    """Adds a dataset's files to the warehouse, as an import does."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for folder in sorted(path for path in dataset.iterdir() if path.is_dir()):
            archive.add(folder, folder.name)
    pod = installation.pods("archiver")[0].metadata.name
    unpack = ("python", "-c", _UNPACK, WAREHOUSE)
    installation.namespace.exec(pod, *unpack, container=ARCHIVER, stdin=packed.getvalue(), timeout_s=300)


def archived_ids(warehouse: Path, prefix: str) -> Counter[str]:
    """How many rows the warehouse's reader gives for each transaction whose id begins so."""
    if not (warehouse / TRANSACTION_FILES.folder).is_dir():
        return Counter()
    found = Warehouse(str(warehouse)).load(TRANSACTION_FILES, columns=["transaction_id"])
    return Counter(i for i in found.column("transaction_id").to_pylist() if i.startswith(prefix))


def await_replayed(
    installation: Installation, ids: Iterable[str], prefix: str, releases: Path, out: Path, timeout_s: float = 400
) -> None:
    """Until the warehouse has these transactions and one decision for each, and all of them replay to the same bits.

    The archive trails, one topic more than another, so that a decision may come before what it was made of. What is
    there twice, or was never answered, is an error at once.
    """
    expected, copies, seen = Counter(set(ids)), itertools.count(), ["nothing"]

    def equal() -> bool:
        warehouse = copied_warehouse(installation, out / f"copy-{next(copies)}")
        events = archived_ids(warehouse, prefix)
        twice = [id_ for id_, count in events.items() if count > 1]
        assert not twice, f"archived more than once: {twice[:10]}"
        never = sorted(events.keys() - expected.keys())
        assert not never, f"archived but never answered: {never[:10]}"
        seen[0] = f"{len(events)} of {len(expected)} transactions"
        if events != expected:
            return False
        runs = RunRisks.below(str(warehouse))
        _, replayed = replay_decisions(WarehouseArchive(str(warehouse)), releases, runs=runs)
        own = [r for r in replayed if r.decision_id.startswith(prefix)]
        different = [r for r in own if not r.equal]
        seen[0] = f"{len(own)} decisions, {len(different)} different, for example {different[:3]}"
        return Counter(r.decision_id for r in own) == expected and not different

    try:
        eventually("every decision is archived and replays equal", equal, timeout_s, 3)
    except AssertionError as error:
        raise AssertionError(f"{error}; {seen[0]}") from None
