"""`agg.<operation>(…)`: what to aggregate, as data. Nothing is checked here: one check reports every fault."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from featurestore.definitions.expressions import Expr
from featurestore.types import Dtype


@dataclass(frozen=True, slots=True, eq=False)
class Aggregate:
    """An aggregation as written by its author. `extra` holds the operation's own parameters, as `n` of `last_n`."""

    op: str
    column: Any = None
    window: Any = None
    hop: Any = None
    where: Any = None
    default: Any = None
    extra: tuple[tuple[str, Any], ...] = ()
    surplus: tuple[Any, ...] = field(default=())
    """Positional arguments beyond the column: always a fault."""

    @property
    def written(self) -> str:
        """As its author could have written it: `agg.mean(col('dep_delay'), window='1h')`."""
        named = {name: getattr(self, name) for name in ("window", "hop", "where", "default")} | dict(self.extra)
        words = [repr(part) for part in ((self.column,) if self.column is not None else ())]
        words += [f"{name}={value!r}" for name, value in named.items() if value is not None]
        return f"agg.{self.op}({', '.join(words)})"


class _Aggregations:
    """Any attribute is an operation; unknown ones are reported with the other faults of the file."""

    def __getattr__(self, op: str) -> Callable[..., Aggregate]:
        if op.startswith("__"):
            raise AttributeError(op)

        def build(
            column: Any = None,
            *surplus: Any,
            window: Any = None,
            hop: Any = None,
            where: Any = None,
            default: Any = None,
            **extra: Any,
        ) -> Aggregate:
            return Aggregate(op, column, window, hop, where, default, tuple(sorted(extra.items())), surplus)

        build.__name__ = op
        return build


agg = _Aggregations()


@dataclass(frozen=True, slots=True)
class Rule:
    """What an operation accepts and gives."""

    gives: Callable[[Dtype], Dtype]
    """Output dtype from the column's."""
    accepts: frozenset[Dtype] = frozenset(Dtype)
    column: bool = True
    """Whether a column must be given."""
    many: bool = False
    """Whether the value is a list."""
    latest: bool = False
    """Whether it is a latest value, which `ttl` applies to when it has no window."""
    parameters: tuple[str, ...] = ()
    empty_is_null: bool = True


def _same(dtype: Dtype) -> Dtype:
    return dtype


def _int(_: Dtype) -> Dtype:
    return Dtype.INT


def _float(_: Dtype) -> Dtype:
    return Dtype.FLOAT


_NUMBERS = frozenset({Dtype.INT, Dtype.FLOAT})
_ORDERED = frozenset({Dtype.INT, Dtype.FLOAT, Dtype.TIMESTAMP})

RULES: dict[str, Rule] = {
    "count": Rule(_int, column=False, empty_is_null=False),
    "sum": Rule(_same, _NUMBERS),
    "mean": Rule(_float, _NUMBERS),
    "var": Rule(_float, _NUMBERS),
    "std": Rule(_float, _NUMBERS),
    "min": Rule(_same, _ORDERED),
    "max": Rule(_same, _ORDERED),
    "first": Rule(_same, latest=True),
    "last": Rule(_same, latest=True),
    "last_n": Rule(_same, many=True, latest=True, parameters=("n",), empty_is_null=False),
    "approx_distinct": Rule(_int, empty_is_null=False),
}
"""Every operation a definition can name; `featurestore.engine.operations.OPERATIONS` has one entry for each."""

MAX_LAST_N = 100


def column_expr(aggregate: Aggregate) -> Expr | None:
    """The aggregated expression; a bare string is a column's name."""
    if isinstance(aggregate.column, str):
        return Expr("col", (), aggregate.column)
    column: Expr | None = aggregate.column
    return column
