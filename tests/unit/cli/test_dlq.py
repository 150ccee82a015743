"""dlq, where nothing answers or what was asked for cannot be, and how bytes are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from featurestore.cli.dlq import SHOWN_BYTES, _content
from tests.parts.process import free_ports
from tests.unit.cli.conftest import Fs


@pytest.fixture
def applied(fs: Fs, project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A published project whose Kafka is not there."""
    [kafka] = free_ports(1)
    monkeypatch.setenv("FS_KAFKA", f"127.0.0.1:{kafka}")
    assert fs("apply").code == 0
    return project


@pytest.mark.parametrize("words", [("list",), ("show",), ("replay", "--all")], ids=lambda words: words[0])
def test_an_unknown_source_is_named_with_near_matches(fs: Fs, applied: Path, words: tuple[str, ...]) -> None:
    ran = fs("dlq", words[0], "order", *(("0", "1") if words[0] == "show" else words[1:]))

    assert 1 == ran.code
    assert "unknown source 'order'; did you mean 'orders'?" in ran.err


def test_a_broker_that_is_away_is_said(fs: Fs, applied: Path) -> None:
    ran = fs("dlq", "list", "orders")

    assert 1 == ran.code
    assert "does not answer" in ran.err
    assert "" == ran.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "which letters?"),
        (("--all", "--reason", "empty"), "--all excludes the other choices"),
        (("--offset", "5"), "--offset needs --partition"),
        (("--all", "--offset", "5"), "--offset needs --partition"),
    ],
)
def test_a_replay_says_which_letters(fs: Fs, applied: Path, words: tuple[str, ...], said: str) -> None:
    ran = fs("dlq", "replay", "orders", *words)

    assert 2 == ran.code
    assert said in ran.err


def test_letters_are_those_of_a_partition_and_an_offset(fs: Fs, applied: Path) -> None:
    assert 2 == fs("dlq", "show", "orders", "-1", "0").code
    assert 2 == fs("dlq", "list", "orders", "--limit", "1001").code


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (None, None),
        (b"", {"bytes": 0, "text": "", "truncated": False}),
        ("é\n{".encode(), {"bytes": 4, "text": "é\n{", "truncated": False}),
        ("\ufffd".encode(), {"bytes": 3, "text": "\ufffd", "truncated": False}),
        (b"\xff{", {"bytes": 2, "hex": "ff 7b", "truncated": False}),
        (b"\x1b[2J", {"bytes": 4, "hex": "1b 5b 32 4a", "truncated": False}),
        (b"a" * 9000, {"bytes": 9000, "text": "a" * SHOWN_BYTES, "truncated": True}),
        (b"a" + "é".encode() * 4000, {"bytes": 8001, "text": "a" + "é" * (SHOWN_BYTES // 2 - 1), "truncated": True}),
        (b"\x00" * 9000, {"bytes": 9000, "hex": " ".join(["00"] * SHOWN_BYTES), "truncated": True}),
    ],
)
def test_bytes_are_text_where_that_can_be_printed_and_never_too_many(data: bytes | None, shown: Any) -> None:
    assert shown == _content(data)
