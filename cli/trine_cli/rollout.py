"""Moving a model's pointer: checked against what every process reports, moved once, and then seen to arrive."""

from __future__ import annotations

import getpass
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from model_release import Release, open_release
from model_release.rollout import (
    MoveRefused,
    NotLoaded,
    Pointer,
    promoted,
    rolled_back,
    with_canary,
    with_shadow,
    without_shadow,
)
from model_release.rollout_check import not_following, reasons_against
from model_release.rollout_store import GATEWAY, ProcessReport, RolloutStore

from trine_cli.errors import BadInput

_LOOK_EVERY_S = 0.1


@dataclass(frozen=True, slots=True)
class Moved:
    """`changed` False: the pointer stood there already. `waiting`: gateways that had not followed in time."""

    before: Pointer | None
    now: Pointer
    changed: bool
    seconds: float
    waiting: list[str]


def promote(
    store: RolloutStore, model: str, release: str, share: float | None, shadow: bool, releases: Path, wait_s: float
) -> Moved:
    """`release` becomes current, or a canary with `share`, or a shadow.

    Raises NotLoaded, MoveRefused, PointerMoved, BadInput, RedisError.
    """
    if release.rpartition("-")[0] != model:
        raise BadInput(f"{release!r} is no release of model {model!r}; they are named {model}-<12 hex digits>")
    pointer = store.read(model)
    if pointer is None or batch_only(releases, release):
        return _promote_for_batch(store, model, release, pointer, releases, share is not None or shadow)

    def move(pointer: Pointer) -> Pointer:
        if share is not None:
            return with_canary(pointer, release, share, secrets.token_hex(8))
        return with_shadow(pointer, release) if shadow else promoted(pointer, release)

    after = move(pointer)
    if after is not pointer and release != pointer.current:
        reports = store.reports(model)
        reasons = reasons_against(release, reports) or not_absorbed(pointer.current, release, reports, store)
        if reasons:
            raise NotLoaded(release, reasons)
    return _moved(store, pointer, after, wait_s)


def roll_back(store: RolloutStore, model: str, shadow: bool, wait_s: float, force: bool = False) -> Moved:
    """A canary ends; without one the release before is current again. `shadow`: the shadow ends instead.

    `force`: although processes say that they could not serve it now. Raises as `promote`.
    """
    pointer = store.read(model)
    if pointer is None:
        raise MoveRefused(f"model {model}: nothing was ever promoted here, and no gateway has started")
    after = without_shadow(pointer) if shadow else rolled_back(pointer)
    known = after.current == pointer.current
    if not known and not force and (reasons := reasons_against(after.current, store.reports(model), workers=False)):
        raise NotLoaded(after.current, [*reasons, "--force goes back all the same, and rules decide until it can"])
    return _moved(store, pointer, after, wait_s)


def share_of(text: str) -> float:
    """10% or 0.5%. Raises BadInput."""
    number, percent, rest = text.strip().partition("%")
    try:
        share = float(number) / 100
    except ValueError:
        share = -1.0
    if not percent or rest or not 0.0 < share <= 1.0:
        raise BadInput(f"--canary {text}: need a share above 0% and at most 100%, e.g. 10%")
    return share


def as_json(pointer: Pointer) -> dict[str, object]:
    """What `--json` prints of a pointer."""
    return asdict(pointer)


def batch_only(releases: Path, release: str) -> bool:
    """Whether the folder has it, and only batch jobs score with it: then no live process needs to know it."""
    if not (releases / release).is_dir():
        return False
    opened = open_release(releases / release, None)
    return not isinstance(opened, Release) or not opened.plan.request_features


def not_absorbed(current: str, release: str, reports: Sequence[ProcessReport], store: RolloutStore) -> list[str]:
    """Where `release` reads views that `current` does not: events from before the last gateway began to show it every
    event at once must be in the state. Empty once they are.
    """
    gateways = [report for report in reports if report.kind == GATEWAY]
    if not any(r.needs.get(release, {}).keys() - r.needs.get(current, {}).keys() for r in gateways):
        return []
    late_us = max(r.since_us for r in gateways) - store.absorbed_until(gateways)
    if late_us <= 0:
        return []
    return [f"workers are {late_us / 1e6:,.1f} s behind with the views that {current} does not read; try again then"]


def _promote_for_batch(
    store: RolloutStore, model: str, release: str, pointer: Pointer | None, releases: Path, parted: bool
) -> Moved:
    if not batch_only(releases, release):
        if (releases / release).is_dir():
            raise NotLoaded(release, ["no gateway of this model has ever started on this Redis"])
        raise MoveRefused(
            f"model {model}: no gateway has started on this Redis; for a model that only batch jobs score with, "
            f"--releases must be the folder that has {release}"
        )
    if parted:
        raise MoveRefused(f"{release} is for batch jobs alone: it decides for everyone, or for nobody")
    if pointer is None:
        fresh = Pointer(model, release, moved_us=time.time_ns() // 1_000, who=_who())
        pointer = store.begin(fresh)
        if pointer == fresh:
            return Moved(None, fresh, True, 0.0, [])
    return _moved(store, pointer, promoted(pointer, release), 0.0)


def _moved(store: RolloutStore, before: Pointer, after: Pointer, wait_s: float) -> Moved:
    began = time.monotonic()
    changed = after is not before
    now = store.move(before, after, _who()) if changed else before
    waiting = _wait(lambda: not_following(now.generation, store.reports(now.model)), wait_s)
    return Moved(before, now, changed, time.monotonic() - began, waiting)


def _wait(missing: Callable[[], list[str]], wait_s: float) -> list[str]:
    end = time.monotonic() + wait_s
    while (found := missing()) and time.monotonic() < end:
        time.sleep(_LOOK_EVERY_S)
    return found


def _who() -> str:
    return f"{getpass.getuser()}@{socket.gethostname()}"
