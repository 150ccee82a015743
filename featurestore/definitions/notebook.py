"""How definitions look in a notebook: small tables of HTML, in which every text is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any


def html_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, below: str = "") -> str:
    """A heading, a table, and a line below."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(_shown(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    foot = f"<p>{escape(below)}</p>" if below else ""
    return f"<p><b>{escape(title)}</b></p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{foot}"


def _shown(value: Any) -> str:
    return "" if value is None else str(value)
