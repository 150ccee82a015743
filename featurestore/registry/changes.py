"""What one revision has that another has not, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from featurestore.registry.revision import Content

_FLAT = {"contracts": "contract", "sources": "source"}
_VERSIONED = {"views": "view", "services": "service"}
_LABELLED = {"aliases": "alias", "splits": "split"}


def changes(old: Content, new: Content) -> tuple[str, ...]:
    """One line for each difference, as `view airport_delay@2 added` or `alias flight_delay@prod 1 -> 2`."""
    lines: list[str] = []
    for section, kind in _FLAT.items():
        lines += _differences(kind, old[section], new[section], values=False)
    for section, kind in _VERSIONED.items():
        lines += _differences(kind, _flat(old[section]), _flat(new[section]), values=False)
    for section, kind in _LABELLED.items():
        lines += _differences(kind, _flat(old[section]), _flat(new[section]), values=True)
    return tuple(lines)


def _flat(section: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name}@{label}": value for name, labels in section.items() for label, value in labels.items()}


def _differences(kind: str, old: Mapping[str, Any], new: Mapping[str, Any], *, values: bool) -> Iterator[str]:
    for name in sorted({*old, *new}):
        if name not in old:
            yield f"{kind} {name} added" + (f": {new[name]}" if values else "")
        elif name not in new:
            yield f"{kind} {name} removed"
        elif old[name] != new[name]:
            yield f"{kind} {name} " + (f"{old[name]} -> {new[name]}" if values else "changed")
