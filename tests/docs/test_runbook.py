"""docs/operations.md against the code: whatever can be said to the on-call has a section that helps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from featurestore.cli import checks
from featurestore.online import health
from streams.stopping import StopReason
from tests.docs.reading import ROOT, headings, section
from tests.parts.process import free_ports

PAGE = ROOT / "docs" / "operations.md"
RUNBOOK = [title for title in headings(PAGE) if re.match(r"Stopped|Waiting for|Doctor", title)]
PARTS_WAITED_FOR = ("kafka", "redis", "lake", "dlq", "topic")


@pytest.mark.parametrize("title", RUNBOOK)
def test_a_section_says_what_it_means_and_what_to_do(title: str) -> None:
    said = re.findall(r"^\* \*\*(\w+)\.\*\* \S", section(PAGE, title), re.MULTILINE)

    assert ["Meaning", "Impact", "Check", "Fix", "Prevent"] == said


def test_every_reason_to_stop_has_a_section() -> None:
    assert {f"Stopped: {reason}" for reason in StopReason} == {t for t in RUNBOOK if t.startswith("Stopped")}


def test_every_part_that_is_waited_for_has_a_section() -> None:
    assert {f"Waiting for {part}" for part in PARTS_WAITED_FOR} == {t for t in RUNBOOK if t.startswith("Waiting")}


def test_everything_that_doctor_looks_at_has_a_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [port] = free_ports(1)
    for name, value in {"KAFKA": "embedded", "REDIS": "embedded", "LAKE": str(tmp_path), "PORT": str(port)}.items():
        monkeypatch.setenv(f"FS_{name}", value)
    parts = {line.part for line in checks.examine()} - {"python", "redis"}
    redis = {finding.check for finding in health.find({}, round_trip_ms=0.1, address="")}

    assert {f"Doctor: {part}" for part in parts} | {f"Doctor: redis, {check}" for check in redis} == {
        title for title in RUNBOOK if title.startswith("Doctor")
    }
