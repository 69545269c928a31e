"""Writing a recommender's release; golden rows are computed by the module that was written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_release.errors import ReleaseError
from model_release.manifest import CARD_FILE, FORMAT, MODULE_FILE, History, RecommenderManifest
from model_release.recommender import (
    GOLDEN_FILE,
    ITEM_EMBEDDINGS_FILE,
    ITEM_IDS_FILE,
    ITEM_POPULARITY_FILE,
    Golden,
    GoldenRow,
    RecommenderRelease,
)
from model_release.release import open_release
from model_release.retrieval import NOTHING, top_unseen
from model_release.user_tower import MOST_WEIGHT, UserTower, UserTowerModule, export_tower, load_tower
from model_release.writer import place_release, sealed

GOLDEN_ROWS = 256
GOLDEN_TOP = 10
_LONGEST_GOLDEN = 60


@dataclass(frozen=True, slots=True)
class RecommenderDraft:
    """What training hands over. item_embeddings float32 [I, D], item_popularity int64 [I], in the order of item_ids."""

    model: str
    tower: UserTower
    item_ids: tuple[str, ...]
    item_embeddings: NDArray[np.float32]
    item_popularity: NDArray[np.int64]
    history: History
    model_card: str
    metrics: dict[str, Any]
    training: dict[str, Any]


def write_recommender(releases: Path | str, draft: RecommenderDraft) -> RecommenderRelease:
    """Writes `draft` as a folder in `releases` and opens it, verified; equal content has the same id.

    Raises:
        ReleaseError: the draft does not fit together, or the folder of this id is there and damaged.
    """
    if any(not item or len(item.splitlines()) != 1 for item in draft.item_ids):
        raise ReleaseError("item_ids: must be texts of one line, none of them empty")
    return open_release(place_release(releases, lambda folder: _fill(folder, draft)), "recommender")


def _fill(folder: Path, draft: RecommenderDraft) -> str:
    items, dimensions = draft.item_embeddings.shape
    export_tower(draft.tower, folder / MODULE_FILE)
    golden = golden_rows(load_tower(folder / MODULE_FILE), draft.item_embeddings)
    (folder / ITEM_EMBEDDINGS_FILE).write_bytes(draft.item_embeddings.astype("<f4").tobytes())
    (folder / ITEM_IDS_FILE).write_text("".join(f"{item}\n" for item in draft.item_ids), encoding="utf-8")
    (folder / ITEM_POPULARITY_FILE).write_bytes(draft.item_popularity.astype("<i8").tobytes())
    (folder / GOLDEN_FILE).write_text(golden.model_dump_json() + "\n", encoding="utf-8")
    (folder / CARD_FILE).write_text(draft.model_card, encoding="utf-8")
    body = {
        "format": FORMAT,
        "kind": "recommender",
        "model": draft.model,
        "dimensions": dimensions,
        "items": items,
        "history": draft.history.model_dump(mode="json"),
        "metrics": draft.metrics,
        "training": draft.training,
    }
    return sealed(folder, body, RecommenderManifest).release


def golden_rows(tower: UserTowerModule, item_embeddings: NDArray[np.float32]) -> Golden:
    """GOLDEN_ROWS made-up histories, of no item to many, and what the tower and the items make of them."""
    items = len(item_embeddings)
    random = np.random.default_rng(items)
    lengths = np.minimum(np.arange(GOLDEN_ROWS) % (_LONGEST_GOLDEN + 1), items)
    histories = [np.sort(random.choice(items, length, replace=False)) for length in lengths.tolist()]
    seen = np.concatenate(histories).astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    weights = random.integers(1, MOST_WEIGHT + 1, len(seen))
    ranking = top_unseen(tower(seen, weights, starts), item_embeddings, seen, starts, GOLDEN_TOP)
    rows = []
    for row, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        there = ranking.items[row] != NOTHING
        rows.append(
            GoldenRow(
                items=tuple(seen[start : start + length].tolist()),
                weights=tuple(weights[start : start + length].tolist()),
                recommended=tuple(ranking.items[row][there].tolist()),
                scores=tuple(ranking.scores[row][there].tolist()),
            )
        )
    return Golden(top=GOLDEN_TOP, rows=tuple(rows))


def golden_difference(release: RecommenderRelease) -> str:
    """Runs the golden histories through the release's module; what differs, in one sentence, or an empty text."""
    found = golden_rows(load_tower(release.module_path), release.item_embeddings)
    if found.top != release.golden.top or len(found.rows) != len(release.golden.rows):
        return f"{release.path / GOLDEN_FILE}: must have {GOLDEN_ROWS} rows of {GOLDEN_TOP}"
    differ = [row for row, pair in enumerate(zip(found.rows, release.golden.rows, strict=True)) if pair[0] != pair[1]]
    if not differ:
        return ""
    row = differ[0]
    return (
        f"{release.module_path}: {len(differ)} of {len(found.rows)} golden rows differ; row {row} gives "
        f"{found.rows[row].recommended}, {GOLDEN_FILE} says {release.golden.rows[row].recommended}"
    )
