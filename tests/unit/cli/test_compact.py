"""compact: what it says it did."""

from pathlib import Path

import pytest

from featurestore.offline.lake import Lake
from tests.unit.cli.conftest import Fs
from tests.unit.offline.test_compacting import filled, rows_of


@pytest.fixture
def lake(fs: Fs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    monkeypatch.setenv("FS_LAKE", str(tmp_path / "lake"))
    return filled(Lake(str(tmp_path / "lake")))


def test_what_was_merged_is_said(fs: Fs, lake: Lake) -> None:
    before = rows_of(lake)
    planned = fs("compact", "--dry-run", "--output", "json").document
    ran = fs("compact", "events/departures", "--output", "json")

    [table] = ran.document["tables"]
    assert [30, 30] == [planned["tables"][0]["merged"], table["merged"]]
    assert ("events/departures", 30, 2, 300, 0) == (
        table["table"], table["files_before"], table["files_after"], table["rows"], table["swept"],
    )  # fmt: skip
    assert before == rows_of(lake)
    assert "files before" in fs("compact").out


def test_an_unknown_table_and_a_short_retention(fs: Fs, lake: Lake) -> None:
    unknown, short = fs("compact", "events/departure"), fs("compact", "--retention-hours", "1")

    assert (1, True) == (unknown.code, "did you mean 'events/departures'?" in unknown.err)
    assert 2 == short.code


def test_a_lake_without_tables(fs: Fs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FS_LAKE", str(tmp_path / "none"))
    ran = fs("compact")

    assert (0, True) == (ran.code, "no tables yet" in ran.err)
