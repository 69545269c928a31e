"""Removing what runs leave behind: killed runs with all their rows, runs whose rows have expired, old records.

A run that holds its job's lease is at work and left alone. So is everything that could still be read or rolled back to.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from feature_store.warehouse_store import WarehouseStore
from service_kit.logs import get_logger

from batch_scorer.history import Folder, folders
from batch_scorer.registry import Registry
from batch_scorer.runs import Run, job_of
from batch_scorer.settings import BatchSettings

LOG = "spark.log"
_DAY_S = 86_400

log = get_logger(__name__)


@dataclass
class Pruned:
    """What was removed: run ids by kind."""

    redis: list[str] = field(default_factory=list)
    expired: list[str] = field(default_factory=list)
    warehouse: list[str] = field(default_factory=list)
    scratch: list[str] = field(default_factory=list)


def prune(registry: Registry, settings: BatchSettings, store: WarehouseStore | None) -> Pruned:
    """Everything that no run needs any more; `store` None: what is in Redis and on this machine only.

    Raises StorageError, redis.exceptions.RedisError.
    """
    pruned = Pruned()
    at_work = set()
    published = set()
    for job in registry.jobs():
        at_work.add(registry.at_work(job))
        current = registry.current(job)
        if current is not None:
            published.add(current.run)
            if missing := registry.count(current, keep=True).missing:
                log.error("rows of the published run are missing; run the job again", run=current.run, blocks=missing)
        for name, run in registry.runs(job).items():
            if name in at_work or name in published:
                continue
            if run.state == "writing":
                registry.delete(run)
                pruned.redis.append(name)
            elif _expired(run, settings) or len(registry.count(run).missing) == run.blocks:
                registry.delete(run)
                pruned.expired.append(name)
            else:
                registry.expire_if_kept(run, settings.superseded_s)
    if store is not None:
        _prune_warehouse(registry, settings, store, at_work | published, pruned)
    if settings.scratch.is_dir():
        for folder in sorted(settings.scratch.iterdir()):
            if folder.is_dir() and folder.name not in at_work and not registry.at_work(job_of(folder.name)):
                shutil.rmtree(folder, ignore_errors=True)
                pruned.scratch.append(folder.name)
    return pruned


def scratch_of(scratch: Path, run: str) -> Path:
    """The folder of one run's Spark on this machine."""
    return scratch / run


def tidy_scratch(folder: Path, keep_log: bool) -> None:
    """Remove what Spark left of a run; `keep_log`: all but its log, which says where it is."""
    if keep_log and (folder / LOG).is_file():
        log.warning("Spark's log is kept until the next prune", file=str(folder / LOG))
        for entry in folder.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
        return
    shutil.rmtree(folder, ignore_errors=True)


def _prune_warehouse(
    registry: Registry, settings: BatchSettings, store: WarehouseStore, keep: set[str], pruned: Pruned
) -> None:
    known = {name for job in registry.jobs() for name in registry.runs(job)}
    for folder in folders(store):
        if folder.run in keep or folder.run == registry.at_work(job_of(folder.run)):
            continue
        if _expendable(folder, settings, folder.run in known):
            folder.delete()
            pruned.warehouse.append(folder.run)


def _expired(run: Run, settings: BatchSettings) -> bool:
    """Superseded so long ago that its rows should be gone, also where something died while it set their expiry."""
    return 0 < run.superseded_us < (time.time() - settings.superseded_s) * 1e6


def _expendable(folder: Folder, settings: BatchSettings, in_redis: bool) -> bool:
    manifest = folder.manifest()
    if manifest is None:
        return not in_redis
    age_s = time.time() - manifest.began.timestamp()
    if manifest.outcome == "refused":
        return age_s > settings.refused_days * _DAY_S
    if manifest.outcome == "ready":
        return not in_redis  # its driver ended between counting and publishing
    return 0 < settings.history_days * _DAY_S < age_s and not in_redis
