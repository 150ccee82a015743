"""One revision as bytes: everything that is published, as data, under a digest of its own content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from featurestore.clock import format_instant, parse_instant
from featurestore.definitions.jsontext import dumps, loads
from featurestore.errors import Corrupt, UsageError

FORMAT = 1
MAX_BYTES = 16 << 20

SECTIONS = ("contracts", "sources", "views", "services", "aliases", "splits")
_HEAD = ("format", "revision", "parent", "created_at", "digest")

Content = Mapping[str, Mapping[str, Any]]
"""contracts {id: schema text}, sources {name: data}, views {name: {version: data}}, services {name: {version: data}},
aliases {service: {alias: version}}, splits {service: {alias: …}}; versions as decimal text."""

EMPTY_CONTENT: Content = {section: {} for section in SECTIONS}


@dataclass(frozen=True, slots=True, eq=False)
class Revision:
    """`number` counts from 1. `parent` is the digest of the revision before, empty for the first."""

    number: int
    parent: str
    digest: str
    created_at: int
    content: Content


def encode(number: int, parent: str, created_at: int, content: Content) -> tuple[Revision, bytes]:
    """Raises UsageError where the revision is too large to be read back."""
    body = {
        "format": FORMAT,
        "revision": number,
        "parent": parent,
        "created_at": format_instant(created_at),
        **{section: content[section] for section in SECTIONS},
    }
    digest = _digest(body)
    raw = dumps({**body, "digest": digest}) + b"\n"
    if len(raw) > MAX_BYTES:
        raise UsageError(
            f"revision {number} would have {len(raw)} bytes, more than {MAX_BYTES}",
            hint="shorten descriptions, or keep unrelated features in a lake of their own",
        )
    return Revision(number, parent, digest, created_at, content), raw


def decode(number: int, raw: bytes) -> Revision:
    """Raises Corrupt where the bytes are not what `encode` wrote for this number."""
    try:
        data = loads(raw, MAX_BYTES)
    except ValueError as error:
        raise _corrupt(number, f"is unreadable: {error}") from None
    if not isinstance(data, dict):
        raise _corrupt(number, "is no JSON object")
    if data.get("format") != FORMAT:
        raise _corrupt(
            number, f"has format {data.get('format')!r}, and this version reads {FORMAT}", "upgrade this part"
        )
    if data.keys() != {*_HEAD, *SECTIONS}:
        raise _corrupt(number, f"has other fields than expected: {sorted(data.keys() ^ {*_HEAD, *SECTIONS})[:8]}")
    digest = data.pop("digest")
    if digest != _digest(data):
        raise _corrupt(number, "does not match its digest")
    if data["revision"] != number:
        raise _corrupt(number, f"calls itself {data['revision']!r}")
    sections = {section: data[section] for section in SECTIONS}
    if not isinstance(data["parent"], str) or not all(isinstance(value, dict) for value in sections.values()):
        raise _corrupt(number, "has parts of another type than expected")
    return Revision(number, data["parent"], digest, _instant(number, data["created_at"]), sections)


def _instant(number: int, text: Any) -> int:
    try:
        return parse_instant(text)
    except (TypeError, ValueError) as error:
        raise _corrupt(number, f"has no created_at: {error}") from None


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(dumps(body)).hexdigest()


def _corrupt(number: int, problem: str, hint: str = "") -> Corrupt:
    restore = "restore the file from a copy; a revision is never changed after it was written"
    return Corrupt(f"registry revision {number} {problem}", hint=hint or restore)
