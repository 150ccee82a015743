"""What decides a view's values, as data: its digest is the view's identity, and comparing two says what changed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from featurestore.definitions.compiled import CompiledAggregate, CompiledDerived, CompiledSource, CompiledView
from featurestore.definitions.expressions import render
from featurestore.definitions.jsontext import dumps
from featurestore.definitions.treedata import from_data, to_data
from featurestore.types import format_duration

MEANING_FORMAT = 1
"""Raised when the same definition comes to mean something else; every fingerprint changes with it."""


def meaning(view: CompiledView) -> dict[str, Any]:
    """Everything that decides a value, normalised: durations in microseconds, features by name.

    Owners, texts, tags, objectives and the order of lines are left out, and so is the source's message key, which
    decides where work is done and not what comes out. Of the fallback policy only what training sets show is in it.
    """
    nulls = {"on_missing": view.on_missing} if view.on_missing == "null" else {}
    return nulls | {
        "format": MEANING_FORMAT,
        "keys": [[column, dtype.value] for column, dtype in view.keys.items()],
        "source": _source(view.source),
        "where": None if view.where is None else to_data(view.where),
        "ttl": view.ttl,
        "features": {a.name: _aggregate(a) for a in view.aggregates} | {d.name: _derived(d) for d in view.derived},
    }


def fingerprint(view: CompiledView) -> str:
    """SHA-256 (hex) of `meaning(view)`."""
    return hashlib.sha256(dumps(meaning(view))).hexdigest()


def _source(source: CompiledSource) -> dict[str, Any]:
    return {
        "topic": source.topic,
        "contract": source.contract.fingerprint,
        "event_time": source.event_time,
        "lateness": source.lateness,
        "max_future_skew": source.max_future_skew,
    }


def _aggregate(aggregate: CompiledAggregate) -> dict[str, Any]:
    return {
        "op": aggregate.op,
        "column": None if aggregate.column is None else to_data(aggregate.column),
        "window": aggregate.window,
        "hop": aggregate.hop,
        "where": None if aggregate.where is None else to_data(aggregate.where),
        "default": aggregate.default,
        "n": aggregate.n,
        "dtype": aggregate.dtype.value,
    }


def _derived(derived: CompiledDerived) -> dict[str, Any]:
    return {"op": "expression", "expression": to_data(derived.expr), "dtype": derived.dtype.value}


def differences(old: CompiledView, new: CompiledView) -> tuple[str, ...]:
    """What changed in the meaning, one line each, as `delay_mean_1h: window 1h -> 2h`."""
    before, after = meaning(old), meaning(new)
    lines = [f"keys {_keys(before['keys'])} -> {_keys(after['keys'])}"] if before["keys"] != after["keys"] else []
    lines += [f"source {line}" for line in _changed(before["source"], after["source"])]
    of_view = ("where", "ttl", "on_missing")
    lines += _changed({k: before.get(k) for k in of_view}, {k: after.get(k) for k in of_view})
    lines += _features(before["features"], after["features"])
    return tuple(lines)


def _features(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted({*before, *after}):
        if name not in after:
            yield f"{name}: removed"
        elif name not in before:
            yield f"{name}: added"
        elif changed := list(_changed(before[name], after[name])):
            yield f"{name}: {', '.join(changed)}"


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    for field in dict.fromkeys([*before, *after]):
        old, new = before.get(field), after.get(field)
        if dumps(old) != dumps(new):
            show = _SHOWN.get(field, str)
            yield f"{field} {_or_none(show, old)} -> {_or_none(show, new)}"


def _or_none(show: Callable[[Any], str], value: Any) -> str:
    return "none" if value is None else show(value)


def _keys(keys: list[list[str]]) -> str:
    return ", ".join(f"{column} {dtype}" for column, dtype in keys)


def _expression(data: Any) -> str:
    return render(from_data(data))


_SHOWN: dict[str, Callable[[Any], str]] = {
    "column": _expression,
    "where": _expression,
    "expression": _expression,
    "window": format_duration,
    "hop": format_duration,
    "ttl": format_duration,
    "lateness": format_duration,
    "max_future_skew": format_duration,
    "contract": lambda digest: str(digest)[:12],
    "default": repr,
}
