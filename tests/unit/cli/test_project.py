"""init: the project runs, and nothing is ever overwritten."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from featurestore.cli.processes import child_environment
from tests.unit.cli.conftest import Fs

EXPECTED = {
    ".env.example", ".gitignore", "README.md", "compose.yaml", "definitions.py", "orders.jsonl",
    "schemas/shop.orders/v1.avsc", "tests/test_features.py",
}  # fmt: skip


def test_it_says_which_files_it_made(fs: Fs, tmp_path: Path) -> None:
    ran = fs("init", "a shop")

    assert ran.code == 0
    assert {f"a shop/{name}" for name in EXPECTED} == set(ran.out.split("\n")[:-1])
    assert {tmp_path / "a shop" / name for name in EXPECTED} == {
        path for path in (tmp_path / "a shop").rglob("*") if path.is_file()
    }
    assert "cd 'a shop'" in ran.err


def test_its_own_tests_pass(project: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=project,
        env=child_environment(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


def test_its_own_tests_can_fail(project: Path) -> None:
    definitions = project / "definitions.py"
    definitions.write_text(definitions.read_text().replace("agg.sum(", "agg.max("))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=project,
        env=child_environment(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert "1 failed" in done.stdout


def test_an_empty_directory_is_filled(fs: Fs, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()

    assert fs("init", "new").code == 0


@pytest.mark.parametrize("name", ["full", "file"])
def test_what_is_there_is_never_touched(fs: Fs, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "definitions.py").write_text("mine")
    ran = fs("init", name)

    assert ran.code == 2
    assert "does not exist yet" in ran.err
    assert (tmp_path / "file").read_text() == "mine"
    assert [tmp_path / "full" / "definitions.py"] == list((tmp_path / "full").iterdir())
    assert (tmp_path / "full" / "definitions.py").read_text() == "mine"


def test_the_settings_it_suggests_are_settings(project: Path) -> None:
    from featurestore.config import Settings, variable  # noqa: PLC0415 — after FS_* were removed

    lines = [line for line in (project / ".env.example").read_text().splitlines() if line and line[0] != "#"]

    assert {line.partition("=")[0] for line in lines} <= {variable(field) for field in Settings.model_fields}
