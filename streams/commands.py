"""What the command line needs from Kafka, as processes of its own: JSON lines on stdout, one document each.

    python -m streams.commands publish SOURCE FILE…     {"sent", "rows"} as it goes, then {"done": true, …}
    python -m streams.commands topics                   {"done": true, "topics": […]}
    python -m streams.commands dlq list|show|replay …   {"read", "records"} as it goes, then {"done": true, …}
    python -m streams.commands backfill [--rate N] [VIEW…]  as rebuild
    python -m streams.commands rebuild [VIEW…]          {"view", "doing", …} as it goes, then {"done": true, …}

An error is the last line: {"error": {"code", "message", "hint", "field", "exit_code"}}.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import IncompatibleBrokerVersion, KafkaError

from featurestore.clock import SystemClock
from featurestore.config import Settings, load_settings
from featurestore.definitions.compiled import CompiledSource
from featurestore.errors import FeatureStoreError, NotFound, Unavailable
from featurestore.offline.lake import Lake
from featurestore.offline.replays import Places, Replays
from featurestore.online.store import OnlineStore
from featurestore.registry.catalog import Catalog
from featurestore.registry.log import Registry
from featurestore.telemetry import setup_logging, this_process
from streams.backfilling import RATE, Backfiller
from streams.letters import Listing, Reading, whole
from streams.pacing import Pacer, is_embedded
from streams.publishing import Publisher, check_file, read_chunks
from streams.rebuilding import Rebuilder
from streams.regenerating import Done, Regenerator
from streams.replaying import Replayer, Selection
from streams.scanning import scan
from streams.topics import Topics, dead_letter_topic, shuffle_topic

_EVERY_SECONDS = 0.1
_BACKGROUND = 10
"""How much a backfill gives way to workers and lookups on the same machine, as `nice` counts it."""


def _write(document: Mapping[str, Any]) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(document) + b"\n")
    sys.stdout.buffer.flush()


async def publish(settings: Settings, given: argparse.Namespace) -> None:
    catalog = Registry(settings.lake).head()
    source = _source(catalog, given.source)
    paths = [Path(name) for name in given.files]
    _write({"checking": [str(path) for path in paths]})
    rows = sum([await asyncio.to_thread(check_file, path, source) for path in paths])
    publisher = Publisher(settings.kafka, source)
    pacer = await _pacer(settings, catalog, given.source)
    started = time.monotonic()
    try:
        await publisher.start()
        await _send_all(publisher, pacer, (chunk for path in paths for chunk in read_chunks(path, source)), rows)
    finally:
        await publisher.stop()
        if pacer is not None:
            await pacer.stop()
    seconds = time.monotonic() - started
    _write({"done": True, "source": source.name, "topic": source.topic, "rows": rows, "seconds": round(seconds, 3)})


def _source(catalog: Catalog, name: str) -> CompiledSource:
    source = catalog.sources.get(name)
    if source is None:
        known = ", ".join(sorted(catalog.sources))
        hint = f"there are {known}" if known else "nothing is published yet; run: featurestore apply"
        raise NotFound("source", name, catalog.sources, hint=hint)
    return source


async def _send_all(publisher: Publisher, pacer: Pacer | None, chunks: Any, rows: int) -> None:
    sent, said = 0, 0.0
    for chunk in chunks:
        added = await publisher.send(chunk)
        sent += chunk.rows
        if time.monotonic() - said > _EVERY_SECONDS or sent == rows:
            said = time.monotonic()
            _write({"sent": sent, "rows": rows})
        if pacer is not None and sent < rows:
            await pacer.admit(added, lambda at=sent: _write({"sent": at, "rows": rows, "waiting": "worker"}))  # type: ignore[misc]


async def _pacer(settings: Settings, catalog: Catalog, source: str) -> Pacer | None:
    """For the embedded broker only: a real one keeps what it is given."""
    if not await is_embedded(settings.kafka):
        return None
    views = [view for view in catalog.views.values() if view.source.name == source]
    store = OnlineStore.connect(settings.redis, project=settings.project)
    pacer = Pacer(settings.kafka, settings.project, store, source, views)
    await pacer.start()
    return pacer


async def topics(settings: Settings, _: argparse.Namespace) -> None:
    catalog = Registry(settings.lake).head()
    roles = _roles(catalog, settings.project)
    found = await Topics(settings.kafka).look(roles)
    ranges = await _ranges(settings.kafka, found.counts)
    append_time = await _log_append_time(settings.kafka, [t for t in found.counts if roles[t][0] == "source"])
    _write({
        "done": True,
        "embedded": await is_embedded(settings.kafka),
        "topics": [
            {
                "topic": topic,
                "role": role,
                "source": source,
                "exists": topic in found.counts,
                "partitions": {str(p): list(span) for p, span in sorted(ranges.get(topic, {}).items())},
                "log_append_time": append_time.get(topic),
            }
            for topic, (role, source) in roles.items()
        ],
    })  # fmt: skip


async def list_letters(settings: Settings, given: argparse.Namespace) -> None:
    source, replayed = await _letters_of(settings, given)
    listing, foreign = Listing(given.limit, replayed), 0
    async with _reading(settings, source) as reading:
        async with aclosing(reading.letters()) as letters:
            async for found in letters:
                if given.reason in ("", found.letter.reason):
                    listing.add(found)
        foreign = reading.foreign
    _write({**_told(source), **listing.document(), "foreign": foreign})


async def show_letter(settings: Settings, given: argparse.Namespace) -> None:
    source, replayed = await _letters_of(settings, given)
    place = given.partition, given.offset
    async with _reading(settings, source) as reading, aclosing(reading.letters()) as letters:
        async for found in letters:
            if found.place == place:
                _write({**_told(source), "letter": whole(found, replayed=place in replayed)})
                return
    raise NotFound("dead letter", f"{given.partition}/{given.offset}",
                   hint=f"`featurestore dlq list {source.name}` has partitions and offsets")  # fmt: skip


async def replay_letters(settings: Settings, given: argparse.Namespace) -> None:
    source = _source(Registry(settings.lake).head(), given.source)
    replays = Replays(Lake(settings.lake), source.topic)
    replayer = Replayer(settings.kafka, source.topic, replays, SystemClock(), by=this_process(), tell=_now_and_then())
    chosen = Selection(given.reason, given.partition, given.offset)
    summary = await replayer.run(chosen, take_over=given.take_over, dry=given.dry_run)
    _write({**_told(source), "dry_run": given.dry_run, **msgspec.to_builtins(summary)})


_Kind = TypeVar("_Kind", bound=Regenerator)


async def rebuild(settings: Settings, given: argparse.Namespace) -> None:
    await _regenerate(settings, Rebuilder, lambda rebuilder: rebuilder.run(given.views))


async def backfill(settings: Settings, given: argparse.Namespace) -> None:
    os.nice(_BACKGROUND)
    await _regenerate(settings, Backfiller, lambda backfiller: backfiller.run(given.views, rate=given.rate))


async def _regenerate(settings: Settings, kind: type[_Kind], run: Callable[[_Kind], Awaitable[list[Done]]]) -> None:
    started = time.monotonic()
    _cancel_at_sigterm()
    async with OnlineStore.connect(settings.redis, project=settings.project) as store:
        regenerator = kind(
            bootstrap=settings.kafka,
            project=settings.project,
            store=store,
            lake=Lake(settings.lake),
            catalog=Registry(settings.lake).head(),
            clock=SystemClock(),
            by=this_process(),
            tell=_now_and_then(),
        )
        views = await run(regenerator)
    seconds = round(time.monotonic() - started, 3)
    _write({"done": True, "views": [msgspec.to_builtins(view) for view in views], "seconds": seconds})


def _cancel_at_sigterm() -> None:
    """The first time, so that what was begun can be put right; the second ends the process."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def cancel() -> None:
        loop.remove_signal_handler(signal.SIGTERM)
        if task is not None:
            task.cancel()

    loop.add_signal_handler(signal.SIGTERM, cancel)


def _told(source: CompiledSource) -> dict[str, Any]:
    return {"done": True, "source": source.name, "topic": source.topic, "dlq": dead_letter_topic(source.topic)}


async def _letters_of(settings: Settings, given: argparse.Namespace) -> tuple[CompiledSource, Places]:
    """The source, and which of its letters were replayed."""
    source = _source(Registry(settings.lake).head(), given.source)
    history = await asyncio.to_thread(Replays(Lake(settings.lake), source.topic).read)
    return source, history.replayed


@asynccontextmanager
async def _reading(settings: Settings, source: CompiledSource) -> AsyncIterator[Reading]:
    """Of no letters where there is no dead-letter topic: it is made with the first letter."""
    topic = dead_letter_topic(source.topic)
    count = (await Topics(settings.kafka).look([topic])).counts.get(topic, 0)
    async with scan(settings.kafka, topic, count) as letters:
        tell = _now_and_then()
        yield Reading(letters, source.topic, lambda n: tell({"read": n, "records": letters.total}))


def _now_and_then() -> Callable[[Mapping[str, Any]], None]:
    """Writes a document of progress where the last one is some time ago."""
    said = 0.0

    def tell(document: Mapping[str, Any]) -> None:
        nonlocal said
        if time.monotonic() - said > _EVERY_SECONDS:
            said = time.monotonic()
            _write(document)

    return tell


def _roles(catalog: Catalog, project: str) -> dict[str, tuple[str, str]]:
    """Topic → (role, source)."""
    roles = {source.topic: ("source", source.name) for source in catalog.sources.values()}
    shuffled = [view for view in catalog.views.values() if not view.aligned]
    roles |= {shuffle_topic(project, view): ("shuffle", view.source.name) for view in shuffled}
    return roles | {dead_letter_topic(s.topic): ("dead_letters", s.name) for s in catalog.sources.values()}


async def _ranges(bootstrap: str, counts: Mapping[str, int]) -> dict[str, dict[int, tuple[int, int]]]:
    """Topic → partition → (first offset kept, offset after the last)."""
    partitions = [TopicPartition(topic, p) for topic, n in counts.items() for p in range(n)]
    if not partitions:
        return {}
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
    try:
        await consumer.start()
        starts = await consumer.beginning_offsets(partitions)
        ends = await consumer.end_offsets(partitions)
    except KafkaError as error:
        raise Unavailable("kafka", f"{bootstrap} does not answer: {error}", hint="is FS_KAFKA right?") from error
    finally:
        await consumer.stop()
    found: dict[str, dict[int, tuple[int, int]]] = {}
    for tp in partitions:
        found.setdefault(tp.topic, {})[tp.partition] = (starts[tp], ends[tp])
    return found


async def _log_append_time(bootstrap: str, names: Sequence[str]) -> dict[str, bool]:
    """Empty where the broker cannot say, as the embedded one cannot."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=5_000)
    try:
        await admin.start()
        resources = [ConfigResource(ConfigResourceType.TOPIC, n, configs={"message.timestamp.type": ""}) for n in names]
        answers = await admin.describe_configs(resources) if resources else []
        found = {res[3]: entry[1] for answer in answers for res in answer.resources for entry in res[4]}
        return {topic: value == "LogAppendTime" for topic, value in found.items()}
    except (KafkaError, IncompatibleBrokerVersion, AttributeError, IndexError, OSError):
        return {}
    finally:
        await admin.close()


_Command = Callable[[Settings, argparse.Namespace], Awaitable[None]]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m streams.commands")
    verbs = parser.add_subparsers(required=True)
    publishing = verbs.add_parser("publish")
    publishing.add_argument("source")
    publishing.add_argument("files", nargs="+")
    publishing.set_defaults(run=publish)
    verbs.add_parser("topics").set_defaults(run=topics)
    rebuilding = verbs.add_parser("rebuild")
    rebuilding.add_argument("views", nargs="*")
    rebuilding.set_defaults(run=rebuild)
    backfilling = verbs.add_parser("backfill")
    backfilling.add_argument("views", nargs="*")
    backfilling.add_argument("--rate", type=int, default=RATE)
    backfilling.set_defaults(run=backfill)
    _add_letters(verbs.add_parser("dlq").add_subparsers(required=True))
    return parser.parse_args(arguments)


def _add_letters(verbs: Any) -> None:
    listing, showing, replaying = (verbs.add_parser(name) for name in ("list", "show", "replay"))
    for parser, run in ((listing, list_letters), (showing, show_letter), (replaying, replay_letters)):
        parser.add_argument("source")
        parser.set_defaults(run=run)
    showing.add_argument("partition", type=int)
    showing.add_argument("offset", type=int)
    listing.add_argument("--limit", type=int, default=0)
    for parser in (listing, replaying):
        parser.add_argument("--reason", default="")
    replaying.add_argument("--partition", type=int)
    replaying.add_argument("--offset", type=int)
    replaying.add_argument("--dry-run", action="store_true")
    replaying.add_argument("--take-over", action="store_true")


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parse(arguments)
    setup_logging("console", level=logging.WARNING)
    for name in ("aiokafka", "kafka"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        asyncio.run(given.run(load_settings(), given))
    except FeatureStoreError as error:
        said = {"code": error.code, "message": error.message, "hint": error.hint, "field": error.field}
        _write({"error": {**said, "exit_code": error.exit_code}})
        return error.exit_code
    except asyncio.CancelledError:
        return 128 + signal.SIGTERM
    except Exception as error:  # noqa: BLE001 — the other side has to hear of it whatever it is
        traceback.print_exc()
        _write({"error": {"code": "error", "message": f"unexpected {type(error).__name__}: {error}", "exit_code": 1}})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
