"""What an event of a topic holds: a flat record, one version per file `<schemas>/<topic>/v<n>.avsc`.

Loading a contract needs neither Arrow nor NumPy, so definitions can be checked cheaply; decoding lives in `decode`.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from featurestore.contracts.avsc import MAX_SCHEMA_BYTES, RecordShape, read_record
from featurestore.contracts.field import NO_DEFAULT, Field, Scalar
from featurestore.errors import ContractError, NotFound

__all__ = ["NO_DEFAULT", "Contract", "Field", "Scalar", "known_contracts", "load_contract", "parse_contract"]

_ID = re.compile(r"(?P<topic>[A-Za-z0-9_-][A-Za-z0-9._-]{0,248})/v(?P<version>[1-9][0-9]{0,8})", re.ASCII)
_FILE = re.compile(r"v([1-9][0-9]{0,8})\.avsc", re.ASCII)


@dataclass(frozen=True, slots=True)
class Contract:
    """A version of a topic's events. Two contracts with equal `fingerprint` decode every value alike."""

    id: str
    """`flights.departures/v1`"""
    topic: str
    version: int
    fields: tuple[Field, ...]
    fingerprint: str
    """SHA-256 (hex) of what decides about values: names, types, defaults, in order; not of comments or layout."""
    schema_json: str

    def __hash__(self) -> int:
        return hash((self.id, self.fingerprint))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(field.name for field in self.fields)

    def field(self, name: str) -> Field:
        """Raises NotFound with near matches."""
        for field in self.fields:
            if field.name == name:
                return field
        raise NotFound("column", name, self.names, hint=f"contract {self.id} has {', '.join(self.names)}")


def parse_contract(contract_id: str, text: str) -> Contract:
    """Raises ContractError that names the field, what it is, and what is supported."""
    topic, version = _split_id(contract_id)
    record: RecordShape = read_record(contract_id, text)
    digest = hashlib.sha256(record.canonical.encode()).hexdigest()
    return Contract(contract_id, topic, version, record.fields, digest, text)


def load_contract(schemas_dir: Path | str, contract_id: str) -> Contract:
    """Read `<schemas_dir>/<topic>/v<n>.avsc`.

    Raises NotFound (which path was looked at, near matches) where there is no such file, ContractError where it
    cannot be used.
    """
    root = Path(schemas_dir)
    topic, version = _split_id(contract_id)
    path = root / topic / f"v{version}.avsc"
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_SCHEMA_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        known = known_contracts(root)
        there = f"there are {', '.join(known)}" if known else f"{root} holds no contracts; is FS_SCHEMAS right?"
        raise NotFound("contract", contract_id, known, hint=f"looked for {path}; {there}") from None
    except OSError as error:
        raise ContractError(f"contract {contract_id}: {path} cannot be read: {error.strerror}") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ContractError(f"contract {contract_id}: {path} is not UTF-8 text: {error.reason}") from error
    return parse_contract(contract_id, text)


def known_contracts(schemas_dir: Path | str) -> tuple[str, ...]:
    """Ids of every contract file below a directory, sorted by topic, then version."""
    found = [
        (path.parent.name, int(match[1]))
        for path in Path(schemas_dir).glob("*/v*.avsc")
        if (match := _FILE.fullmatch(path.name))
    ]
    return tuple(f"{topic}/v{version}" for topic, version in sorted(found))


def _split_id(contract_id: str) -> tuple[str, int]:
    match = _ID.fullmatch(contract_id)
    if match is None:
        raise ContractError(
            f"{contract_id!r} is no contract id",
            hint="write topic and version, as 'flights.departures/v1'",
            field="contract",
        )
    return match["topic"], int(match["version"])
