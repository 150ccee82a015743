"""Whether events written with an older contract can be read with a newer one."""

from collections.abc import Iterable
from itertools import combinations

from featurestore.contracts.contract import Contract
from featurestore.contracts.field import Field

# Promotions that keep every value: an int fits a double, a long does not fit without rounding.
_PROMOTIONS = frozenset({("int", "long"), ("int", "double"), ("float", "double")})


def backward_violations(new: Contract, old: Contract) -> list[str]:
    """Why a reader with `new` cannot read what was written with `old`, one sentence each; empty where it can."""
    before = {field.name: field for field in old.fields}
    found: list[str] = []
    for field in new.fields:
        if field.name in before:
            found += _field_violations(field, before[field.name])
        elif not field.has_default:
            found.append(f"{field.name}: new in {new.id} without a default, and events of {old.id} do not have it")
    return found


def check_transitive(contracts: Iterable[Contract]) -> list[str]:
    """Violations between each version of a topic and every earlier one, each line beginning with the newer id."""
    ordered = sorted(contracts, key=lambda contract: (contract.topic, contract.version))
    return [
        f"{new.id} cannot read {old.id}: {violation}"
        for old, new in combinations(ordered, 2)
        if old.topic == new.topic
        for violation in backward_violations(new, old)
    ]


def _field_violations(new: Field, old: Field) -> list[str]:
    found: list[str] = []
    if old.nullable and not new.nullable:
        found.append(f"{new.name}: was nullable and is not any more")
    if old.has_default and not new.has_default:
        found.append(f"{new.name}: lost its default, and events may be without it")
    if (old.dtype, old.wire) != (new.dtype, new.wire) and (old.wire, new.wire) not in _PROMOTIONS:
        found.append(f"{new.name}: was {_described(old)} and is {_described(new)}")
    elif old.unit_micros != new.unit_micros:
        found.append(f"{new.name}: was {_described(old)} and is {_described(new)}, so its integers would be misread")
    if old.symbols and new.symbols and new.symbols[: len(old.symbols)] != old.symbols:
        found.append(f"{new.name}: symbols may only be added, behind {', '.join(old.symbols[:20])}")
    return found


def _described(field: Field) -> str:
    if field.dtype.value == "timestamp":
        return "timestamp-micros" if field.unit_micros == 1 else "timestamp-millis"
    return field.wire
