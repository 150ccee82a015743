"""Faults of bytes at rest: a training set is right, or refused by the name of the file that is not."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from featurestore.clock import MINUTE, SystemClock
from featurestore.errors import FeatureStoreError
from featurestore.offline.export import export
from featurestore.offline.lake import Lake
from tests.chaos.checking import settle
from tests.chaos.load import SHOPS, USERS
from tests.chaos.run import SOURCE, Run
from tests.e2e.streaming import KEYS, ORACLE, VIEWS
from tests.oracle.compare import assert_values
from tests.oracle.meaning import evaluate, magnitude

ROWS = 40
"""Of the training set that is exported again and again."""
FOOTER_BYTES = 4096
"""Half of the flips are in the last bytes of a file: for what stands there Parquet has no checksum."""


async def bits_flipped(run: Run) -> None:
    """One bit of one data file at a time."""
    run.start("a")
    run.feed(12_000)
    await settle(run)
    spine = _spine(run)
    whole = await asyncio.to_thread(_exported, run, spine)
    _check_by_oracle(run, spine, whole)
    files = sorted(Path(path) for path in DeltaTable(f"{run.project.lake}/events/{SOURCE}").file_uris())
    told = {"caught": 0, "harmless": 0}
    for _ in range(run.many(200, 20)):
        file = run.rng.choice(files)
        told[await asyncio.to_thread(_flip_and_export, run, file, spine, whole)] += 1
    run.note("bits flipped", **told)
    assert told["caught"] > 0, "no flip was ever in bytes that matter"


def _spine(run: Run) -> pa.Table:
    last = int(run.expected.events.at.max()) // MINUTE * MINUTE
    instants = [last - run.rng.randrange(110) * MINUTE for _ in range(ROWS)]
    return pa.table(
        {
            "user": [f"u{run.rng.randrange(USERS)}" for _ in range(ROWS)],
            "shop": [f"s{run.rng.randrange(SHOPS)}" for _ in range(ROWS)],
            "event_time": pa.array(instants, pa.timestamp("us", "UTC")),
        }
    )


def _exported(run: Run, spine: pa.Table) -> pa.Table:
    out = run.directory / "export"
    lake = Lake(run.project.lake)
    manifest = export("clicks", spine, out, lake=lake, catalog=run.catalog, now=SystemClock().now())
    return pa.concat_tables([pq.read_table(out / file.name) for file in manifest.files])


def _flip_and_export(run: Run, file: Path, spine: pa.Table, whole: pa.Table) -> str:
    sound = file.read_bytes()
    rotten = bytearray(sound)
    first = max(0, len(rotten) - FOOTER_BYTES) if run.rng.random() < 0.5 else 0
    place, bit = run.rng.randrange(first, len(rotten)), run.rng.randrange(8)
    rotten[place] ^= 1 << bit
    file.write_bytes(rotten)
    try:
        found = _exported(run, spine)
    except FeatureStoreError as error:
        if file.name not in str(error):
            raise AssertionError(f"byte {place} of {file.name} is flipped, and the error names another") from error
        return "caught"
    finally:
        file.write_bytes(sound)
    assert found.equals(whole), f"bit {bit} of byte {place} of {file.name} ({len(rotten)} bytes) changes the export"
    return "harmless"


def _check_by_oracle(run: Run, spine: pa.Table, found: pa.Table) -> None:
    """The export of the sound lake, value by value."""
    events = run.expected.events
    columns = {"user": events.user, "shop": events.shop}
    for view in VIEWS:
        [key] = KEYS[view]
        for number, row in enumerate(spine.to_pylist()):
            mine = events.where(columns[key] == int(row[key][1:])).sent()
            got = found.slice(number, 1).to_pylist()[0]
            _assert_row(view, [record.event for record in mine if record.event is not None], row, got)


def _assert_row(view: str, events: list[dict[str, Any]], row: dict[str, Any], got: dict[str, Any]) -> None:
    assert row.items() <= got.items()
    at = int(row["event_time"].timestamp() * 1e6)
    name = view.partition("@")[0]
    assert_values(
        ORACLE[view],
        evaluate(ORACLE[view], events, at),
        {feature.name: got[f"{name}.{feature.name}"] for feature in ORACLE[view]},
        magnitudes={f.name: magnitude(f, events, at) for f in ORACLE[view] if f.op in ("sum", "mean")},
        label=f"export of {view} {row}",
    )
