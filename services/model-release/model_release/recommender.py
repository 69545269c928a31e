"""What is in a recommender's release beside its module, and reading it; needs no torch.

    module.pt2              items int64 [m], weights float64 [m], starts int64 [n] -> user embeddings float32 [n, D]
    item_embeddings.f32     float32 [I, D]; a score is the dot product of a user's and an item's embedding
    item_ids.txt            I lines, in the rows' order: an item's index is its line
    item_popularity.i64     int64 [I]: users in training who had something to do with the item
    golden.json             histories, and the best unseen items of each

All numbers of embeddings are whole multiples of a step, few enough bits wide that dot products in float64 are exact.
Raw files are little-endian.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from model_release.errors import ReleaseError
from model_release.manifest import CARD_FILE, MIN_GOLDEN_ROWS, MODULE_FILE, RecommenderManifest

ITEM_EMBEDDINGS_FILE = "item_embeddings.f32"
ITEM_IDS_FILE = "item_ids.txt"
ITEM_POPULARITY_FILE = "item_popularity.i64"
GOLDEN_FILE = "golden.json"
RECOMMENDER_FILES = (
    MODULE_FILE,
    CARD_FILE,
    ITEM_EMBEDDINGS_FILE,
    ITEM_IDS_FILE,
    ITEM_POPULARITY_FILE,
    GOLDEN_FILE,
)


class GoldenRow(BaseModel):
    """A history (indices of items, their weights) and the unseen items to recommend, best first, with scores."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    items: tuple[Annotated[int, Field(ge=0)], ...]
    weights: tuple[Annotated[int, Field(ge=1)], ...]
    recommended: tuple[Annotated[int, Field(ge=0)], ...]
    scores: tuple[Annotated[float, Field(allow_inf_nan=False)], ...]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.items) != len(self.weights) or len(self.recommended) != len(self.scores):
            raise ValueError("golden row: items and weights, recommended and scores must be of one length each")
        return self


class Golden(BaseModel):
    """golden.json: `top` items are recommended to each history, fewer where fewer are unseen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    top: Annotated[int, Field(ge=1)]
    rows: Annotated[tuple[GoldenRow, ...], Field(min_length=MIN_GOLDEN_ROWS)]


@dataclass(frozen=True, slots=True, eq=False)
class RecommenderRelease:
    """A verified release folder. item_embeddings float32 [I, D], item_popularity int64 [I], item_ids in their order."""

    path: Path
    manifest: RecommenderManifest
    item_ids: tuple[str, ...]
    item_embeddings: NDArray[np.float32]
    item_popularity: NDArray[np.int64]
    golden: Golden

    @property
    def id(self) -> str:
        return self.manifest.release

    @property
    def module_path(self) -> Path:
        return self.path / MODULE_FILE


def read_recommender(folder: Path, manifest: RecommenderManifest, content: Mapping[str, bytes]) -> RecommenderRelease:
    """The release from its files' bytes. Raises ReleaseError, which names the file and what does not fit."""
    items, dimensions = manifest.items, manifest.dimensions
    embeddings = np.frombuffer(_sized(folder, content, ITEM_EMBEDDINGS_FILE, items * dimensions * 4), dtype="<f4")
    if not np.isfinite(embeddings).all():
        raise ReleaseError(f"{folder / ITEM_EMBEDDINGS_FILE}: embeddings must be finite")
    popularity = np.frombuffer(_sized(folder, content, ITEM_POPULARITY_FILE, items * 8), dtype="<i8")
    try:
        ids = content[ITEM_IDS_FILE].decode().splitlines()
        golden = Golden.model_validate_json(content[GOLDEN_FILE])
    except (UnicodeError, ValidationError) as error:
        raise ReleaseError(f"{folder}: {ITEM_IDS_FILE} or {GOLDEN_FILE}: {error}") from error
    if len(ids) != items or len(set(ids)) != items:
        raise ReleaseError(f"{folder / ITEM_IDS_FILE}: {len(set(ids))} different ids, need {items}")
    if any(max((*row.items, *row.recommended), default=0) >= items for row in golden.rows):
        raise ReleaseError(f"{folder / GOLDEN_FILE}: names an item beyond the {items} that there are")
    return RecommenderRelease(folder, manifest, tuple(ids), embeddings.reshape(items, dimensions), popularity, golden)


def _sized(folder: Path, content: Mapping[str, bytes], name: str, size: int) -> bytes:
    if len(content[name]) != size:
        raise ReleaseError(f"{folder / name}: {len(content[name])} bytes, need {size}")
    return content[name]
