"""What the batch scorer's image runs: the driver of a run; or with the argument `executor` one of Spark's executors.

    python -m batch_scorer.container              # batch_scorer.main, told by TRINE_BATCH_* variables
    python -m batch_scorer.container executor     # as Spark on Kubernetes starts its executors' image

An executor takes the place of this process, so that signals reach it.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from batch_scorer.errors import JobError

_OPTION = re.compile(r"SPARK_JAVA_OPT_(\d+)")
#: Flags of Spark's executor and the variables in which Spark hands their values over.
_FLAGS = {
    "--driver-url": "SPARK_DRIVER_URL",
    "--executor-id": "SPARK_EXECUTOR_ID",
    "--cores": "SPARK_EXECUTOR_CORES",
    "--app-id": "SPARK_APPLICATION_ID",
    "--hostname": "SPARK_EXECUTOR_POD_IP",
    "--resourceProfileId": "SPARK_RESOURCE_PROFILE_ID",
    "--podName": "SPARK_EXECUTOR_POD_NAME",
}


def executor_command(env: Mapping[str, str], java: str, spark_home: Path) -> list[str]:
    """The command line of an executor, from the variables of its pod. Raises JobError: one is not set."""
    if missing := [name for name in (*_FLAGS.values(), "SPARK_EXECUTOR_MEMORY") if not env.get(name)]:
        raise JobError(f"executor: {', '.join(missing)} not set; Spark sets them for pods that it makes")
    numbered = sorted((int(match[1]), env[name]) for name in env if (match := _OPTION.fullmatch(name)))
    options = [option for _, option in numbered]
    memory = env["SPARK_EXECUTOR_MEMORY"]
    classes = os.pathsep.join(path for path in (env.get("SPARK_CLASSPATH"), f"{spark_home}/jars/*") if path)
    flags = [word for flag, name in _FLAGS.items() for word in (flag, env[name])]
    main = "org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend"
    return [java, *options, f"-Xms{memory}", f"-Xmx{memory}", "-cp", classes, main, *flags]


def main(arguments: list[str]) -> int:
    """The driver's exit code; does not return where it becomes an executor."""
    if not arguments or arguments == ["driver"]:
        from batch_scorer.main import main as run_driver

        return run_driver()
    if arguments != ["executor"]:
        print(f"batch-scorer: {' '.join(arguments)!r}: must be `driver` or `executor`", file=sys.stderr)
        return 2
    java, spark = shutil.which("java"), find_spec("pyspark")
    if java is None or spark is None or spark.origin is None:
        print("batch-scorer: an executor needs java on PATH and pyspark", file=sys.stderr)
        return JobError.exit_code
    try:
        command = executor_command(os.environ, java, Path(spark.origin).parent)
    except JobError as error:
        print(f"batch-scorer: {error}", file=sys.stderr)
        return error.exit_code
    os.execv(java, command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
