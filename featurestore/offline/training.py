"""`featurestore.export`: training sets from a notebook or a program, with the settings that the command line has."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.clock import SystemClock
from featurestore.config import load_settings
from featurestore.definitions.model import FeatureService
from featurestore.offline.asking import ask
from featurestore.offline.frame import Frame
from featurestore.offline.lake import Lake
from featurestore.offline.making import Means, Options, make
from featurestore.offline.manifest import Manifest, read_manifest
from featurestore.offline.query import SQL, query
from featurestore.offline.sizing import DEFAULT_MEMORY
from featurestore.registry.log import Registry


class TrainingSet(Frame):
    """An export, in its directory. Its rows are read when they are asked for."""

    def __init__(self, path: Path | str) -> None:
        """Raises Corrupt where the directory is no export."""
        self.path = Path(path)
        self.manifest: Manifest = read_manifest(self.path)
        self._title = f"{self.manifest.service}, {self.manifest.kind.value}, in {self.path}"

    def __len__(self) -> int:
        return self.manifest.rows

    def to_arrow(self) -> pa.Table:
        return pa.concat_tables(
            pq.read_table(self.path / file.name, page_checksum_verification=True) for file in self.manifest.files
        )


def export(  # noqa: PLR0913 - the words of the verb
    features: str | Sequence[str] | FeatureService,
    spine: Any,
    out: Path | str,
    *,
    lake: str = "",
    time_column: str = "event_time",
    status: bool = False,
    as_of: bool = False,
    as_served: bool = False,
    memory: int = DEFAULT_MEMORY,
    threads: int = 0,
    executor: str | Executor | None = None,
) -> TrainingSet:
    """Makes a training set in the directory `out`, as `fs export` does, and returns it.

    `features`: a service, `"flight_delay@prod"` or the object, whose published form is meant; or a list,
    `["airport_delay.delay_mean_1h", …]`. `spine`: a table of pandas, Polars or Arrow, the path of a Parquet or CSV
    file, or `"sql:select …"` over the lake's tables. `lake`: without it, FS_LAKE. `memory` in bytes. The other words
    mean what they mean on the command line. Where more than one process is used, a script needs the usual
    `if __name__ == "__main__":`. Raises UsageError, and Unavailable where the lake does not answer.
    """
    place = lake or load_settings().lake
    asked = ask(features.name if isinstance(features, FeatureService) else features, Registry(place).head())
    store, name = Lake(place), ""
    if isinstance(spine, str) and spine.startswith(SQL):
        name = spine
        spine = query(store, spine.removeprefix(SQL), memory=memory // 2)
    options = Options(time_column, status, as_of, as_served, name)
    means = Means(memory, threads, executor)
    make(asked, spine, out, lake=store, now=SystemClock().now(), options=options, means=means)
    return TrainingSet(out)
