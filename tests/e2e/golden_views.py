"""Every operation over every kind of entity, twice: as a file of definitions and as features of the oracle."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from featurestore.types import format_duration
from tests.oracle.meaning import (
    DAY,
    HOUR,
    MINUTE,
    SECOND,
    OracleEvent,
    OracleFeature,
    Value,
    divide,
    evaluate,
    magnitude,
)

TTL = 2 * HOUR
FLOATING = frozenset({"sum", "mean", "var", "std"})

SCHEMA: dict[str, Any] = {
    "type": "record",
    "name": "Event",
    "fields": [{"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}}]
    + [
        {"name": name, "type": ["null", kind], "default": None}
        for name, kind in {
            "user": "string", "shop": "long", "amount": "double", "quantity": "long", "huge": "long", "score": "long",
            "label": "string", "flag": "boolean", "due": {"type": "long", "logicalType": "timestamp-micros"},
        }.items()
    ],
}  # fmt: skip


def _positive(event: OracleEvent) -> bool | None:
    return None if event["score"] is None else event["score"] > 0


def _doubled(event: OracleEvent) -> int | None:
    return None if event["score"] is None else event["score"] * 2 + 1


_IN_WORDS: Mapping[Callable[[OracleEvent], Any], str] = {
    _positive: 'col("score") > 0',
    _doubled: 'col("score") * 2 + 1',
}

FEATURES = (
    OracleFeature("events", "count", window=HOUR),
    OracleFeature("scored", "count", "score", window=5 * MINUTE),
    OracleFeature("positive", "count", window=DAY, where=_positive),
    OracleFeature("ever", "count"),
    OracleFeature("total", "sum", "amount", window=HOUR, default=0.0),
    OracleFeature("total_all", "sum", "amount"),
    OracleFeature("units", "sum", "quantity", window=DAY),
    OracleFeature("doubled", "sum", window=61 * SECOND, expression=_doubled),
    OracleFeature("sum_huge", "sum", "huge", window=HOUR, default=-1),
    OracleFeature("mean_amount", "mean", "amount", window=HOUR),
    OracleFeature("mean_quantity", "mean", "quantity", window=5 * SECOND),
    OracleFeature("var_amount", "var", "amount", window=HOUR),
    OracleFeature("std_score", "std", "score", default=-1.0),
    OracleFeature("least", "min", "huge", window=HOUR, hop=HOUR),
    OracleFeature("most", "max", "amount", window=5 * MINUTE, where=_positive),
    OracleFeature("soonest", "min", "due", window=DAY),
    OracleFeature("most_ever", "max", "huge"),
    OracleFeature("first_label", "first", "label", window=DAY),
    OracleFeature("first_ever", "first", "flag"),
    OracleFeature("last_label", "last", "label", default="none"),
    OracleFeature("last_due", "last", "due", window=HOUR),
    OracleFeature("newest", "last_n", "label", window=HOUR, n=3),
    OracleFeature("newest_ever", "last_n", "huge", n=2),
    OracleFeature("labels", "approx_distinct", "label", window=DAY),
    OracleFeature("amounts", "approx_distinct", "amount"),
)
DERIVED = {
    "per_event": 'feature("total") / feature("events")',
    "scaled": '(feature("std_score") * feature("events")).fill_null(-0.5)',
}


@dataclass(frozen=True)
class GoldenView:
    """A view of each case. `where` is of the view: other events do not concern it."""

    keys: tuple[str, ...]
    where: Callable[[OracleEvent], bool | None] | None = None
    ttl: int | None = None

    @property
    def features(self) -> tuple[OracleFeature, ...]:
        return tuple(_with_ttl(f, self.ttl) for f in FEATURES)

    def takes(self, event: OracleEvent) -> bool:
        keyed = all(event[key] is not None for key in self.keys)
        return keyed and (self.where is None or self.where(event) is True)

    def expected(self, events: Sequence[OracleEvent], at: int) -> tuple[dict[str, Value], dict[str, float]]:
        """Values, and how large the inputs of the floating ones are, by feature. `events` are those of one entity."""
        values: dict[str, Any] = dict(evaluate(self.features, events, at))
        sizes = {f.name: magnitude(f, events, at) if f.op in FLOATING else 0.0 for f in FEATURES}
        values["per_event"] = divide(values["total"], values["events"])
        deviation, events_1h = values["std_score"], values["events"]
        values["scaled"] = -0.5 if deviation is None else deviation * events_1h
        return values, sizes | {"per_event": sizes["total"], "scaled": sizes["std_score"] * events_1h}


VIEWS: Mapping[str, GoldenView] = {
    "users": GoldenView(("user",)),
    "shops": GoldenView(("shop",), ttl=TTL),
    "pairs": GoldenView(("user", "shop"), ttl=TTL),
    "flags": GoldenView(("flag",)),
    "buys": GoldenView(("shop",), where=_positive),
}
"""`users` is aligned with its source, the others need the shuffle; `shops` and `buys` share one."""
KEYS = {"user": "str", "shop": "int", "flag": "bool"}


@dataclass(frozen=True)
class SourceOf:
    name: str
    topic: str
    lateness: int


def definitions(sources: Iterable[SourceOf]) -> str:
    """A file of definitions: for each source all views, and a service of its name that reads them."""
    return "\n".join([_HEAD, *map(_source, sources)])


_HEAD = (
    'from featurestore import Entity, FeatureService, Source, agg, col, feature, feature_view\nOWNER = "me@example.com"'
)


def _source(source: SourceOf) -> str:
    label = source.name.capitalize()
    lines = [
        f'{label} = Source("{source.name}", topic="{source.topic}", contract="events/v1", event_time="at", '
        f'key=["user"], lateness="{format_duration(source.lateness)}")'
    ]
    lines += map(partial(_view, label), VIEWS)
    views = ", ".join(label + name.capitalize() for name in VIEWS)
    return "\n".join([*lines, "", f'{source.name} = FeatureService("{source.name}", views=[{views}], owner=OWNER)\n'])


def _view(label: str, name: str) -> str:
    view = VIEWS[name]
    keys = ", ".join(f'"{key}": {KEYS[key]}' for key in view.keys)
    options = f"where={_IN_WORDS[view.where]}, " if view.where else ""
    options += f'ttl="{format_duration(view.ttl)}", ' if view.ttl else ""
    body = {f.name: _aggregate(f) for f in FEATURES} | DERIVED
    lines = [
        "",
        "",
        f'@feature_view(entity=Entity("{name}", keys={{{keys}}}), source={label}, version=1, {options}owner=OWNER)',
        f"class {label}{name.capitalize()}:",
        *(f"    {feature} = {text}" for feature, text in body.items()),
    ]
    return "\n".join(lines)


def _aggregate(f: OracleFeature) -> str:
    given = [f'col("{f.column}")'] if f.column else []
    given += [_IN_WORDS[f.expression]] if f.expression else []
    given += [f'{word}="{format_duration(n)}"' for word, n in (("window", f.window), ("hop", f.hop)) if n is not None]
    given += [f"where={_IN_WORDS[f.where]}"] if f.where else []
    given += [f"default={f.default!r}"] if f.default is not None else []
    given += [f"n={f.n}"] if f.n is not None else []
    return f"agg.{f.op}({', '.join(given)})"


def _with_ttl(f: OracleFeature, ttl: int | None) -> OracleFeature:
    """A view's `ttl` is about its latest values without a window; the oracle knows which those are."""
    return f if ttl is None else OracleFeature(**{**f.__dict__, "ttl": ttl})
