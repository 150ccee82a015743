"""A real Apache Kafka: one KRaft node on 127.0.0.1, from the jars that `deploy/kafka/pom.xml` names."""

import fcntl
import hashlib
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.parts.process import ServerProcess, free_ports

ROOT = Path(__file__).resolve().parents[2]
POM = ROOT / "deploy" / "kafka" / "pom.xml"
CACHE = ROOT / ".kafka"
JAVA_MAJOR = 17
CLUSTER_ID = "ZmVhdHVyZXN0b3JlLWthZg"
"""22 characters of base64, as a cluster's id must be; one for all, since every node is a cluster of its own."""

QUICK_START = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
"""Half the processor time until the server answers, for less speed afterwards: right for tests, not for benchmarks."""


def why_unavailable() -> str:
    """Why Kafka cannot run on this machine; empty where it can."""
    java = shutil.which("java")
    if java is None:
        return "there is no java on PATH"
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    match = re.search(r'version "(\d+)', said)
    if match is None or int(match[1]) < JAVA_MAJOR:
        return f"Kafka needs Java {JAVA_MAJOR}, and java says: {said.strip().splitlines()[:1]}"
    if shutil.which("mvn") is None and not _libraries().exists():
        return "there is no mvn on PATH to fetch Kafka's jars with"
    return ""


def _libraries() -> Path:
    return CACHE / f"lib-{hashlib.sha256(POM.read_bytes()).hexdigest()[:12]}"


def libraries() -> Path:
    """The directory of Kafka's jars, fetched on first use; processes that ask at the same time wait for one."""
    target = _libraries()
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            partial = target.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            fetch = ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies", f"-DoutputDirectory={partial}"]
            done = subprocess.run(fetch, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(f"mvn could not fetch Kafka's jars:\n{(done.stdout + done.stderr)[-3000:]}")
            partial.rename(target)
    return target


class KafkaServer(ServerProcess):
    """One broker and controller. Topics must be made (`create_topic`), and no record is dropped for its age.

    `kill` and `restart` keep address and data. `heap` is Java's -Xmx; a benchmark passes `flags=()` for a JVM that
    compiles fully; `options` are broker properties that win. `advertised` is the port of a proxy to `behind`: clients
    that come through it are told to stay with it, while others use `bootstrap`.
    """

    name = "kafka"
    start_seconds = 60.0

    def __init__(
        self,
        *,
        heap: str = "512m",
        flags: Sequence[str] = QUICK_START,
        options: dict[str, str] | None = None,
        advertised: int | None = None,
    ) -> None:
        self._classpath = f"{libraries()}/*"
        super().__init__()
        self.flags = (f"-Xmx{heap}", *flags)
        self.options = options or {}
        self.port, self._controller, self.behind = free_ports(3)
        self.advertised = advertised
        self._admin: AdminClient | None = None
        self._properties = self.directory / "server.properties"
        self._format()

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    def properties(self) -> dict[str, str]:
        listeners = {"PLAINTEXT": self.port, "CONTROLLER": self._controller}
        told = {"PLAINTEXT": self.port}
        if self.advertised is not None:
            listeners["PROXIED"], told["PROXIED"] = self.behind, self.advertised
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller}",
            "listeners": ",".join(f"{name}://127.0.0.1:{port}" for name, port in listeners.items()),
            "advertised.listeners": ",".join(f"{name}://127.0.0.1:{port}" for name, port in told.items()),
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": ",".join(f"{name}:PLAINTEXT" for name in listeners),
            "controller.listener.names": "CONTROLLER",
            "log.dirs": str(self.directory / "data"),
            "num.partitions": "4",
            "auto.create.topics.enable": "false",
            "min.insync.replicas": "1",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "4",
            "group.initial.rebalance.delay.ms": "0",
            # Tests kill consumers and want them missed within a second or two.
            "group.min.session.timeout.ms": "500",
            # Event times of 2013 must not count as a week old.
            "log.retention.ms": "-1",
            "controlled.shutdown.enable": "false",
            # After a kill the controller takes a new process only when the old one's session has ended.
            "broker.session.timeout.ms": "2000",
            "broker.heartbeat.interval.ms": "500",
            **self.options,
        }

    def argv(self) -> list[str]:
        return self._java(*self.flags, main="kafka.Kafka", arguments=[str(self._properties)])

    def answers(self) -> bool:
        try:
            return bool(self.admin.list_topics(timeout=1).brokers)
        except KafkaException:
            return False

    @property
    def admin(self) -> AdminClient:
        if self._admin is None:
            self._admin = AdminClient(
                {
                    "bootstrap.servers": self.bootstrap,
                    "log_level": 0,
                    "reconnect.backoff.ms": 20,
                    "reconnect.backoff.max.ms": 100,
                }
            )
        return self._admin

    def create_topic(self, name: str, *, partitions: int = 4, config: dict[str, str] | None = None) -> None:
        """Makes a topic and returns when it is there; `config` as {"message.timestamp.type": "LogAppendTime"}."""
        topic = NewTopic(name, num_partitions=partitions, replication_factor=1, config=config or {})
        self.admin.create_topics([topic])[name].result(timeout=30)

    def kill(self) -> None:
        # A client that knew the old process may wait for it for longer than its callers do.
        self._admin = None
        super().kill()

    def _format(self) -> None:
        self._properties.write_text("".join(f"{key}={value}\n" for key, value in self.properties().items()))
        arguments = ["format", "-t", CLUSTER_ID, "-c", str(self._properties)]
        command = self._java(*QUICK_START, main="kafka.tools.StorageTool", arguments=arguments)
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=self.directory)
        if done.returncode != 0:
            raise RuntimeError(f"Kafka's storage could not be formatted:\n{(done.stdout + done.stderr)[-3000:]}")

    def _java(self, *flags: str, main: str, arguments: list[str]) -> list[str]:
        return ["java", *flags, "-cp", self._classpath, main, *arguments]
