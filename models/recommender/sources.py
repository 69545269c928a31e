"""Where interactions live in a dataset folder or warehouse, and which columns their files have."""

from __future__ import annotations

import pyarrow as pa
from feature_store.dataset import TIME_TYPE, SourceFiles

INTERACTION_FILES = SourceFiles(
    folder="interactions",
    id_column="interaction_id",
    time_column="event_time",
    schema=pa.schema(
        {
            "interaction_id": pa.string(),
            "user_id": pa.string(),
            "item_id": pa.string(),
            "event_time": TIME_TYPE,
            "kind": pa.string(),
            "value": pa.float64(),
        }
    ),
    required=True,
)
"""`kind`: what the user did (`view`, `like`, `rating`); `value`: how much of it, 0 or more; 0 counts for nothing."""
