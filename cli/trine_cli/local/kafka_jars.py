"""Kafka's jars, resolved once from Maven Central by the Ivy that comes with pyspark, and kept in the user's cache."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from trine_cli.local.errors import LocalStackError, MissingProgram
from trine_cli.local.java import java_program

KAFKA_VERSION = "4.1.0"
# Kafka logs through slf4j 1.7 and itself brings log4j 2.24.3: this is the binding between them.
_MODULES = [
    ("org.apache.kafka", "kafka_2.13", KAFKA_VERSION),
    ("org.apache.logging.log4j", "log4j-slf4j-impl", "2.24.3"),
]
_PATTERN = "[artifact]-[revision].[ext]"


def kafka_jars() -> Path:
    """Folder with all jars of Kafka; resolved on the first call of this machine (40 MB), afterwards at once.

    Safe with several processes at a time; a resolution that failed leaves nothing behind.
    Raises LocalStackError with Ivy's last lines where it cannot be resolved.
    """
    jars = kafka_cache() / "jars"
    if jars.is_dir():
        return jars
    with one_at_a_time("jars"):
        if not jars.is_dir():
            _resolve(jars)
    return jars


def kafka_cache() -> Path:
    """Folder of this user for what is made once from this version of Kafka."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "trine" / f"kafka-{KAFKA_VERSION}"


@contextmanager
def one_at_a_time(name: str, folder: Path | None = None) -> Iterator[None]:
    """Hold the lock `name` of the folder, by default of Kafka's cache; other processes wait."""
    folder = folder or kafka_cache()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _resolve(jars: Path) -> None:
    print(f"kafka: resolving version {KAFKA_VERSION} from Maven Central (40 MB, once)", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=jars.parent, prefix="resolve-") as work:
        ivy_file = Path(work) / "ivy.xml"
        dependencies = "".join(f'<dependency org="{o}" name="{n}" rev="{r}" conf="default"/>' for o, n, r in _MODULES)
        ivy_file.write_text(
            '<ivy-module version="2.0"><info organisation="trine" module="local-kafka"/>'
            f"<dependencies>{dependencies}</dependencies></ivy-module>"
        )
        found = Path(work) / "jars"
        command = [java_program(), "-cp", str(_ivy_jar()), "org.apache.ivy.Main", "-cache", f"{work}/cache"]
        command += ["-ivy", str(ivy_file), "-types", "jar", "bundle", "-retrieve", f"{found}/{_PATTERN}"]
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if run.returncode != 0 or not any(found.glob("kafka_2.13-*.jar")) or not any(found.glob("log4j-slf4j-impl-*")):
            last = "\n".join(run.stdout.splitlines()[-25:])
            raise LocalStackError(f"Kafka {KAFKA_VERSION} could not be resolved from Maven Central:\n{last}")
        shutil.move(found, jars)


def _ivy_jar() -> Path:
    spec = find_spec("pyspark")
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        for jar in (Path(folder) / "jars").glob("ivy-*.jar"):
            return jar
    raise MissingProgram("pyspark, which brings Ivy, is not installed here: run `make setup`")
