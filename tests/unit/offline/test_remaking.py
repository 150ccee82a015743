"""A training set is what its manifest says, and can be made again from it, byte by byte."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.clock import MINUTE
from featurestore.errors import Corrupt, InvalidRequest, NotFound, UsageError
from featurestore.offline.asking import ask
from featurestore.offline.lake import Lake
from featurestore.offline.manifest import read_manifest
from featurestore.offline.query import SQL, query
from featurestore.offline.remaking import remake, verify
from tests.unit.offline.flights import EVENTS, catalog, spine, stored
from tests.unit.offline.tables import START
from tests.unit.offline.test_export import ROWS, read, run, tree

MEMORY = 1 << 30


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return stored(Lake(str(tmp_path / "lake")))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    pq.write_table(spine(*ROWS), tmp_path / "spine.parquet")
    return tmp_path / "spine.parquet"


def again(lake: Lake, made: Path, out: Path, **options: Any) -> None:
    remake(read_manifest(made), out, lake=lake, catalog_at=lambda _: catalog(), **options)


def later(lake: Lake) -> Lake:
    return stored(lake, [EVENTS[0] | {"departed_at": START + MINUTE, "delay": 500.0}], first=len(EVENTS))


class TestRemaking:
    def test_the_bytes_are_those_of_then_though_the_lake_has_more(self, lake: Lake, tmp_path: Path, file: Path) -> None:
        run(lake, tmp_path / "then", file, status=True, as_of=True, as_served=True)
        later(lake)
        again(lake, tmp_path / "then", tmp_path / "now")
        assert tree(tmp_path / "now") == tree(tmp_path / "then")
        run(lake, tmp_path / "new", file, status=True, as_of=True, as_served=True)
        assert tree(tmp_path / "new") != tree(tmp_path / "then")

    def test_a_list_of_features_is_made_again_too(self, lake: Lake, tmp_path: Path) -> None:
        listed = ["gate_use@2.departures", "airport_delay.delay_max"]
        manifest = run(lake, tmp_path / "then", service=listed)
        assert manifest.columns == ("gate_use.departures", "airport_delay.delay_max")
        assert manifest.features == ("gate_use@2.departures", "airport_delay@1.delay_max")
        again(lake, tmp_path / "then", tmp_path / "now", spine=spine(*ROWS))
        assert tree(tmp_path / "now") == tree(tmp_path / "then")

    def test_another_spine_is_refused(self, lake: Lake, tmp_path: Path, file: Path) -> None:
        run(lake, tmp_path / "then", file)
        with pytest.raises(UsageError, match="the spine is not the one of the manifest") as failure:
            again(lake, tmp_path / "then", tmp_path / "now", spine=spine(*ROWS[:2]))
        assert failure.value.field == "spine"
        assert not (tmp_path / "now").exists()

    def test_a_spine_that_was_no_file_must_be_given(self, lake: Lake, tmp_path: Path) -> None:
        run(lake, tmp_path / "then")
        with pytest.raises(UsageError, match="names no file of the spine"):
            again(lake, tmp_path / "then", tmp_path / "now")
        again(lake, tmp_path / "then", tmp_path / "now", spine=spine(*ROWS))
        assert tree(tmp_path / "now") == tree(tmp_path / "then")

    def test_definitions_that_are_others_are_refused(self, lake: Lake, tmp_path: Path, file: Path) -> None:
        run(lake, tmp_path / "then", file)
        path = tmp_path / "then" / "manifest.json"
        told = json.loads(path.read_text())
        told["views"]["airport_delay@1"] = "0" * 64
        path.write_text(json.dumps(told))
        with pytest.raises(UsageError, match="has other definitions"):
            again(lake, tmp_path / "then", tmp_path / "now")

    def test_bytes_that_are_others_are_not_put_in_place(self, lake: Lake, tmp_path: Path, file: Path) -> None:
        run(lake, tmp_path / "then", file)
        path = tmp_path / "then" / "manifest.json"
        path.write_text(path.read_text().replace(read_manifest(tmp_path / "then").files[0].sha256, "f" * 64))
        with pytest.raises(Corrupt, match=r"has other bytes now: part-00000\.parquet"):
            again(lake, tmp_path / "then", tmp_path / "now")
        assert not (tmp_path / "now").exists()


class TestVerifying:
    @pytest.fixture
    def made(self, lake: Lake, tmp_path: Path) -> Path:
        run(lake, tmp_path / "out")
        return tmp_path / "out"

    def test_an_export_is_what_its_manifest_says(self, made: Path) -> None:
        found = verify(made)
        assert found.manifest.rows == len(ROWS)
        assert found.bytes == (made / "part-00000.parquet").stat().st_size

    def test_a_flipped_bit_is_found(self, made: Path) -> None:
        path = made / "part-00000.parquet"
        data = bytearray(path.read_bytes())
        data[60] ^= 1
        path.write_bytes(data)
        with pytest.raises(Corrupt, match=r"part-00000\.parquet is not the file that was written") as failure:
            verify(made)
        assert "--from-manifest" in failure.value.hint

    def test_a_missing_file_is_named(self, made: Path) -> None:
        (made / "part-00000.parquet").unlink()
        with pytest.raises(Corrupt, match=r"part-00000\.parquet is missing"):
            verify(made)

    def test_counts_that_do_not_agree_are_named(self, made: Path) -> None:
        path = made / "manifest.json"
        path.write_text(path.read_text().replace('"rows": 6', '"rows": 7', 1))
        with pytest.raises(Corrupt, match="have not the 7 rows"):
            verify(made)

    def test_a_file_that_no_export_wrote_is_named(self, made: Path) -> None:
        (made / "part-00001.parquet").write_bytes((made / "part-00000.parquet").read_bytes())
        with pytest.raises(Corrupt, match=r"part-00001\.parquet is no part of the export"):
            verify(made)

    def test_what_is_no_export_says_so(self, tmp_path: Path) -> None:
        with pytest.raises(Corrupt, match="is no manifest"):
            verify(tmp_path)


class TestAsking:
    def test_names_that_are_not_there(self) -> None:
        with pytest.raises(NotFound, match="did you mean"):
            ask(["airport_delay.delay_maxx"], catalog())
        with pytest.raises(NotFound, match="airport_dela"):
            ask(["airport_dela.delay_max"], catalog())
        with pytest.raises(InvalidRequest, match="is no feature"):
            ask(["airport_delay"], catalog())
        with pytest.raises(UsageError, match="is there twice"):
            ask(["gate_use.departures", "gate_use@2.departures"], catalog())
        with pytest.raises(UsageError, match="is empty"):
            ask([], catalog())

    def test_what_a_value_stands_on_is_beside_it(self, lake: Lake, tmp_path: Path) -> None:
        run(lake, tmp_path / "out", service=["airport_delay.last_time", "airport_delay.departures_1h"], as_of=True)
        got = read(tmp_path / "out")
        assert got.column_names[4:] == [
            "airport_delay.last_time", "airport_delay.last_time__as_of",
            "airport_delay.departures_1h", "airport_delay.departures_1h__as_of",
        ]  # fmt: skip
        assert got["airport_delay.last_time__as_of"].equals(got["airport_delay.last_time"])
        assert got["airport_delay.departures_1h__as_of"].null_count == 3


class TestSql:
    def test_a_spine_by_sql_over_the_lake(self, lake: Lake, tmp_path: Path) -> None:
        text = "select origin, gate, departed_at as event_time from events.departures where delay > 5 order by delay"
        found = query(lake, text, memory=MEMORY)
        manifest = run(lake, tmp_path / "then", found, spine_name=SQL + text)
        assert read(tmp_path / "then")["origin"].to_pylist() == ["JFK", "JFK", None]
        assert manifest.spine == f"sql:{text}"
        later(lake)
        assert query(lake, text, memory=MEMORY).num_rows == found.num_rows + 1
        again(lake, tmp_path / "then", tmp_path / "now")
        assert tree(tmp_path / "now") == tree(tmp_path / "then")

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("select * from events.arrivals", "arrivals"),
            ("select 1; select 2", "not one statement"),
            ("", "not one statement"),
            ("selec 1", "syntax error"),
            ("drop view events.departures", "no SELECT"),
            ("copy (select 1) to '/tmp/x.csv'", "no SELECT"),
            ("select * from read_csv('/etc/passwd')", "(?i)disabled|permission"),
            ("select * from '/etc/passwd.parquet'", "(?i)disabled|permission|does not exist"),
            ("select * from pa", "does not exist"),
        ],
    )
    def test_what_it_must_not_do_or_is_not(self, lake: Lake, text: str, said: str) -> None:
        with pytest.raises(InvalidRequest, match=said) as failure:
            query(lake, text, memory=MEMORY)
        assert failure.value.field == "spine_sql"

    def test_the_types_are_those_that_a_spine_has(self, lake: Lake) -> None:
        found = query(lake, "select origin, gate, event_time from events.departures", memory=MEMORY)
        assert found.schema.field("event_time").type == pa.timestamp("us", "UTC")
        assert found.num_rows == len(EVENTS)
