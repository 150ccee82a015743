"""A child process: its log, its end, and what is said about it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from featurestore.cli.processes import Child, child_environment, module_command
from featurestore.errors import Unavailable


def _child(tmp_path: Path, code: str) -> Child:
    return Child("part", [sys.executable, "-c", code], os.environ, tmp_path / "part.log")


def test_a_part_that_ends_is_quoted(tmp_path: Path) -> None:
    child = _child(tmp_path, "import sys; print('first'); sys.exit('the last word')")
    with pytest.raises(Unavailable, match=r"ended with exit code 1(.|\n)*the last word") as caught:
        child.wait_until(lambda: False, 30)

    child.kill()
    assert str(tmp_path / "part.log") in caught.value.hint


def test_a_part_that_is_not_ready_in_time_is_quoted(tmp_path: Path) -> None:
    child = _child(tmp_path, "import sys, time; print('still busy', flush=True); time.sleep(60)")
    child.wait_until(lambda: "still busy" in child.text(), 30)
    with pytest.raises(Unavailable, match=r"not ready within 0 s(.|\n)*still busy"):
        child.wait_until(lambda: False, 0.0)

    child.kill()
    assert child.returncode == -9


def test_it_says_only_what_it_said_since_its_own_start(tmp_path: Path) -> None:
    (tmp_path / "part.log").write_text("of an earlier one\n")
    child = _child(tmp_path, "print('mine')")

    assert child.wait(30)
    assert child.text() == "mine\n"
    assert (tmp_path / "part.log").read_text() == "of an earlier one\nmine\n"


def test_a_part_that_ignores_sigterm_notices_the_end_of_its_stdin(tmp_path: Path) -> None:
    code = (
        "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); sys.stdin.read()"
    )
    child = _child(tmp_path, code)
    child.wait_until(lambda: "up" in child.text(), 30)
    child.terminate()

    assert child.wait(30)


def test_a_module_of_ours_is_not_shadowed_by_a_file_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "streams.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(tmp_path)
    command = module_command("streams.commands", "--help")
    child = Child("part", command, child_environment(os.environ), tmp_path / "part.log")

    assert child.wait(30)
    assert child.returncode == 0, child.text()
    assert "publish" in child.text()
