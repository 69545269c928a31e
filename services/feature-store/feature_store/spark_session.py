"""A Spark session as Trine's jobs want it: UTC, Arrow, quiet, and executors in this very virtual environment.

pyspark is the optional extra `feature_store[spark]`; it is imported when a session is made.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_QUIET = """\
rootLogger.level = {level}
rootLogger.appenderRef.stderr.ref = stderr
appender.stderr.type = Console
appender.stderr.name = stderr
appender.stderr.target = SYSTEM_ERR
appender.stderr.layout.type = PatternLayout
appender.stderr.layout.pattern = %d{{yyyy-MM-dd'T'HH:mm:ss.SSS}} %p %c{{1}}: %m%n
"""


def spark_session(
    app: str,
    folder: Path,
    master: str = "local[*]",
    driver_memory: str = "2g",
    conf: Mapping[str, str] | None = None,
    level: str = "warn",
) -> SparkSession:
    """The process's session, made at the first call; a later call gives the same one whatever it asks for.

    `folder`: what Spark spills and its log, `spark.log` (nothing of it comes to this process's terminal). With
    `local[*]` driver and executors are one JVM of `driver_memory`; Python workers beside it hold one group each.
    `conf` goes on top. The caller stops the session.
    """
    from pyspark.sql import SparkSession

    folder.mkdir(parents=True, exist_ok=True)
    logging = folder / "log4j2.properties"
    logging.write_text(_QUIET.format(level=level))
    # Workers are forked from here, or started by executors from an image with the same environment.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ.setdefault("PYSPARK_DRIVER_PYTHON", sys.executable)
    settings = {
        "spark.driver.memory": driver_memory,
        "spark.driver.extraJavaOptions": f"-Dlog4j2.configurationFile=file:{logging}",
        "spark.local.dir": str(folder),
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        "spark.sql.execution.arrow.maxRecordsPerBatch": "65536",
        # A Python worker computes one group with NumPy: as many threads as tasks are enough.
        "spark.executorEnv.OMP_NUM_THREADS": "1",
        "spark.sql.warehouse.dir": str(folder / "tables"),
        **_one_machine(master),
        **(conf or {}),
    }
    builder = SparkSession.builder.appName(app).master(master)
    for name, value in settings.items():
        builder = builder.config(name, value)
    with _stderr_to(folder / "spark.log"):
        session = builder.getOrCreate()
    _hush(session)
    return session


def _hush(session: SparkSession) -> None:
    """That the JVM has gone is an error of the call that finds it; no thread says it too, with a traceback."""
    logging.getLogger("py4j").setLevel(logging.CRITICAL)
    logging.getLogger().addFilter(_not_from_py4j)
    server = session.sparkContext._accumulatorServer
    server.handle_error = lambda *_: None  # type: ignore[method-assign]


def _not_from_py4j(record: logging.LogRecord) -> bool:
    """Some of what Py4J logs it logs as the root."""
    return "py4j" not in Path(record.pathname).parts


def _one_machine(master: str) -> dict[str, str]:
    if not master.startswith("local"):
        return {}
    cores = os.cpu_count() or 1
    return {
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        # Few, as a task costs about 10 ms; what is small is merged by Spark's adaptive execution.
        "spark.sql.shuffle.partitions": str(4 * cores),
    }


@contextlib.contextmanager
def _stderr_to(log: Path) -> Iterator[None]:
    """The JVM inherits its stderr when it is started: it gets the log's."""
    with log.open("ab") as target:
        sys.stderr.flush()
        kept = os.dup(2)
        try:
            os.dup2(target.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
