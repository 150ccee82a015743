"""One column of an event contract."""

from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal, TypeAlias

from featurestore.types import Dtype


class NoDefault(Enum):
    """Its own type, so that a default of null and no default at all stay apart."""

    NO_DEFAULT = "no default"

    def __repr__(self) -> str:
        return "NO_DEFAULT"


NO_DEFAULT: Final = NoDefault.NO_DEFAULT

Scalar: TypeAlias = bool | int | float | str | None

INT64 = (-(2**63), 2**63 - 1)
INT32 = (-(2**31), 2**31 - 1)


@dataclass(frozen=True, slots=True)
class Field:
    """A column of the decoded batch, and how Avro writes it.

    `default` is a value as decoded (a timestamp in microseconds), or NO_DEFAULT.
    """

    name: str
    dtype: Dtype
    nullable: bool = False
    default: Scalar | Literal[NoDefault.NO_DEFAULT] = NO_DEFAULT
    wire: str = ""
    """The Avro type: boolean, int, long, float, double, string or enum."""
    unit_micros: int = 1
    """Microseconds in one step of a timestamp written as an integer: 1, or 1000 for timestamp-millis."""
    symbols: tuple[str, ...] = ()
    """Of an enum, in the order of the schema; empty for every other type."""
    null_branch: int | None = None
    """The branch that is null in the Avro union, None where the field is no union."""

    @property
    def bounds(self) -> tuple[int, int]:
        """Least and greatest integer, both inclusive."""
        return INT32 if self.wire == "int" else INT64

    @property
    def has_default(self) -> bool:
        return self.default is not NO_DEFAULT
