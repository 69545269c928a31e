"""Spark's Python daemon with the slow imports behind it: workers are forked from it and begin with their work.

Set as `spark.python.daemon.module`. Importing torch takes seconds, and so does what torch imports when a process loads
its first exported program; without this every worker of an executor does both anew. No threads may be started here:
they would not survive the fork.
"""

from __future__ import annotations

import model_release.scoring_module  # noqa: F401
import torch._dynamo
import torch._inductor.sizevars
import torch.export._trace
import torch.export.pt2_archive._package  # noqa: F401
from pyspark.daemon import manager  # type: ignore[attr-defined, unused-ignore]

import batch_scorer.block_writer
import batch_scorer.part_writer
import batch_scorer.rows_scoring
import batch_scorer.scoring  # noqa: F401

if __name__ == "__main__":
    manager()  # type: ignore[no-untyped-call, unused-ignore]
