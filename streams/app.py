"""The Faust application: it hosts the worker's services, whose lanes own their consumers and work in batches.

Faust's agents and tables stay away from the hot path on purpose: an agent that raises acknowledges its event anyway,
and a table costs a changelog record per event.
"""

from __future__ import annotations

import faust
from faust.app.base import BootStrategy
from mode import Service

from featurestore.clock import Clock, SystemClock
from featurestore.config import EMBEDDED, Settings
from featurestore.engine.array import select
from featurestore.errors import ConfigError
from featurestore.offline.lake import Lake
from featurestore.online.store import OnlineStore
from featurestore.registry.follow import Follower
from featurestore.registry.log import Registry
from featurestore.telemetry import get_logger
from streams.consumer import Pump, PumpConfig
from streams.deadletters import DeadLetters
from streams.fold import FoldStage
from streams.heart import Heart
from streams.intake import IntakeStage
from streams.materialising import FeatureRows
from streams.patience import Patience
from streams.producing import Outbox
from streams.topics import Topics
from streams.wiring import Parts

_log = get_logger(__name__)


class Runtime:
    """Everything one worker is made of. Make it inside the event loop that it will run in."""

    def __init__(self, settings: Settings, *, clock: Clock | None = None, instance: str | None = None) -> None:
        """`instance` is the worker's name for static membership: one that comes back under it resumes at once.

        Raises ConfigError.
        """
        for part, value in (("FS_KAFKA", settings.kafka), ("FS_REDIS", settings.redis)):
            if value == EMBEDDED:
                raise ConfigError(
                    f"{part}=embedded, and a worker alone has no such part",
                    hint="`featurestore dev` starts the embedded parts and a worker that uses them",
                    field=part,
                )
        xp, said = select(settings.compute)
        _log.info(said)
        patience, topics, outbox = Patience(), Topics(settings.kafka), Outbox(settings.kafka)
        letters = Outbox(settings.kafka, part="dlq")
        self._outboxes = (outbox, letters)
        self.parts = Parts(
            settings=settings,
            bootstrap=settings.kafka,
            store=OnlineStore.connect(settings.redis, project=settings.project),
            lake=Lake(settings.lake),
            clock=clock or SystemClock(),
            topics=topics,
            outbox=outbox,
            dead=DeadLetters(letters, topics, patience),
            patience=patience,
            xp=xp,
        )
        self.rows = FeatureRows(self.parts)
        self.intake, self.fold = IntakeStage(self.parts, self.rows), FoldStage(self.parts, self.rows)
        self.intake_pump = Pump(self._pump("intake", instance), self.intake)
        self.fold_pump = Pump(self._pump("fold", instance), self.fold)
        follower = Follower(Registry(settings.lake))
        self.heart = Heart(self.parts, follower, self.intake, self.intake_pump, self.fold, self.fold_pump)

    def _pump(self, stage: str, instance: str | None) -> PumpConfig:
        settings = self.parts.settings
        return PumpConfig(
            bootstrap=settings.kafka,
            group=f"{settings.project}.{stage}",
            batch_records=settings.batch_records if stage == "intake" else FOLD_RECORDS,
            instance=f"{instance}.{stage}" if instance else None,
        )

    async def wait_for_parts(self) -> None:
        """Returns when Kafka and the store answer. Raises StoreRefused where the store must not be used as it is."""
        patience = self.parts.patience
        await patience.until_done(lambda: self.parts.topics.look(()))
        await patience.until_done(self.parts.store.require_safe)
        for outbox in self._outboxes:
            await patience.until_done(outbox.start)

    async def close(self) -> None:
        """After the pumps have stopped."""
        self.intake.stop()
        self.rows.stop()
        for outbox in self._outboxes:
            await outbox.stop()
        await self.parts.store.close()


FOLD_RECORDS = 200
"""Columnar records that fold takes at a time: each holds up to some thousand rows."""


class _NoKafka(BootStrategy):
    """Faust's own producer, for agents and tables, would end the worker where the broker goes away as it starts."""

    enable_kafka = False


class _App(faust.App):
    """Keeps no tables, so it needs no folders, which a killed worker would leave behind."""

    BootStrategy = _NoKafka

    def _create_directories(self) -> None:
        return


def create_app(runtime: Runtime) -> faust.App:
    """The application with its three services. It starts with or without a broker: the services wait for one."""
    settings = runtime.parts.settings
    app = _App(
        settings.project,
        broker=";".join(f"kafka://{server}" for server in settings.kafka.split(",")),
        store="memory://",
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        autodiscover=False,
    )
    # Without an agent Faust would subscribe its own consumer to nothing, which aiokafka refuses.
    app.producer_only = True

    @app.service
    class Fold(_Lanes):
        pump = runtime.fold_pump

    @app.service
    class Intake(_Lanes):
        pump = runtime.intake_pump

    @app.service
    class Beats(Service):
        @Service.task
        async def _run(self) -> None:
            await runtime.heart.run()

    app.finalize()
    return app


class _Lanes(Service):
    """Hosts a pump. An error that the pump does not contain crashes the application."""

    pump: Pump

    @Service.task
    async def _run(self) -> None:
        await self.pump.start()
        await self.pump.wait()

    async def on_stop(self) -> None:
        await self.pump.stop()
