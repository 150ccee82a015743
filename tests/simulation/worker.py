"""One worker, put together as `streams.app.Runtime` does it, from simulated parts."""

from __future__ import annotations

import asyncio
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from featurestore.config import Settings
from featurestore.registry.catalog import Catalog
from streams.app import FOLD_RECORDS
from streams.consumer import Pump, PumpConfig
from streams.deadletters import DeadLetters
from streams.fold import FoldStage
from streams.heart import Heart
from streams.intake import IntakeStage
from streams.materialising import FeatureRows
from streams.patience import Patience
from streams.wiring import Parts
from tests.simulation.lake import SimulatedLake
from tests.simulation.log import SimulatedLog, SimulatedOutbox, SimulatedTopics
from tests.simulation.loop import PROCESS
from tests.simulation.store import SimulatedRedis
from tests.simulation.world import Part, World


@dataclass(frozen=True)
class Site:
    """Everything outside of the workers."""

    world: World
    log: SimulatedLog
    redis: SimulatedRedis
    lake: SimulatedLake
    letters: Part
    """The way to the dead-letter topics."""
    catalog: Catalog
    settings: Settings


class _Follower:
    """`registry.follow.Follower` of a registry that does not change."""

    trouble = None

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog

    async def refresh(self) -> bool:
        return False


class SimulatedWorker:
    """Starts at once. `name` is the process, `instance` what it is called over restarts."""

    def __init__(self, site: Site, name: str, instance: str | None) -> None:
        self.site, self.name, self.instance = site, name, instance
        self.frozen = False
        context = copy_context()
        context.run(PROCESS.set, name)
        self.task: asyncio.Task[None] = site.world.loop.create_task(self._run(), context=context)

    def freeze(self) -> None:
        """For good, that is a kill."""
        self.frozen = True
        self.site.world.loop.freeze(self.name)

    def thaw(self) -> None:
        self.frozen = False
        self.site.world.loop.thaw(self.name)

    def leave(self) -> asyncio.Task[None]:
        """As after SIGTERM; done when the worker has left its groups."""
        context = copy_context()
        context.run(PROCESS.set, self.name)
        return self.site.world.loop.create_task(self._leave(), context=context)

    @property
    def pumps(self) -> tuple[Pump, Pump]:
        return self._intake_pump, self._fold_pump

    async def _run(self) -> None:
        self._assemble()
        await self._fold_pump.start()
        await self._intake_pump.start()
        await asyncio.gather(self._heart.run(), self._fold_pump.wait(), self._intake_pump.wait())

    def _assemble(self) -> None:
        site, patience = self.site, Patience()
        topics = SimulatedTopics(site.log)
        letters = SimulatedOutbox(site.log, site.letters)
        parts = Parts(
            settings=site.settings,
            bootstrap=site.settings.kafka,
            store=site.redis.client(),
            lake=cast(Any, site.lake),
            clock=site.world,
            topics=cast(Any, topics),
            outbox=cast(Any, SimulatedOutbox(site.log, site.log.part)),
            dead=DeadLetters(cast(Any, letters), cast(Any, topics), patience),
            patience=patience,
            xp=np,
        )
        self._rows = FeatureRows(parts)
        self._intake, fold = IntakeStage(parts, self._rows), FoldStage(parts, self._rows)
        self._intake_pump = Pump(self._config("intake"), self._intake, site.log.consumer)
        self._fold_pump = Pump(self._config("fold"), fold, site.log.consumer)
        follower = cast(Any, _Follower(site.catalog))
        self._heart = Heart(parts, follower, self._intake, self._intake_pump, fold, self._fold_pump)

    def _config(self, stage: str) -> PumpConfig:
        settings = self.site.settings
        records = settings.batch_records if stage == "intake" else min(FOLD_RECORDS, settings.batch_records)
        instance = f"{self.instance}.{stage}" if self.instance else None
        return PumpConfig(settings.kafka, f"{settings.project}.{stage}", records, instance)

    async def _leave(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])
        await self._intake_pump.stop()
        await self._fold_pump.stop()
        self._intake.stop()
        self._rows.stop()
