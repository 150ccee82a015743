"""The command line, run in this process, in a directory of its own."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from featurestore.cli.main import main


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


Fs = Callable[..., Ran]


@pytest.fixture
def fs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Fs]:
    """Runs a verb in an empty directory, with no FS_* but those that the test sets."""
    for name in [name for name in os.environ if name.startswith("FS_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def run(*arguments: str) -> Ran:
        capsys.readouterr()
        code = main(arguments)
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    yield run
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def project(fs: Fs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `init` makes, as the working directory."""
    assert fs("init", "shop").code == 0
    monkeypatch.chdir(tmp_path / "shop")
    return tmp_path / "shop"


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
