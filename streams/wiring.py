"""What both stages share, and the shape of the work that a revision of the registry asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featurestore.clock import Clock
from featurestore.config import Settings
from featurestore.definitions.compiled import CompiledSource, CompiledView
from featurestore.offline.lake import Lake
from featurestore.online.store import OnlineStore
from featurestore.registry.catalog import Catalog
from streams.deadletters import DeadLetters
from streams.patience import Patience
from streams.producing import Outbox
from streams.topics import Topics, shuffle_topic


@dataclass(frozen=True, slots=True)
class Parts:
    """The worker's connections, one of each."""

    settings: Settings
    bootstrap: str
    store: OnlineStore
    lake: Lake
    clock: Clock
    topics: Topics
    outbox: Outbox
    dead: DeadLetters
    patience: Patience
    xp: Any
    """The array module that kernels run on."""


@dataclass(frozen=True, slots=True, eq=False)
class LanePlan:
    """Views that fold the same stream: the events of one source by one entity key."""

    name: str
    source: CompiledSource
    keys: tuple[str, ...]
    aligned: bool
    topic: str
    """What its views read: the source's own topic where aligned, else the shuffle topic."""
    views: tuple[CompiledView, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """All lanes of a revision."""

    revision: int
    lanes: tuple[LanePlan, ...]

    @property
    def content(self) -> tuple[object, ...]:
        """Equal for two revisions that ask for the same work, as where only an alias moved."""
        return tuple(
            (
                lane.name,
                lane.topic,
                lane.source.contract.fingerprint,
                lane.source.max_future_skew,
                tuple((view.id, view.fingerprint) for view in lane.views),
            )
            for lane in self.lanes
        )

    @property
    def sources(self) -> Mapping[str, CompiledSource]:
        """By topic."""
        return {lane.source.topic: lane.source for lane in self.lanes}

    @property
    def shuffles(self) -> Mapping[str, LanePlan]:
        """By shuffle topic."""
        return {lane.topic: lane for lane in self.lanes if not lane.aligned}

    def of_source(self, name: str, *, aligned: bool) -> tuple[LanePlan, ...]:
        return tuple(lane for lane in self.lanes if lane.source.name == name and lane.aligned is aligned)


NO_WORK = Work(0, ())


def work_of(catalog: Catalog, project: str) -> Work:
    """Every published version of every view runs, under its source's current contract."""
    grouped: dict[str, list[CompiledView]] = {}
    for view in catalog.views.values():
        grouped.setdefault(view.lane, []).append(view)
    return Work(catalog.revision, tuple(_lane(views, catalog, project) for views in grouped.values()))


def _lane(views: Sequence[CompiledView], catalog: Catalog, project: str) -> LanePlan:
    first = views[0]
    source = catalog.sources.get(first.source.name, first.source)
    return LanePlan(
        name=first.lane,
        source=source,
        keys=tuple(first.keys),
        aligned=first.aligned,
        topic=source.topic if first.aligned else shuffle_topic(project, first),
        views=tuple(sorted(views, key=lambda view: view.id)),
    )
