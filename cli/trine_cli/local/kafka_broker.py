"""A real Kafka: one KRaft node on loopback, ready in a few seconds, restartable on its folder and port."""

from __future__ import annotations

import base64
import shutil
import subprocess
import tempfile
import uuid
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from trine_cli.local.errors import LocalStackError
from trine_cli.local.java import java_program
from trine_cli.local.kafka_jars import kafka_cache, kafka_jars, one_at_a_time
from trine_cli.local.ports import HOST, accepts_connections, free_ports
from trine_cli.local.server import Launch, LocalServer
from trine_cli.local.topics import create_topics

# A small heap and no optimising compiler: it starts in half the time, and local loads do not need more.
_JAVA_OPTIONS = ("-Xms128m", "-Xmx512m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Djava.awt.headless=true")
_QUIET = ("-Xlog:disable", "-Xlog:all=error:stderr")
_LOG_CONFIG = """\
rootLogger.level=WARN
rootLogger.appenderRefs=console
rootLogger.appenderRef.console.ref=console
appender.console.type=Console
appender.console.name=console
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=%d{ISO8601} %p %m (%c)%n
logger.server.name=kafka.server.KafkaRaftServer
logger.server.level=INFO
"""


class KafkaBroker(LocalServer):
    """Kafka with its data in `folder`. `bootstrap` is what clients connect to; `settings` are added to (or replace) its
    server.properties."""

    ready_timeout_s = 60.0

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        log: Path | None = None,
        java_options: Sequence[str] | None = None,
        settings: Mapping[str, object] | None = None,
        name: str = "kafka",
    ) -> None:
        super().__init__(name, log or folder / "kafka.log")
        self.folder = folder
        free = free_ports(2)
        self.port, self._controller_port = port or free[0], free[1]
        self._java_options, self._more = java_options, dict(settings or {})

    @property
    def bootstrap(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def address(self) -> str:
        return self.bootstrap

    def create_topics(self, shards: int = 64) -> None:
        """Create Trine's topics; see `trine_cli.local.topics.create_topics`."""
        create_topics(self.bootstrap, shards)

    def _launch(self) -> Launch:
        self.folder.mkdir(parents=True, exist_ok=True)
        properties = self.folder / "server.properties"
        properties.write_text("".join(f"{name}={value}\n" for name, value in self._settings().items()))
        (self.folder / "log4j2.properties").write_text(_LOG_CONFIG)
        options = _shared_classes() if self._java_options is None else self._java_options
        java = [java_program(), *_JAVA_OPTIONS, *options, f"-Dlog4j2.configurationFile={self.folder}/log4j2.properties"]
        java += ["-cp", ":".join(str(jar) for jar in sorted(kafka_jars().glob("*.jar")))]
        if not (self.folder / "data" / "meta.properties").exists():
            self._format(java, properties)
        return Launch([*java, "kafka.Kafka", str(properties)], ports=[self.port, self._controller_port])

    def _settings(self) -> dict[str, object]:
        return {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@{HOST}:{self._controller_port}",
            "listeners": f"PLAINTEXT://{HOST}:{self.port},CONTROLLER://{HOST}:{self._controller_port}",
            "advertised.listeners": f"PLAINTEXT://{HOST}:{self.port}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": (self.folder / "data").resolve(),
            "auto.create.topics.enable": "false",
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 4,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 4,
            # A transaction that its producer left open holds up readers: look for expired ones often.
            "transaction.abort.timed.out.transaction.cleanup.interval.ms": 1000,
            "group.initial.rebalance.delay.ms": 0,
            "group.min.session.timeout.ms": 1000,
            # After a kill -9 a broker may register again when its old session has run out.
            "broker.heartbeat.interval.ms": 500,
            "broker.session.timeout.ms": 3000,
            "num.network.threads": 2,
            "num.io.threads": 4,
            "log.cleaner.dedupe.buffer.size": 4 * 1024 * 1024,
            "log.index.size.max.bytes": 1024 * 1024,
            "message.max.bytes": 8 * 1024 * 1024,
            **self._more,
        }

    def _format(self, java: list[str], properties: Path) -> None:
        """As Kafka's own tool does, which takes a second: beside the ids it writes the same every time, kept here."""
        kept, data = kafka_cache() / "bootstrap.checkpoint", self.folder / "data"
        if kept.exists():
            data.mkdir(exist_ok=True)
            shutil.copyfile(kept, data / kept.name)
            # Last, since it is what says that the folder is whole.
            ids = {"version": 1, "node.id": 1, "cluster.id": _new_id(), "directory.id": _new_id()}
            (data / "meta.properties").write_text("".join(f"{name}={value}\n" for name, value in ids.items()))
            return
        command = [*java, "kafka.tools.StorageTool", "format", "-t", _new_id(), "-c", str(properties)]
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if run.returncode != 0:
            raise LocalStackError(f"kafka cannot format {self.folder}:\n{run.stdout[-2000:]}")
        made = kept.with_name(f"{kept.name}-{uuid.uuid4().hex}")
        shutil.copyfile(data / kept.name, made)
        made.rename(kept)

    def _missing(self) -> str | None:
        if not accepts_connections(self.port):
            return f"nothing listens on {self.bootstrap} yet"
        try:
            with AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0}) as admin:
                brokers = admin.list_topics(timeout=1).brokers
        except KafkaException as error:
            return str(error)
        return None if brokers else "the broker has not joined its cluster yet"


def _new_id() -> str:
    """A random id as Kafka writes them. It reads one that starts with "-" as an option."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A")


def _shared_classes() -> Sequence[str]:
    """Java options that start a broker from an archive of loaded classes, which halves its start; made once per Java.

    The archive is what a broker leaves that starts, makes a topic and stops. Nothing depends on it: where it cannot
    be made, and where it does not fit, Java loads the classes as usual.
    """
    java = Path(java_program()).resolve()
    key = zlib.crc32(f"{java}{java.stat().st_mtime_ns}".encode())
    archive = kafka_cache() / f"classes-{key:08x}.jsa"
    if not archive.exists():
        with one_at_a_time("classes"), tempfile.TemporaryDirectory(dir=archive.parent, prefix="classes-") as work:
            if not archive.exists():
                made = Path(work) / "classes.jsa"
                with KafkaBroker(Path(work), java_options=[f"-XX:ArchiveClassesAtExit={made}", *_QUIET]) as broker:
                    broker.create_topics(1)
                if made.exists():
                    made.rename(archive)
    return [f"-XX:SharedArchiveFile={archive}", *_QUIET] if archive.exists() else []
