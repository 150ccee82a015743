"""Tables of the documentation that are made from code. `python -m tests.docs.tables` writes them into their pages."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from pydantic.fields import FieldInfo

from featurestore import telemetry
from featurestore.config import Settings, variable
from tests.docs.reading import ROOT

_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤"}
_SUFFIX = {"counter": "_total", "info": "_info"}


def metrics() -> dict[str, tuple[str, str, tuple[str, ...]]]:
    """Exposed name → type, explanation, labels; of our own metrics."""
    ours = [m for m in telemetry.REGISTRY._collector_to_names if getattr(m, "_name", "").startswith("fs_")]
    found = {}
    for metric in ours:
        [family, *_] = metric.collect()
        # Without a child there are no samples to see labels in; an info has no label names, only samples.
        labels = getattr(metric, "_labelnames", ()) or tuple({"le": ""} | family.samples[0].labels)[1:]
        found[family.name + _SUFFIX.get(family.type, "")] = (family.type, family.documentation, labels)
    return found


def metrics_table() -> str:
    rows = [
        f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels) or '–'} | {says} |"
        for name, (kind, says, labels) in sorted(metrics().items())
    ]
    return "\n".join(["| metric | type | labels | counts |", "|---|---|---|---|", *rows])


def settings_table() -> str:
    rows = [_setting(name, field) for name, field in Settings.model_fields.items()]
    return "\n".join(["| variable | default | allowed | means |", "|---|---|---|---|", *rows])


def _setting(name: str, field: FieldInfo) -> str:
    default = "" if field.default in (None, "") else f"`{field.default}`"
    return f"| `{variable(name)}` | {default or '–'} | {_allowed(field)} | {field.description} |"


def _allowed(field: FieldInfo) -> str:
    bounds = [
        f"{sign} {value:,}"
        for rule in field.metadata
        for bound, sign in _BOUNDS.items()
        if (value := getattr(rule, bound, None)) is not None
    ]
    patterns = [f"`{rule.pattern}`" for rule in field.metadata if getattr(rule, "pattern", None)]
    choices = re.findall(r"'(\w+)'", str(field.annotation)) if "Literal" in str(field.annotation) else []
    return ", ".join([*bounds, *patterns, *(f"`{choice}`" for choice in choices)]) or "–"


TABLES: dict[str, tuple[Path, Callable[[], str]]] = {
    "settings": (ROOT / "docs" / "configuration.md", settings_table),
    "metrics": (ROOT / "docs" / "operations.md", metrics_table),
}
"""Name between the markers of a page → the page, and what belongs there."""


def write() -> None:
    for name, (page, table) in TABLES.items():
        begin, end = f"<!-- {name}, from code -->\n", "<!-- end -->"
        before, found, rest = page.read_text().partition(begin)
        if not found or end not in rest:
            raise SystemExit(f"{page} has no place for the table {name}")
        page.write_text("".join((before, begin, table(), "\n", end, rest.partition(end)[2])))


if __name__ == "__main__":
    write()
