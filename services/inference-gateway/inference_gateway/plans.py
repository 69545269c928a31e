"""Whether a staged release's views can be read here: told from the plan that is read, and from what the state has."""

from __future__ import annotations

from feature_store.definitions import DefinitionError, FeaturePlan
from feature_store.plan_union import fingerprints, part_of, united
from feature_store.state_views import StateViews
from model_release.release import Release
from model_release.rollout_store import RolloutStore
from redis import RedisError

from inference_gateway.staged import StagedReleases
from inference_gateway.transaction_adapter import TransactionAdapter, UnsupportedPlan


class Fitting:
    """Remembers what it found out about each release, until the plan or the state is another."""

    def __init__(self) -> None:
        self._of: tuple[str, StateViews | None] = ("", None)
        self._found: dict[str, str] = {}
        self._needs: dict[str, dict[str, str]] = {}

    def needs(self, release: Release) -> dict[str, str]:
        """The release's views, by name their definitions' fingerprints."""
        if release.id not in self._needs:
            self._needs[release.id] = fingerprints(release.plan)
        return self._needs[release.id]

    def why_not(self, release: Release, plan: FeaturePlan, state: StateViews | None) -> str:
        """Why the release's features cannot be had by reading `plan`; an empty text where they can."""
        if self._of != (plan.fingerprint, state):
            self._of, self._found = (plan.fingerprint, state), {}
        if release.id not in self._found:
            self._found[release.id] = self._why_not(release, plan, state)
        return self._found[release.id]

    def _why_not(self, release: Release, plan: FeaturePlan, state: StateViews | None) -> str:
        try:
            part_of(release.plan, plan)
            has = None if state is None else state.whole
            gone = [n for n, found in self.needs(release).items() if has is not None and has.get(n) != found]
            return f"the feature state misses events of {', '.join(sorted(gone))}: rebuild it" if gone else ""
        except DefinitionError:
            try:
                TransactionAdapter.check(release.plan)
                united(plan, release.plan)
            except (DefinitionError, UnsupportedPlan) as error:
                return str(error)
        if lacking := self.lacking(release, plan, state):
            version = "" if state is None else f" (version {state.version})"
            return f"needs {', '.join(lacking)}, which the feature state{version} does not have: rebuild it with them"
        return "its views are not read here yet"

    def lacking(self, release: Release, plan: FeaturePlan, state: StateViews | None) -> list[str]:
        """Views of the release that neither `plan` nor the state has."""
        read, has = {view.name for view in plan.views}, {} if state is None else state.whole or {}
        return sorted(n for n, found in self.needs(release).items() if n not in read and has.get(n) != found)

    def grown(self, plan: FeaturePlan, releases: list[Release], state: StateViews | None) -> FeaturePlan:
        """`plan` with the views of those releases that the state has; `plan` itself where it has them."""
        for release in releases:
            if not self.lacking(release, plan, state):
                try:
                    TransactionAdapter.check(release.plan)
                    plan = united(plan, release.plan)
                except (DefinitionError, UnsupportedPlan):
                    continue
        return plan


def plan_to_read(current: Release, staged: StagedReleases, store: RolloutStore) -> FeaturePlan:
    """At the start: the current release's plan, and what staged ones read besides of what the state has."""
    try:
        state: StateViews | None = store.state_views()
    except (RedisError, OSError):
        state = None
    return Fitting().grown(current.plan, list(staged.opened.values()), state)
