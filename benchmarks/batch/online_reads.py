"""Reads of a published prediction, some hundred a second, until stdin ends; prints moments and milliseconds.

`python -m benchmarks.batch.online_reads REDIS_URL JOB`
"""

from __future__ import annotations

import json
import random
import select
import sys
import time

import redis
from batch_scorer.predictions import Predictions

_EVERY_S = 0.003


def main() -> None:
    with redis.Redis.from_url(sys.argv[1], socket_timeout=30) as client:
        predictions, seen = Predictions(client), []
        while not select.select([sys.stdin], [], [], _EVERY_S)[0]:
            began = time.perf_counter()
            predictions.read(sys.argv[2], [f"c{random.randrange(100_000):08d}"])
            seen.append((time.time(), (time.perf_counter() - began) * 1e3))
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
