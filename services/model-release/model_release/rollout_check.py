"""Whether a release may serve: what every process that must know it says of it. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

from model_release.rollout_store import GATEWAY, REGISTRAR, WORKER, ProcessReport


def reasons_against(release: str, reports: Sequence[ProcessReport], *, workers: bool = True) -> list[str]:
    """Why `release` must not be promoted yet, each process by name; empty where nothing speaks against it.

    `workers` False: what keeps its views up to date is not asked (a rollback must not wait for it).
    """
    found = []
    gateways = [r for r in reports if r.kind == GATEWAY]
    if not gateways:
        found.append("no gateway has reported to this Redis")
    for report in gateways + [r for r in reports if r.kind == REGISTRAR]:
        if why := report.releases.get(release, "has not loaded it"):
            found.append(f"{report.shown}: {why}")
    if workers and not found:
        needs = {name: kept for r in gateways for name, kept in r.needs.get(release, {}).items()}
        found += _views_not_kept(needs, [r for r in reports if r.kind == WORKER])
    return found


def _views_not_kept(needs: dict[str, str], workers: Sequence[ProcessReport]) -> list[str]:
    if needs and not workers:
        return [f"no worker has reported, so that nobody keeps its views ({', '.join(sorted(needs))}) up to date"]
    found = []
    for report in workers:
        missing = sorted(view for view, definition in needs.items() if report.keeps.get(view) != definition)
        if missing:
            found.append(f"{report.shown}: does not keep {', '.join(missing)} as this release defines it")
    return found


def not_following(generation: int, reports: Sequence[ProcessReport]) -> list[str]:
    """Gateways that do not serve by this generation of the pointer yet."""
    return [report.shown for report in reports if report.kind == GATEWAY and report.generation < generation]
