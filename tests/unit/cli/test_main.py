"""The command itself: what it costs, what it says when something is wrong, and with which exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from featurestore.cli.processes import child_environment
from tests.unit.cli.conftest import Fs

HEAVY = {
    "numpy", "pyarrow", "duckdb", "deltalake", "obstore", "redis", "fastapi", "uvicorn", "pydantic", "structlog",
    "aiokafka", "pandas", "rich",
}  # fmt: skip
VERBS = {
    "init", "demo", "dev", "plan", "apply", "alias", "worker", "serve", "publish", "lookup", "export", "status",
    "doctor", "dlq",
}  # fmt: skip


def test_help_names_every_verb_and_the_exit_codes(fs: Fs) -> None:
    ran = fs("--help")

    assert ran.code == 0
    assert {line.split()[0] for line in ran.out.split("Commands:")[1].splitlines() if line.startswith("  ")} >= VERBS
    assert "3 the plan has changes" in " ".join(ran.out.split())


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, json, featurestore.cli.main as m; c = m.main(['--help']); "
        "json.dump([c, sorted(sys.modules)], sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=child_environment(os.environ)
    )
    exit_code, loaded = json.loads(done.stderr)

    assert exit_code == 0
    assert set() == HEAVY & set(loaded)


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_each_verb_explains_itself(fs: Fs, verb: str) -> None:
    ran = fs(verb, "--help")

    assert ran.code == 0
    assert f"Usage: featurestore {verb}" in ran.out


def test_an_unknown_verb_is_a_usage_error_with_a_near_match(fs: Fs) -> None:
    ran = fs("plna")

    assert ran.code == 2
    assert "Did you mean 'plan'?" in ran.err
    assert ran.out == ""


def test_an_unknown_option_is_a_usage_error(fs: Fs) -> None:
    assert fs("plan", "--nope").code == 2


def test_the_version_is_data(fs: Fs) -> None:
    ran = fs("--version")

    assert ran.code == 0
    assert ran.out.startswith("featurestore ")


def test_a_setting_that_is_wrong_is_named(fs: Fs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FS_PORT", "eighty")
    ran = fs("plan")

    assert ran.code == 2
    assert "FS_PORT" in ran.err


def test_a_setting_that_nobody_knows_is_a_warning(fs: Fs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FS_KAFAK", "localhost:9092")
    ran = fs("status")

    assert "FS_KAFAK" in ran.err
    assert "FS_KAFKA" in ran.err


@pytest.mark.parametrize("name", ["FS_KAFKA", "FS_REDIS"])
@pytest.mark.parametrize("verb", [("worker",), ("status",), ("publish", "orders", "x.jsonl")])
def test_an_embedded_part_outside_dev_is_explained(
    fs: Fs, monkeypatch: pytest.MonkeyPatch, name: str, verb: tuple[str, ...]
) -> None:
    monkeypatch.setenv(name, "embedded")
    ran = fs(*verb)

    assert ran.code == 2
    assert f"{name}=embedded" in ran.err
    assert "featurestore dev" in ran.err


def test_an_unexpected_error_is_one_line_and_its_traceback_is_for_debugging(
    fs: Fs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(url: str) -> None:
        raise ZeroDivisionError("seven")

    monkeypatch.setattr("featurestore.registry.log.Registry", broken)
    plain, debugged = fs("apply", "x.py"), fs("--debug", "apply", "x.py")

    assert plain.code == debugged.code == 1
    assert "ZeroDivisionError: seven" in plain.err
    assert "Traceback" not in plain.err
    assert "Traceback" in debugged.err
