"""The pages of the documentation, taken apart: fenced blocks, code spans, links and headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))

_FENCED = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (?P<title>.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block; `line` is the number of its first line within the page."""

    page: Path
    language: str
    text: str
    line: int

    @property
    def commands(self) -> list[str]:
        """What follows each prompt of a console block, without comments."""
        lines = [line[2:] for line in self.text.splitlines() if line.startswith("$ ")]
        return [re.sub(r"\s+#.*", "", line) for line in lines]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> list[Block]:
    """Those in one of the languages, or all, in order."""
    text = page.read_text()
    found = [
        Block(page, match["language"], match["text"], text.count("\n", 0, match.start("text")) + 1)
        for match in _FENCED.finditer(text)
    ]
    return [block for block in found if not languages or block.language in languages]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return _FENCED.sub("", page.read_text())


def spans(page: Path) -> list[str]:
    """Code spans of the prose."""
    return _SPAN.findall(prose(page))


def links(page: Path) -> Iterator[str]:
    """Targets within this repository."""
    return (target for target in _LINK.findall(prose(page)) if not re.match(r"[a-z]+:", target))


def headings(page: Path) -> list[str]:
    return [match["title"] for match in _HEADING.finditer(prose(page))]


def anchors(page: Path) -> set[str]:
    """What a link may name after `#`: headings in lower case, without punctuation, with hyphens."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings(page)}


def section(page: Path, title: str) -> str:
    """The text below a heading, up to the next heading."""
    _, _, rest = page.read_text().partition(f" {title}\n")
    return re.split(r"^#+ ", rest, maxsplit=1, flags=re.MULTILINE)[0]
