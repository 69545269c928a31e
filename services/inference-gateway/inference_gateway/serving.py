"""The releases that answer here: the current one, and beside it a canary for its side of the customers.

A request gets its release when it arrives and keeps it to the answer; where the pointer moves meanwhile, that release
was current when it came. What a release leaves behind when it is replaced is finished by its own stage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from feature_store.definitions import FeaturePlan
from feature_store.plan_union import Part, part_of
from model_release.policy import BatchRisks
from model_release.release import Release
from model_release.rollout import Sides
from service_kit.health import Health

from inference_gateway.batch_scores import BatchScore, BatchScores
from inference_gateway.decision import Decider
from inference_gateway.model_stage import ModelStage
from inference_gateway.work import Work, by_serving

CURRENT_PART = "model"
"""The current release's part of the health; a canary's says which it is."""

MakeStage = Callable[[Release, str, str | None], ModelStage]
"""From a release, its part of the health, and why the server cannot be used yet."""


class Serving:
    """One release in use. `parts`: where its features lie, by fingerprint of the plan that was read; None: all over."""

    __slots__ = ("_batch_scores", "_risks", "decider", "id", "model", "part", "parts", "release")

    def __init__(self, release: Release, model: ModelStage, part: str, batch_scores: BatchScores | None) -> None:
        self.release, self.id, self.model, self.part = release, release.id, model, part
        self.decider = Decider(release)
        self.parts: dict[str, Part | None] = {}
        policy = release.manifest.policy.batch
        self._risks = None if policy is None else BatchRisks(policy)
        self._batch_scores = batch_scores

    def batch_score(self, keys: Mapping[str, str], now_us: int) -> BatchScore | None:
        """What a batch run says of a request, `keys` by entity."""
        if self._batch_scores is None or self._risks is None:
            return None
        return self._batch_scores.of(self._risks, keys, now_us)

    def read_by(self, plan: FeaturePlan) -> None:
        """Its features will be read as part of `plan`. Raises DefinitionError where they are not in it."""
        self.parts[plan.fingerprint] = part_of(self.release.plan, plan)


class Servings:
    """Owned by the event loop. Empty until `use`; then every request has a release."""

    def __init__(self, make_stage: MakeStage, health: Health, batch_scores: BatchScores | None = None) -> None:
        self._make_stage, self._health, self._batch_scores = make_stage, health, batch_scores
        self.current: Serving = None  # type: ignore[assignment]  # nothing is asked before `use`
        self.canary: Serving | None = None
        self._sides: Sides | None = None
        self._retired: list[Serving] = []
        self._taken: list[Callable[[], None]] = []

    def of(self, key: bytes) -> Serving:
        """The release that decides for an entity, by its key on the source's topic."""
        if self._sides is not None and key in self._sides:
            return self.canary or self.current
        return self.current

    def use(
        self, plan: FeaturePlan, current: Release, canary: Release | None, sides: Sides | None,
        unchecked: Mapping[str, str],
    ) -> None:  # fmt: skip
        """From the next request on. `plan`: what is read, of which both are parts; `unchecked`: by release, why the
        model server was not seen to answer for it."""
        before = [serving for serving in (self.current, self.canary) if serving is not None]
        self.current = self._serving(current, CURRENT_PART, plan, unchecked)
        self.canary = None
        if canary is not None:
            self.canary = self._serving(canary, f"{CURRENT_PART} {canary.id}", plan, unchecked)
        self._sides = sides if self.canary is not None else None
        now = (self.current, self.canary)
        for serving in before:
            if serving not in now:
                serving.model.retire()
                self._retired.append(serving)
        used = [serving.part for serving in now if serving is not None]
        for serving in before:
            if serving.part not in used:
                self._health.restore(serving.part)
        if self.current not in before and self.current.model.usable:
            self._health.restore(CURRENT_PART)

    def _serving(self, release: Release, part: str, plan: FeaturePlan, unchecked: Mapping[str, str]) -> Serving:
        known = next((s for s in (self.current, self.canary) if s is not None and s.id == release.id), None)
        if known is not None and known.part == part:
            known.read_by(plan)
            return known
        why: str | None = unchecked.get(release.id) or None
        if known is not None:
            why = None if known.model.usable else "not checked again yet"
        stage = self._make_stage(release, part, why)
        for listener in self._taken:
            stage.on_taken(listener)
        serving = Serving(release, stage, part, self._batch_scores)
        serving.read_by(plan)
        return serving

    def read_by(self, plan: FeaturePlan) -> None:
        """Features may be read by `plan` from now on. Raises DefinitionError where a release is not a part of it."""
        for serving in (*self._retired, self.current, self.canary):
            if serving is not None:
                serving.read_by(plan)

    # What the feature stage sees of the model stages.

    def ask(self, works: Sequence[Work]) -> None:
        """Score requests whose vectors are whole, each by its release."""
        for serving, group in by_serving(works):
            serving.model.ask(group)

    @property
    def waiting(self) -> int:
        """How many requests wait for a call to the current release to begin."""
        return self.current.model.waiting

    def on_taken(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever a call has begun with those that waited."""
        self._taken.append(listener)

    async def idle(self) -> None:
        for serving in (*self._retired, self.current, self.canary):
            if serving is not None:
                await serving.model.idle()

    async def tidy(self) -> None:
        """Let go of replaced releases that have nothing to do any more."""
        for serving in [s for s in self._retired if not s.model.busy]:
            self._retired.remove(serving)
            await serving.model.close()

    async def close(self) -> None:
        for serving in (*self._retired, self.current, self.canary):
            if serving is not None:
                await serving.model.close()
