"""The manifest of a release: what it is, what it was made of, and the hash that names it.

There are two kinds, `tabular` and `recommender`; a manifest without a field `kind` is tabular.

The content hash covers the manifest's body and the sha256 of every file except the TorchServe archive, whose zip
carries time stamps: the archive holds only the module and the handler. `created_at` says when, not what, and is
outside the hash too. So the same data and seed give the same release id on every run.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from model_release.errors import ReleaseError

FORMAT = 1
Kind = Literal["tabular", "recommender"]
MANIFEST_FILE = "manifest.json"
MODULE_FILE = "module.pt2"
CARD_FILE = "model_card.md"
GOLDEN_INPUTS_FILE = "golden_inputs.f32"
GOLDEN_SCORES_FILE = "golden_scores.f32"
MIN_GOLDEN_ROWS = 256

_OUTSIDE_HASH = ("release", "content_hash", "created_at")

Probability = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
#: Of odds that are multiplied.
Factor = Annotated[float, Field(ge=1e-9, le=1e9)]
#: A power of four: more than any calibration needs.
MAX_SIXTEENTHS = 64
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Thresholds(_Part):
    """On the calibrated score: below `review` approve, from `deny` on deny, between them review."""

    review: Probability
    deny: Probability

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not 0.0 < self.review <= self.deny:
            raise ValueError(f"thresholds: need 0 < review <= deny, found review {self.review}, deny {self.deny}")
        return self


class Rule(_Part):
    """Fires where `feature` >= `at_least`; `score` is its own measured precision.

    `precision_bound`: what that precision is at least, with confidence, on days that the rule was not chosen on;
    0: nobody measured it.
    """

    name: Annotated[str, Field(min_length=1)]
    feature: str
    at_least: Annotated[float, Field(allow_inf_nan=False)]
    score: Probability
    precision_bound: Probability = 0.0

    @model_validator(mode="after")
    def _bound_below_score(self) -> Self:
        if self.precision_bound > self.score:
            raise ValueError(
                f"rule {self.name}: precision_bound is a lower bound of the precision, so at most score, {self.score};"
                f" found {self.precision_bound}"
            )
        return self


class Prior(_Part):
    """What an entity's latest scores say of its next event, before anything is known of that event.

    Of n scores the shrunken mean is m = (strength * mean + their sum) / (strength + n), and the risk, a calibrated
    probability, has the odds factor * odds(m) ^ (sixteenths / 16). `thresholds`: on the risk.
    """

    entity: Annotated[str, Field(min_length=1)]
    mean: Annotated[float, Field(gt=0.0, lt=1.0)]
    strength: Annotated[float, Field(gt=0.0, le=1e9)]
    factor: Factor
    sixteenths: Annotated[int, Field(ge=1, le=MAX_SIXTEENTHS)]
    thresholds: Thresholds
    threshold_basis: str


class BatchPolicy(_Part):
    """How risks that a batch job published answer together with the rules; odds to powers of sixteenths, multiplied.

    batch score: odds factor * product of odds(risk of a prior's entity) ^ (prior_sixteenths / 16).
    answer: odds combined_factor * odds(rules' score) ^ (rules_sixteenths / 16) * odds(batch score) ^
    (batch_sixteenths / 16); decided by `thresholds`, which were chosen for it.
    """

    job: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,39}$")]
    output: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")] = "risk"
    priors: Annotated[tuple[Prior, ...], Field(min_length=1)]
    factor: Factor
    prior_sixteenths: tuple[Annotated[int, Field(ge=0, le=MAX_SIXTEENTHS)], ...]
    combined_factor: Factor
    rules_sixteenths: Annotated[int, Field(ge=0, le=MAX_SIXTEENTHS)]
    batch_sixteenths: Annotated[int, Field(ge=1, le=MAX_SIXTEENTHS)]
    thresholds: Thresholds
    threshold_basis: str

    @model_validator(mode="after")
    def _whole(self) -> Self:
        entities = [prior.entity for prior in self.priors]
        if len(set(entities)) != len(entities):
            raise ValueError(f"policy.batch.priors: entities must differ, found {entities}")
        if len(self.prior_sixteenths) != len(self.priors):
            raise ValueError(
                f"policy.batch.prior_sixteenths: needs one a prior, {len(self.priors)}, found {self.prior_sixteenths}"
            )
        if not any(self.prior_sixteenths):
            raise ValueError("policy.batch.prior_sixteenths: all are 0, so that no risk would count")
        return self


class Policy(_Part):
    """What happens without the model: rules, and whether an event that can be recorded nowhere is answered.

    `deny_precision`: a rule may deny only where its `precision_bound` reaches this; elsewhere it sends to review.
    `batch`: how published risks take part; None: they do not.
    """

    unrecorded: Literal["answer", "refuse"]
    base_score: Probability
    deny_precision: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    rules: tuple[Rule, ...] = ()
    batch: BatchPolicy | None = None

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [rule.name for rule in self.rules]
        if len(set(names)) != len(names):
            raise ValueError(f"policy.rules: names must differ, found {names}")
        return self

    @model_validator(mode="after")
    def _odds_exist(self) -> Self:
        for name, score in [("base_score", self.base_score), *((rule.name, rule.score) for rule in self.rules)]:
            if self.batch is not None and not 0.0 < score < 1.0:
                raise ValueError(f"policy.{name}: is combined with batch scores by its odds; {score} has none")
        return self


class ManifestBase(_Part):
    """What the manifests of all kinds say."""

    format: Literal[1] = 1
    release: str
    model: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
    content_hash: Sha256
    created_at: str
    metrics: dict[str, JsonValue]
    training: dict[str, JsonValue]
    files: dict[str, Sha256]

    def to_json(self) -> bytes:
        """The bytes of manifest.json."""
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True).encode() + b"\n"


class Manifest(ManifestBase):
    """manifest.json of a tabular release: rows of features in, probabilities out. It carries no field `kind`."""

    plan: dict[str, JsonValue]
    features: Annotated[tuple[str, ...], Field(min_length=1)]
    thresholds: Thresholds
    threshold_basis: str
    calibration: dict[str, JsonValue]
    policy: Policy

    @model_validator(mode="after")
    def _rules_know_their_features(self) -> Self:
        for rule in self.policy.rules:
            if rule.feature not in self.features:
                raise ValueError(f"policy.rules[{rule.name}].feature: {rule.feature!r} is none of {self.features}")
        return self

    @model_validator(mode="after")
    def _priors_know_their_entities(self) -> Self:
        known = {str(view["entity"]["name"]) for view in self.plan.get("views", [])}  # type: ignore[index,call-overload,union-attr]  # JSON, read in full by FeaturePlan
        for prior in self.policy.batch.priors if self.policy.batch is not None else ():
            if prior.entity not in known:
                raise ValueError(f"policy.batch.priors: {prior.entity!r} is no entity of the plan ({sorted(known)})")
        return self

    @property
    def archive_file(self) -> str:
        """Name of the TorchServe archive in the folder."""
        return f"{self.release}.mar"


class History(_Part):
    """How much an interaction in a user's history weighs; whole numbers, so that sums are exact.

    `age_weights[d]`, 1 to 1024, for an age of d whole days; the last one holds for all that are older. It is multiplied
    by value / `typical_values[kind]`, taken to be 0.25 to 2, then rounded down, but never below 1; by 1 for kinds
    without a typical value. Of several interactions with one item the weightiest counts.
    """

    age_weights: Annotated[tuple[Annotated[int, Field(ge=1, le=1024)], ...], Field(min_length=1)]
    typical_values: dict[str, Annotated[float, Field(gt=0.0, allow_inf_nan=False)]]


class RecommenderManifest(ManifestBase):
    """manifest.json of a recommender: histories in, embeddings of users out; items have embeddings of their own."""

    kind: Literal["recommender"]
    dimensions: Annotated[int, Field(ge=2)]
    items: Annotated[int, Field(ge=1)]
    history: History


def content_hash(body: Mapping[str, Any]) -> str:
    """Sha256 (hex) of a manifest's body in canonical JSON: everything but its name, hash, time and archive."""
    content = {key: value for key, value in body.items() if key not in _OUTSIDE_HASH}
    content["files"] = {name: digest for name, digest in body["files"].items() if not name.endswith(".mar")}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def release_id(model: str, digest: str) -> str:
    """The release's name, e.g. `fraud-3f9c2a71d0e4`."""
    return f"{model}-{digest[:12]}"


_RELEASE_ID = re.compile(r"^[a-z][a-z0-9_]{0,39}-[0-9a-f]{12}$")


def is_release_id(name: str) -> bool:
    """Whether a folder's name is a release's."""
    return _RELEASE_ID.match(name) is not None


def check_identity(manifest: ManifestBase) -> None:
    """Raises ReleaseError unless the manifest's name and hash are those of its content."""
    # What its file says, without what later versions added: older releases keep their names.
    digest = content_hash(manifest.model_dump(mode="json", exclude_unset=True))
    if digest != manifest.content_hash:
        raise ReleaseError(f"{MANIFEST_FILE}: content_hash is {manifest.content_hash}, the content's is {digest}")
    expected = release_id(manifest.model, digest)
    if manifest.release != expected:
        raise ReleaseError(f"{MANIFEST_FILE}: release is {manifest.release!r}, its content's id is {expected!r}")
