"""Training sets: the spine's rows with the right values beside them, written whole or not at all."""

import hashlib
import json
import math
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.clock import HOUR, MINUTE, parse_instant
from featurestore.errors import Corrupt, FeatureStoreError, InvalidRequest, NotFound, UsageError
from featurestore.offline import making
from featurestore.offline.asking import key_columns
from featurestore.offline.export import build, export, service_views
from featurestore.offline.lake import Lake, app_id
from featurestore.offline.manifest import Kind, Manifest, read_manifest
from featurestore.offline.spine import read_spine
from featurestore.offline.visibility import Known
from streams.visibility import Seen, seen_rows
from tests.unit.offline.flights import EVENTS, catalog, spine, stored
from tests.unit.offline.tables import START, rows

NOW = parse_instant("2026-03-01T12:00:00Z")
ROWS = (
    ("JFK", 7, START + 2 * HOUR),
    ("JFK", 8, START + 30 * MINUTE),
    ("LGA", 7, START + 20 * MINUTE - 1),
    (None, 7, START + 3 * HOUR),
    ("JFK", 7, START + 2 * HOUR),
    ("EWR", None, START + 3 * HOUR),
)
EXPECTED: dict[str, list[Any]] = {
    "airport_delay.departures_1h": [1, 2, 0, 0, 1, 0],
    "airport_delay.delay_mean_1h": [30.0, 10.0, None, None, 30.0, None],
    "airport_delay.delay_max": [30.0, 10.0, -1.0, -1.0, 30.0, -1.0],
    "airport_delay.last_gates": [[7, 8], [8, 7], [], [], [7, 8], []],
    "airport_delay.last_time": [
        datetime(2024, 1, 1, 2, tzinfo=UTC),
        datetime(2024, 1, 1, 0, 10, tzinfo=UTC),
        None,
        None,
        datetime(2024, 1, 1, 2, tzinfo=UTC),
        None,
    ],
    "airport_delay.share": [1.0, 1.0, None, None, 1.0, None],
    "gate_use.departures": [2, 1, 0, 0, 2, 0],
}


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return stored(Lake(str(tmp_path / "lake")))


def run(lake: Lake, out: Path, given: Any = None, **options: Any) -> Manifest:
    asked = spine(*ROWS) if given is None else given
    return export(options.pop("service", "flight_delay"), asked, out, lake=lake, catalog=catalog(), now=NOW, **options)


def read(out: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(out / file.name) for file in read_manifest(out).files])


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_each_row_of_the_spine_has_the_values_of_its_instant(lake: Lake, tmp_path: Path) -> None:
    run(lake, tmp_path / "out")
    got = read(tmp_path / "out")
    given = spine(*ROWS)
    assert got.select(given.column_names).equals(given)
    assert got.column_names == [*given.column_names, *EXPECTED]
    assert {name: got[name].to_pylist() for name in EXPECTED} == EXPECTED


def test_nulls_are_nulls_and_never_nan(lake: Lake, tmp_path: Path) -> None:
    run(lake, tmp_path / "out")
    means = read(tmp_path / "out")["airport_delay.delay_mean_1h"]
    assert means.null_count == 3
    assert not any(math.isnan(value) for value in means.drop_null().to_pylist())


def test_types_are_those_of_the_features(lake: Lake, tmp_path: Path) -> None:
    run(lake, tmp_path / "out", status=True)
    types = {field.name: field.type for field in read(tmp_path / "out").schema}
    assert types["airport_delay.departures_1h"] == pa.int64()
    assert types["airport_delay.last_gates"] == pa.list_(pa.int64())
    assert types["airport_delay.last_time"] == pa.timestamp("us", "UTC")
    assert types["airport_delay.share__status"] == pa.string()


def test_statuses_are_beside_the_values_when_asked_for(lake: Lake, tmp_path: Path) -> None:
    run(lake, tmp_path / "out", status=True)
    got = read(tmp_path / "out")
    assert got.column_names[4:6] == ["airport_delay.departures_1h", "airport_delay.departures_1h__status"]
    seen = ["ok", "ok", "not_found", "not_found", "ok", "not_found"]
    assert got["airport_delay.departures_1h__status"].to_pylist() == seen


def test_the_manifest_says_what_was_made_from_what(lake: Lake, tmp_path: Path) -> None:
    manifest = run(lake, tmp_path / "out")
    assert read_manifest(tmp_path / "out") == manifest
    published = catalog()
    (file,) = manifest.files
    assert file.rows == manifest.rows == len(ROWS)
    assert file.sha256 == hashlib.sha256((tmp_path / "out" / file.name).read_bytes()).hexdigest()
    assert manifest.kind == "exact"
    assert (manifest.service, manifest.version, manifest.registry_revision) == ("flight_delay", 1, 3)
    assert manifest.columns == tuple(EXPECTED)
    assert manifest.views == {f"{name}@{v}": view.fingerprint for (name, v), view in published.views.items()}
    assert manifest.service_fingerprint == published.services["flight_delay"][1].fingerprint
    assert manifest.lake_versions == {"events/departures": lake.version("events/departures")}
    assert manifest.created_at == "2026-03-01T12:00:00Z"
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["format"] == "featurestore-export/1"


def test_the_same_inputs_give_the_same_bytes(lake: Lake, tmp_path: Path) -> None:
    run(lake, tmp_path / "one")
    run(Lake(lake.url), tmp_path / "two")
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_how_the_events_were_appended_does_not_matter(lake: Lake, tmp_path: Path) -> None:
    piecemeal = Lake(str(tmp_path / "piecemeal"))
    for offset, event in enumerate(EVENTS):
        stored(piecemeal, [event], first=offset)
    run(lake, tmp_path / "one")
    run(piecemeal, tmp_path / "two")
    assert (tmp_path / "one" / "part-00000.parquet").read_bytes() == (
        tmp_path / "two" / "part-00000.parquet"
    ).read_bytes()


def test_how_the_spine_was_chunked_does_not_matter(lake: Lake, tmp_path: Path) -> None:
    whole = spine(*ROWS)
    pieces = pa.concat_tables([whole.slice(0, 2), whole.slice(2, 3), whole.slice(5)])
    assert run(lake, tmp_path / "one", whole) == run(lake, tmp_path / "two", pieces)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_long_spines_are_cut_into_files_in_row_order(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(lake, tmp_path / "whole")
    monkeypatch.setattr(making, "MAX_ROWS", 4)
    manifest = run(lake, tmp_path / "cut")
    assert [(file.name, file.rows) for file in manifest.files] == [("part-00000.parquet", 4), ("part-00001.parquet", 2)]
    assert read(tmp_path / "cut").equals(read(tmp_path / "whole"))


def test_an_empty_spine_gives_no_rows_and_the_right_columns(lake: Lake, tmp_path: Path) -> None:
    manifest = run(lake, tmp_path / "out", spine())
    assert (manifest.rows, len(manifest.files)) == (0, 1)
    run(lake, tmp_path / "full")
    assert read(tmp_path / "out").schema == read(tmp_path / "full").schema


def test_late_events_count_however_late_they_arrived(lake: Lake, tmp_path: Path) -> None:
    run(lake, tmp_path / "before")
    stored(lake, [EVENTS[0] | {"departed_at": START + 90 * MINUTE, "delay": 50.0}], first=len(EVENTS))
    run(lake, tmp_path / "after")
    assert read(tmp_path / "before")["airport_delay.departures_1h"].to_pylist()[0] == 1
    assert read(tmp_path / "after")["airport_delay.departures_1h"].to_pylist()[0] == 2


def test_a_service_can_be_named_by_version_and_alias(lake: Lake, tmp_path: Path) -> None:
    for name in ("gates", "gates@prod", "gates@1"):
        manifest = run(lake, tmp_path / name, service=name)
        assert manifest.columns == ("gate_use.departures", "gate_use.last_delay")
    with pytest.raises(NotFound, match="did you mean 'gates'"):
        run(lake, tmp_path / "none", service="gate")


def test_build_gives_the_same_in_memory(lake: Lake, tmp_path: Path) -> None:
    run(lake, tmp_path / "out")
    service, _ = catalog().resolve("flight_delay")
    views = service_views(service, catalog())
    made = build(lake, views, service, read_spine(spine(*ROWS), key_columns(views)))
    assert made.equals(read(tmp_path / "out"))


def test_plain_duckdb_and_polars_read_an_export(lake: Lake, tmp_path: Path) -> None:
    run(lake, tmp_path / "out")
    with duckdb.connect() as connection:
        files = connection.read_parquet(f"{tmp_path}/out/*.parquet")
        assert files.aggregate('sum("airport_delay.departures_1h")').fetchall() == [(4,)]
    assert pl.read_parquet(tmp_path / "out" / "part-00000.parquet")["gate_use.departures"].to_list() == [
        2,
        1,
        0,
        0,
        2,
        0,
    ]


def test_as_served_counts_what_could_be_read_by_then(lake: Lake, tmp_path: Path) -> None:
    """JFK's second departure and its third became readable two hours after they happened."""
    late = START + 4 * HOUR
    instants = [(0, START + 1), (2, START + 20 * MINUTE), (4, late)]
    seen = [Seen(0, n, 1, ((0, -1, up_to),), at) for n, (up_to, at) in enumerate(instants)]
    for view in ("airport_delay@1", "gate_use@2"):
        lake.append(f"visible/{view}", seen_rows(seen), {app_id(view, 0): 2})
    asked = spine(("JFK", 7, START + 2 * HOUR), ("JFK", 7, late - 1), ("JFK", 7, late), ("LGA", 7, START + 20 * MINUTE))
    manifest = run(lake, tmp_path / "served", asked, as_served=True)
    run(lake, tmp_path / "exact", asked)

    served, exact = read(tmp_path / "served"), read(tmp_path / "exact")
    assert served["airport_delay.delay_max"].to_pylist() == [10.0, 10.0, 30.0, 4.0]
    assert exact["airport_delay.delay_max"].to_pylist() == [30.0, 30.0, 30.0, 4.0]
    assert served["gate_use.departures"].to_pylist() == [1, 1, 2, 1]
    assert exact["gate_use.departures"].to_pylist() == [2, 2, 2, 1]
    assert read_manifest(tmp_path / "served") == manifest
    assert manifest.kind is Kind.AS_SERVED
    assert manifest.visibility == {"airport_delay@1": Known(recorded=4), "gate_use@2": Known(recorded=3)}
    assert manifest.lake_versions["visible/gate_use@2"] == lake.version("visible/gate_use@2")


def test_as_served_without_a_record_goes_by_when_intake_took_the_events(lake: Lake, tmp_path: Path) -> None:
    stored(lake, [EVENTS[0] | {"departed_at": START - HOUR, "delay": 77.0}], first=len(EVENTS))
    manifest = run(lake, tmp_path / "out", spine(("JFK", 7, START - 1), ("JFK", 7, START)), as_served=True)
    assert read(tmp_path / "out")["airport_delay.delay_max"].to_pylist() == [-1.0, 77.0]
    assert manifest.visibility is not None
    assert manifest.visibility["gate_use@2"].recorded == 0
    assert manifest.visibility["gate_use@2"].from_intake > 0


def test_a_late_event_that_no_online_window_took_is_in_no_as_served_window(lake: Lake, tmp_path: Path) -> None:
    """It came when the entity was hours ahead: it changes the past that `exact` tells, and nothing that was served."""
    stored(lake, [EVENTS[0] | {"departed_at": START + 5 * MINUTE, "delay": 90.0}], first=len(EVENTS))
    came = START + 6 * HOUR
    seen = [Seen(0, 0, 1, ((0, -1, 4),), START + 2 * HOUR), Seen(0, 1, 1, ((0, 4, 5),), came)]
    for view in ("airport_delay@1", "gate_use@2"):
        lake.append(f"visible/{view}", seen_rows(seen), {app_id(view, 0): 1})
    asked = spine(("JFK", 7, START + 30 * MINUTE), ("JFK", 7, START + 2 * HOUR), ("JFK", 7, came))
    run(lake, tmp_path / "served", asked, as_served=True)
    run(lake, tmp_path / "exact", asked)

    served, exact = read(tmp_path / "served"), read(tmp_path / "exact")
    assert served["airport_delay.departures_1h"].to_pylist() == [0, 1, 0]
    assert exact["airport_delay.departures_1h"].to_pylist() == [3, 1, 0]
    assert served["airport_delay.delay_max"].to_pylist() == [-1.0, 30.0, 90.0]
    assert exact["airport_delay.delay_max"].to_pylist() == [90.0, 90.0, 90.0]


class TestRefusals:
    def test_without_any_event_nothing_is_made_up(self, tmp_path: Path) -> None:
        lake = Lake(str(tmp_path / "lake"))
        with pytest.raises(UsageError, match="no events of source 'departures' in the lake") as failure:
            run(lake, tmp_path / "out")
        assert "flights.departures" in failure.value.hint
        lake.append("events/departures", rows(0, -1), {app_id("departures", 0): 5})
        with pytest.raises(UsageError, match="no events of source 'departures' in the lake"):
            run(lake, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_a_missing_key_column_is_named(self, lake: Lake, tmp_path: Path) -> None:
        with pytest.raises(InvalidRequest, match="there is no column 'gate'"):
            run(lake, tmp_path / "out", spine(*ROWS).drop_columns(["gate"]))

    def test_a_column_with_the_name_of_a_feature_is_refused(self, lake: Lake, tmp_path: Path) -> None:
        clash = spine(*ROWS).append_column("gate_use.departures", pa.array([0] * len(ROWS)))
        with pytest.raises(InvalidRequest, match=r"'gate_use\.departures' has the name of a feature column"):
            run(lake, tmp_path / "out", clash)
        clash = spine(*ROWS).append_column("gate_use.departures__status", pa.array([0] * len(ROWS)))
        run(lake, tmp_path / "out", clash)
        with pytest.raises(InvalidRequest, match=r"'gate_use\.departures__status'"):
            run(lake, tmp_path / "out", clash, status=True)


class TestOutput:
    def test_an_earlier_export_is_replaced(self, lake: Lake, tmp_path: Path) -> None:
        run(lake, tmp_path / "out", spine(*ROWS, *ROWS))
        assert run(lake, tmp_path / "out").rows == len(ROWS)
        assert read(tmp_path / "out").num_rows == len(ROWS)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["lake", "out"]

    def test_an_empty_directory_may_be_there(self, lake: Lake, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        run(lake, tmp_path / "out")
        assert read(tmp_path / "out").num_rows == len(ROWS)

    def test_missing_parents_are_made(self, lake: Lake, tmp_path: Path) -> None:
        run(lake, tmp_path / "a" / "b c" / "out")
        assert read(tmp_path / "a" / "b c" / "out").num_rows == len(ROWS)

    @pytest.mark.parametrize("content", ["thesis.txt", "manifest.json"])
    def test_anything_else_is_left_alone(self, lake: Lake, tmp_path: Path, content: str) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / content).write_text('{"format": "npm"}')
        with pytest.raises(UsageError, match="holds something that is no export"):
            run(lake, tmp_path / "out")
        assert tree(tmp_path / "out") == {content: b'{"format": "npm"}'}

    def test_a_file_is_left_alone(self, lake: Lake, tmp_path: Path) -> None:
        (tmp_path / "out").write_text("mine")
        with pytest.raises(UsageError, match="is a file"):
            run(lake, tmp_path / "out")
        assert (tmp_path / "out").read_text() == "mine"

    def test_a_failure_leaves_the_earlier_export_and_nothing_else(self, lake: Lake, tmp_path: Path) -> None:
        run(lake, tmp_path / "out")
        before = tree(tmp_path / "out")
        with pytest.raises(InvalidRequest):
            run(lake, tmp_path / "out", spine(*ROWS).drop_columns(["gate"]))
        assert tree(tmp_path / "out") == before
        assert sorted(p.name for p in tmp_path.iterdir()) == ["lake", "out"]

    def test_a_place_that_cannot_be_written_is_said(self, lake: Lake) -> None:
        with pytest.raises(FeatureStoreError, match="cannot write /proc/nothing/out"):
            run(lake, Path("/proc/nothing/out"))

    def test_a_killed_export_leaves_a_whole_export_behind(self, lake: Lake, tmp_path: Path) -> None:
        out = tmp_path / "out"
        run(lake, out)
        command = [sys.executable, "-c", LOOP, lake.url, str(out)]
        for pause in (0.0, 0.03, 0.11):
            writer = subprocess.Popen(command, stdout=subprocess.PIPE)
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"exported\n"
            time.sleep(pause)
            writer.send_signal(signal.SIGKILL)
            writer.wait(30)
            writer.stdout.close()
            survivors = [out, *tmp_path.glob(".out.*.old"), *tmp_path.glob(".out.*.draft")]
            whole = [path for path in survivors if (path / "manifest.json").exists()]
            assert whole, "no export survived"
            assert read(whole[0]).num_rows in (len(ROWS), 5000)
            run(lake, out)

    def test_a_manifest_of_another_format_is_corrupt(self, tmp_path: Path) -> None:
        for text in ("{", "[]", '{"format": "featurestore-export/1"}', "{}"):
            (tmp_path / "manifest.json").write_text(text)
            with pytest.raises(Corrupt, match="is no manifest of an export"):
                read_manifest(tmp_path)


LOOP = """
import sys
from pathlib import Path
from featurestore.offline.lake import Lake
from tests.unit.offline.flights import spine
from tests.unit.offline.tables import START
from tests.unit.offline.test_export import run
rows = spine(*[("JFK", 7, START + n) for n in range(5000)])
while True:
    run(Lake(sys.argv[1]), Path(sys.argv[2]), rows)
    print("exported", flush=True)
"""
