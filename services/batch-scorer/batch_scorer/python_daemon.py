"""Spark's Python daemon with the slow imports behind it: workers are forked from it and begin with their work.

Set as `spark.python.daemon.module`. Importing torch takes seconds, and so does what torch imports when a process loads
its first exported program; without this every worker of an executor does both anew. No threads may be started here:
they would not survive the fork.
"""

from __future__ import annotations

import sys
from pathlib import Path


def leave_archives() -> None:
    """Take zips and jars off Python's path where pyspark is there as files.

    Before every task pyspark has Python read the table of each zip anew that something was looked for in, and Spark
    puts its own on the path, its largest jar among them: 0.1 s a task.
    """
    files = [path for path in sys.path if not path.endswith((".zip", ".jar"))]
    if any((Path(path) / "pyspark").is_dir() for path in files):
        sys.path[:] = files
        for path in [path for path in sys.path_importer_cache if ".zip" in path or ".jar" in path]:
            del sys.path_importer_cache[path]


def main() -> None:
    leave_archives()
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

    manager()  # type: ignore[no-untyped-call, unused-ignore]


if __name__ == "__main__":
    main()
