"""Training sets: for each row of a spine, the values the online store has at that row's instant."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pyarrow as pa

from featurestore.definitions.compiled import CompiledService, CompiledView
from featurestore.offline.asking import Asked, ask
from featurestore.offline.lake import Lake
from featurestore.offline.making import Means, Options, Progress, in_memory, make
from featurestore.offline.manifest import Manifest
from featurestore.offline.sizing import DEFAULT_MEMORY
from featurestore.offline.spine import Spine
from featurestore.registry.catalog import Catalog


def export(  # noqa: PLR0913 - the words of the verb
    features: str | Sequence[str],
    spine: Any,
    out: Path | str,
    *,
    lake: Lake,
    catalog: Catalog,
    now: int,
    time_column: str = "event_time",
    status: bool = False,
    as_of: bool = False,
    as_served: bool = False,
    memory: int = DEFAULT_MEMORY,
    threads: int = 0,
    executor: str | Executor | None = None,
    progress: Progress | None = None,
    spine_name: str = "",
) -> Manifest:
    """Write `out/part-*.parquet` and `out/manifest.json`: the spine's rows, in order, with a column for each feature.

    `features` as `asking.ask` takes them, `spine` as `read_spine` does. `status` and `as_of` add columns beside each
    feature; `as_served` counts only events that could be read online by the row's instant. `memory` (bytes) bounds all
    local processes together, of which there are at most `threads` (0: one for each processor). `now` (µs) and
    `spine_name` are written into the manifest only. Raises what `making.make` raises.
    """
    options = Options(time_column, status, as_of, as_served, spine_name)
    means = Means(memory, threads, executor, *([progress] if progress else []))
    return make(ask(features, catalog), spine, out, lake=lake, now=now, options=options, means=means)


def build(
    lake: Lake,
    views: Sequence[CompiledView],
    service: CompiledService,
    spine: Spine,
    *,
    status: bool = False,
    as_of: bool = False,
    as_served: bool = False,
) -> pa.Table:
    """The whole training set in memory; `views` are the service's."""
    options = Options(status=status, as_of=as_of, as_served=as_served)
    return in_memory(Asked(service, tuple(views), 0, 0, ()), spine, lake, options)


def service_views(service: CompiledService, catalog: Catalog) -> list[CompiledView]:
    return [catalog.views[key] for key in service.views]
