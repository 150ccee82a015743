import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from featurestore import telemetry
from featurestore.errors import ConfigError


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_every_metric_is_ours_in_base_units_and_explained() -> None:
    text = telemetry.exposition().decode()
    names = re.findall(r"^# HELP (\S+) (\S.*)$", text, re.MULTILINE)
    ours = {name for name, _ in names if name.startswith("fs_") and not name.endswith("_created")}

    assert ours == {
        "fs_access_file_broken",
        "fs_access_refused_total",
        "fs_build_info",
        "fs_connections",
        "fs_consumer_lag_records",
        "fs_dead_letters_total",
        "fs_events_total",
        "fs_fallback_rows_total",
        "fs_lake_append_seconds",
        "fs_last_known_bytes",
        "fs_lookup_duration_seconds",
        "fs_lookup_rows_total",
        "fs_lookups_limit",
        "fs_lookups_running",
        "fs_lookups_shed_total",
        "fs_lookups_total",
        "fs_lookups_waiting",
        "fs_partition_stopped",
        "fs_registry_revision",
        "fs_remembered_bytes",
        "fs_served_dropped_total",
        "fs_served_rows_total",
        "fs_state_entities",
        "fs_store_breaker_opened_total",
        "fs_store_breaker_state",
        "fs_store_duration_seconds",
        "fs_store_hedges_total",
        "fs_store_values_total",
        "fs_visible_delay_seconds",
        "fs_waiting_for",
    }


def test_a_count_shows_with_its_labels() -> None:
    telemetry.EVENTS.labels("departures", "airport_delay@1", "applied").inc(3)

    line = 'fs_events_total{outcome="applied",source="departures",view="airport_delay@1"} 3.0'
    assert line in telemetry.exposition().decode().splitlines()


def test_metrics_are_served_while_the_context_lasts() -> None:
    with telemetry.metrics_served("127.0.0.1", 0) as port:
        answer = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=5)
        assert "fs_build_info{" in answer.text

    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=5)


def test_an_address_that_is_taken_is_refused_by_name() -> None:
    with (
        telemetry.metrics_served("127.0.0.1", 0) as port,
        pytest.raises(ConfigError) as caught,
        telemetry.metrics_served("127.0.0.1", port),
    ):
        pytest.fail("two servers share a port")

    assert f"cannot serve metrics on 127.0.0.1:{port}: Address already in use" == caught.value.message
    assert "FS_METRICS_PORT" == caught.value.field


def test_build_info_tells_version_and_python() -> None:
    python = ".".join(map(str, sys.version_info[:3]))

    assert f'fs_build_info{{python="{python}",version="{telemetry.package_version()}"}} 1.0' in (
        telemetry.exposition().decode()
    )


def test_the_lookup_buckets_resolve_the_latency_target() -> None:
    assert {0.001, 0.005, 0.015, 1.0} <= set(telemetry.LOOKUP_DURATION._upper_bounds)


def test_json_lines_carry_event_facts_level_and_logger(lines: io.StringIO) -> None:
    telemetry.setup_logging("json", stream=lines)

    telemetry.get_logger("streams.intake").info("lane started", topic="flights", partition=3)

    entry = json.loads(lines.getvalue())
    assert entry.pop("timestamp").endswith("Z")
    assert entry == {
        "event": "lane started",
        "topic": "flights",
        "partition": 3,
        "level": "info",
        "logger": "streams.intake",
    }


def test_lines_of_other_libraries_take_the_same_form(lines: io.StringIO) -> None:
    telemetry.setup_logging("json", stream=lines)

    logging.getLogger("aiokafka").warning("node %s is gone", 7, extra={"attempt": 2})

    entry = json.loads(lines.getvalue())
    assert ("node 7 is gone", "aiokafka", "warning", 2) == (
        entry["event"],
        entry["logger"],
        entry["level"],
        entry["attempt"],
    )


def test_an_exception_stays_on_one_line(lines: io.StringIO) -> None:
    telemetry.setup_logging("json", stream=lines)

    try:
        raise ValueError("no such thing")
    except ValueError:
        telemetry.get_logger("x").exception("failed")

    entry = json.loads(lines.getvalue())
    assert "ValueError: no such thing" in entry["exception"]


def test_passwords_of_urls_are_masked(lines: io.StringIO) -> None:
    for mode in ("json", "console"):
        telemetry.setup_logging(mode, stream=lines)
        telemetry.get_logger("x").info("connecting", url="redis://:hunter2@h:1/0")
        logging.getLogger("redis").warning("lost redis://u:hunter2@h:1/0")

    assert "hunter2" not in lines.getvalue()
    assert lines.getvalue().count("***") == 4


def test_the_level_is_kept(lines: io.StringIO) -> None:
    telemetry.setup_logging("json", stream=lines, level=logging.WARNING)

    telemetry.get_logger("x").info("quiet")

    assert lines.getvalue() == ""


def test_console_lines_are_for_people(lines: io.StringIO) -> None:
    telemetry.setup_logging("console", stream=lines)

    telemetry.get_logger("x").warning("slow", seconds=2)

    assert re.search(r"\[warning\s*\] slow\b.*seconds=2", lines.getvalue())


def test_nothing_is_logged_to_stdout() -> None:
    code = (
        "from featurestore.telemetry import get_logger, setup_logging\n"
        "get_logger('x').warning('before')\n"
        "setup_logging('json')\n"
        "get_logger('x').warning('after')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == ""
    assert "before" in done.stderr
    assert "after" in done.stderr
