"""An archive of the classes that Spark loads: a JVM that maps it has its first job done in half the CPU time.

Made once for this Java and this pyspark, by a small job that reads, groups, runs Python and writes. Nothing depends on
it: where it cannot be made, and where it does not fit, Java loads the classes as usual.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import pyspark

from trine_cli.local.java import java_program
from trine_cli.local.kafka_jars import one_at_a_time

_QUIET = "-Xlog:disable -Xlog:all=error:stderr"
_MADE_WITHIN_S = 150.0


def shared_classes() -> str:
    """Java options, for SPARK_SUBMIT_OPTS; empty where there is no archive."""
    java = Path(java_program()).resolve()
    key = zlib.crc32(f"{java}{java.stat().st_mtime_ns}{pyspark.__file__}".encode())
    root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "trine" / f"spark-{pyspark.__version__}"
    archive = root / f"classes-{key:08x}.jsa"
    if not archive.exists():
        with one_at_a_time("classes", root), tempfile.TemporaryDirectory(dir=root, prefix="classes-") as work:
            if not archive.exists():
                _make(archive, Path(work))
    return f'-XX:SharedArchiveFile="{archive}" {_QUIET}' if archive.exists() else ""


def _make(archive: Path, work: Path) -> None:
    made = work / "classes.jsa"
    options = f'-XX:ArchiveClassesAtExit="{made}" -XX:TieredStopAtLevel=1 -XX:+UseSerialGC {_QUIET}'
    try:
        subprocess.run(
            [sys.executable, "-m", "trine_cli.local.spark_classes", str(work)],
            env={**os.environ, "SPARK_SUBMIT_OPTS": options},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
            timeout=_MADE_WITHIN_S,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return
    if made.exists():
        made.rename(archive)


def _load_classes(work: Path) -> None:
    """A small job; returns when its JVM has ended, which writes the archive."""
    from feature_store.spark_session import spark_session

    session = spark_session("classes", work, "local[1]", "1g", {"spark.sql.shuffle.partitions": "1"})
    gateway = session.sparkContext._gateway
    rows = str(work / "rows")
    session.range(100).selectExpr("id", "id % 7 as part", "cast(id as string) as name").write.parquet(rows)
    read = session.read.parquet(rows)
    read.mapInArrow(lambda batches: batches, read.schema).groupBy("part").count().orderBy("part").collect()
    session.stop()
    assert gateway is not None
    gateway.shutdown()
    gateway.proc.stdin.close()
    gateway.proc.wait(_MADE_WITHIN_S)


if __name__ == "__main__":
    _load_classes(Path(sys.argv[1]))
