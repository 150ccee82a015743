"""Why an event is refused. The codes are stable: dead letters carry them, and alerts and replays select by them."""

from dataclasses import dataclass
from enum import StrEnum

MAX_VALUE_BYTES = 1 << 20
MAX_DEPTH = 64

_SHOWN = 80


class Reason(StrEnum):
    EMPTY = "empty"
    """No value (a tombstone) or zero bytes."""
    TOO_LARGE = "too_large"
    """More than 1 MiB."""
    TOO_DEEP = "too_deep"
    """Nested deeper than 64, in fields that the contract does not know."""
    NOT_JSON = "not_json"
    """Also two documents in one value, or text after the document."""
    NOT_OBJECT = "not_object"
    DUPLICATE_KEY = "duplicate_key"
    BAD_UTF8 = "bad_utf8"
    """Also a lone surrogate in a JSON escape: such text has no UTF-8."""
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    OUT_OF_RANGE = "out_of_range"
    NOT_FINITE = "not_finite"
    BAD_TIMESTAMP = "bad_timestamp"
    BAD_ENUM = "bad_enum"
    BAD_AVRO = "bad_avro"


FUTURE_EVENT = "future_event"
"""Further ahead of the clock than the source's `max_future_skew`: no breach of the contract, and refused as well."""


@dataclass(frozen=True, slots=True)
class Reject:
    """One refused row: its index in the input, the code, and a sentence for the person who reads the dead letter."""

    row: int
    reason: Reason
    error: str


class Refused(Exception):
    """A value breaks the contract. Raised per row by the exact paths and turned into a Reject; never leaves here."""

    def __init__(self, reason: Reason, error: str) -> None:
        super().__init__(error)
        self.reason = reason
        self.error = error

    def at(self, row: int) -> Reject:
        return Reject(row, self.reason, self.error)


def shown(value: object) -> str:
    """A value for an error text: bounded, and printable in a header or a terminal."""
    text = ascii(value[: _SHOWN + 1] if isinstance(value, (str, bytes)) else value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
