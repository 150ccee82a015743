"""Checks entities and sources against the contract of the source's events."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from featurestore.contracts.contract import Contract
from featurestore.definitions.compiled import CompiledSource
from featurestore.definitions.faults import Faults, shown
from featurestore.definitions.model import Entity, Source
from featurestore.errors import NotFound, UsageError
from featurestore.types import PYTHON_DTYPES, Dtype

ContractOrError: TypeAlias = Contract | UsageError | None
"""A contract, or the error that reading it gave, or None where nobody has it."""

KEY_TYPES: dict[Any, Dtype] = {python: dtype for python, dtype in PYTHON_DTYPES.items() if python is not float}

_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,245}", re.ASCII)
_TOPIC_FORM = "1 to 245 of letters, digits, '.', '_' and '-' (the dead-letter topic adds '.dlq')"
_EVENT_TIME = "event_time"
"""Stored events have a column of this name, whatever the contract calls it."""


def usable_contract(source: Source, contract: ContractOrError, faults: Faults) -> Contract | None:
    where = f"{source.name}.contract"
    if isinstance(contract, Contract):
        return contract
    if isinstance(contract, NotFound):
        faults.add(where, f"unknown contract {shown(source.contract)}", contract.hint, contract.near)
    elif contract is None:
        faults.add(where, f"unknown contract {shown(source.contract)}", "a contract as 'flights.departures/v1'")
    else:
        faults.add(where, contract.message, contract.hint)
    return None


def compile_source(source: Source, contract: Contract | None, faults: Faults) -> CompiledSource | None:
    """None after adding faults, or where the contract is not there to check against."""
    label, before = str(source.name), len(faults.found)
    faults.name(label, "source", source.name)
    _topic(label, source.topic, faults)
    lateness = faults.duration(f"{label}.lateness", "lateness", source.lateness, zero=True)
    skew = faults.duration(f"{label}.max_future_skew", "max_future_skew", source.max_future_skew, zero=True)
    faults.text(f"{label}.owner", "owner", source.owner)
    faults.text(f"{label}.description", "description", source.description)
    key = _message_key(label, source.key, faults)
    if contract is None:
        return None
    _event_time(label, source, contract, faults)
    for column in key:
        _key_column(f"{label}.key", column, contract, faults)
    if len(faults.found) > before or lateness is None or skew is None:
        return None
    return CompiledSource(source.name, source.topic, contract, source.event_time, key, lateness, skew)


def _topic(label: str, topic: Any, faults: Faults) -> None:
    if not isinstance(topic, str) or not _TOPIC.fullmatch(topic) or topic in (".", ".."):
        faults.add(f"{label}.topic", f"{shown(topic)} is no topic", _TOPIC_FORM)


def _message_key(label: str, key: Any, faults: Faults) -> tuple[str, ...]:
    if not isinstance(key, Sequence) or isinstance(key, str) or not all(isinstance(c, str) for c in key):
        faults.add(f"{label}.key", f"key is {shown(key)}", "a list of column names, as ['tailnum']")
        return ()
    if len(set(key)) < len(key):
        faults.add(f"{label}.key", f"key {shown(list(key))} repeats a column", "each column once")
    return tuple(dict.fromkeys(key))


def _event_time(label: str, source: Source, contract: Contract, faults: Faults) -> None:
    where = f"{label}.event_time"
    if _EVENT_TIME in contract.names and source.event_time != _EVENT_TIME:
        problem = f"contract {contract.id} has a column {_EVENT_TIME!r}, and the store adds one of that name"
        faults.add(where, problem, f"another name for that column, or event_time={_EVENT_TIME!r}")
    if source.event_time not in contract.names:
        faults.unknown(where, "column", source.event_time, contract.names)
        return
    field = contract.field(source.event_time)
    if field.dtype is not Dtype.TIMESTAMP:
        faults.add(where, f"column {field.name!r} is {field.dtype}", "a timestamp (logicalType timestamp-micros)")
    if field.nullable:
        faults.add(where, f"column {field.name!r} can be null", "a column that every event has")


def _key_column(where: str, column: str, contract: Contract, faults: Faults) -> Dtype | None:
    if column not in contract.names:
        faults.unknown(where, "column", column, contract.names)
        return None
    dtype = contract.field(column).dtype
    if dtype not in KEY_TYPES.values():
        faults.add(where, f"column {column!r} is {dtype}, which cannot be a key", "string, int or bool")
    return dtype


def compile_entity(entity: Entity, contract: Contract | None, faults: Faults) -> Mapping[str, Dtype]:
    """Key column → dtype, in the order of the key."""
    label = str(entity.name)
    faults.name(label, "entity", entity.name)
    faults.text(f"{label}.description", "description", entity.description)
    declared_keys: Any = entity.keys
    if not isinstance(declared_keys, Mapping) or not declared_keys:
        faults.add(f"{label}.keys", f"keys is {shown(declared_keys)}", "columns and their types, as {'origin': str}")
        return {}
    keys: dict[str, Dtype] = {}
    for column, python in declared_keys.items():
        where = f"{label}.keys.{column}"
        declared = KEY_TYPES.get(python) if isinstance(python, type) else None
        if declared is None:
            faults.add(where, f"a key cannot be {_type_name(python)}", "str, int or bool")
        actual = _key_column(where, column, contract, faults) if contract else None
        if declared and contract and actual in KEY_TYPES.values() and actual is not declared:
            faults.add(where, f"declared {_type_name(python)}, but contract {contract.id} has {actual}",
                       _type_name(next(p for p, d in KEY_TYPES.items() if d is actual)))  # fmt: skip
        keys[column] = declared or Dtype.STRING
    return keys


def _type_name(python: Any) -> str:
    return python.__name__ if isinstance(python, type) else shown(python)
