"""The Kafka that all runs of a session share."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.chaos.run import Site
from tests.parts.kafka import KafkaServer
from tests.parts.process import free_ports
from tests.parts.proxy import Proxy

_WITH_RULES = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "allow.everyone.if.no.acl.found": "true",
}


@contextmanager
def site(directory: Path) -> Iterator[Site]:
    """Histories go below `directory`, and stay."""
    [port] = free_ports(1)
    kafka = KafkaServer(advertised=port, options=_WITH_RULES)
    with ThreadPoolExecutor(1, "starts") as starts, Proxy(kafka.behind, port=port) as proxy, kafka:
        yield Site(kafka, proxy, directory, starts)
