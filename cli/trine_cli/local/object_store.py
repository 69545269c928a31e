"""An object store for tests, where somebody has one: none can be started here as Redis and Kafka are.

`TRINE_TEST_OBJECT_STORE`: URI of an empty bucket or prefix, such as
`s3://bucket?region=us-east-1&endpoint_override=127.0.0.1:9000&scheme=http`; credentials as AWS's own tools take them.
"""

from __future__ import annotations

import os

#: Empty where there is none.
OBJECT_STORE = os.environ.get("TRINE_TEST_OBJECT_STORE", "")


def below(uri: str, name: str) -> str:
    """The prefix `name` in it."""
    place, question, options = uri.partition("?")
    return f"{place.rstrip('/')}/{name}{question}{options}"
