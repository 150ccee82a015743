"""The documentation against the package: examples run, and nothing is named that does not exist."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer

from featurestore import Client
from featurestore.cli.main import app
from featurestore.config import Settings, variable
from tests.docs import tables
from tests.docs.reading import PAGES, ROOT, anchors, blocks, links, name_of, prose, spans

WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]
_OURS = ("fs", "featurestore")
_ROOMS = tuple(sorted(p.name for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith(".")))
_SEPARATOR = re.compile(r"\s*(?:&&|\|\||[|;&])\s*")


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_the_python_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    shutil.copytree(ROOT / "schemas", tmp_path / "schemas")
    monkeypatch.chdir(tmp_path)
    if any("FEATURES_URL" in block.text for block in blocks(page, "python")):
        monkeypatch.setenv("FEATURES_URL", request.getfixturevalue("flights").url)
    namespace: dict[str, Any] = {"__name__": "documentation"}
    for block in blocks(page, "python"):
        code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
        exec(code, namespace)  # noqa: S102 — the documentation's own code
    for client in namespace.values():
        if isinstance(client, httpx.Client | Client):
            client.close()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    broken = []
    for target in links(page):
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)

    assert broken == []


def commands(page: Path) -> Iterator[list[str]]:
    """Every simple command of console blocks and code spans that calls us or make, as words."""
    lines = [line for block in blocks(page, "console") for line in block.commands]
    lines += [span for span in spans(page) if span.split()[0] in (*_OURS, "make")]
    for line in lines:
        for part in _SEPARATOR.split(line):
            words = [w for w in shlex.split(part, posix=True) if not re.match(r"[A-Z_]+=", w)]
            if words and words[0] in (*_OURS, "make"):
                yield words


def verbs(group: Any = None, before: str = "") -> dict[str, set[str]]:
    """Verb, as `apply` or `dlq list` → its options."""
    found: dict[str, set[str]] = {}
    inner: dict[str, Any] = getattr(group or typer.main.get_command(app), "commands", {})
    for name, command in inner.items():
        found[before + name] = {"--help", *(option for parameter in command.params for option in parameter.opts)}
        if hasattr(command, "commands"):
            found |= verbs(command, f"{before}{name} ")
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_verb_and_option_exists(page: Path) -> None:
    known = verbs()
    groups = {verb.split()[0] for verb in known if " " in verb}
    unknown = []
    for words in (words for words in commands(page) if words[0] in _OURS):
        given = [word for word in words[1:] if word not in ("--debug", "--version")]
        verb = " ".join(given[:2] if groups & set(given[:1]) else given[:1])
        if given and (verb not in known or {w for w in given if w.startswith("--")} - known[verb]):
            unknown.append(" ".join(words))

    assert unknown == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_make_target_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {words[1] for words in commands(page) if words[0] == "make" and len(words) > 1}

    assert named - targets == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_setting_and_metric_exists(page: Path) -> None:
    text = page.read_text()
    settings = {variable(field) for field in Settings.model_fields}
    suffix = re.compile(r"_(bucket|count|sum)$")

    assert set(re.findall(r"\bFS_[A-Z_]+\b(?!\*)", text)) - settings - {"FS_"} == set()
    assert {suffix.sub("", name) for name in re.findall(r"\bfs_[a-z_]+", text)} - set(tables.metrics()) == set()


def exists(dotted: str) -> bool:
    """Whether a dotted name is a module or something in one."""
    names = dotted.split(".")
    for cut in range(len(names), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(names[:cut]))
        except ModuleNotFoundError:
            continue
        for name in names[cut:]:
            found = getattr(found, name, None)
        return found is not None
    return False


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_module_and_path_exists(page: Path) -> None:
    named = spans(page)
    modules = {m[0] for span in named if (m := re.match(r"(?:featurestore|streams)(?:\.\w+)+", span))}
    paths = {s for s in named if re.fullmatch(rf"(?:{'|'.join(_ROOMS)})/[\w./-]*", s)}

    assert {name for name in modules if not exists(name)} == set()
    assert {path for path in paths if not (ROOT / path).exists()} == set()


@pytest.mark.parametrize("name", sorted(tables.TABLES))
def test_a_generated_table_is_in_step(name: str) -> None:
    page, table = tables.TABLES[name]

    assert table() in page.read_text(), f"run: python -m tests.docs.tables (table {name} of {name_of(page)})"


def test_nothing_of_a_workplace_is_named() -> None:
    assert [name_of(page) for page in PAGES if re.search(r"/work/|/tmp/", prose(page))] == []
