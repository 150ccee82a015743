"""Which form an answer has: what the caller's `Accept` and `Accept-Encoding` say (RFC 9110, section 12.5).

A wish that cannot be met is no error: the answer is then JSON, and not compressed.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pyarrow as pa

JSON = "application/json"
ARROW = "application/vnd.apache.arrow.stream"
ENCODINGS = ("zstd", "gzip")
"""Those on offer; of two that are equally welcome the first is taken."""

MIN_COMPRESSED = 4 << 10
"""Bytes. A smaller answer fits into a few packets, and compressing it would only take time."""
IN_THREAD = 64 << 10
"""Bytes. A larger answer is compressed in a thread, so that other requests need not wait for it."""
LEVEL = 1
"""Of compression, the fastest one: callers wait for the answer."""

VARY = ("vary", "accept, accept-encoding")

_WEIGHT = re.compile(r"(?:^|;)\s*q\s*=\s*(?P<q>[^;\s]*)")
_NUMBER = re.compile(r"0(\.\d{0,3})?|1(\.0{0,3})?", re.ASCII)
_UNSAID = 1e-6
"""The weight of an answer as it is where the header does not speak of it: acceptable, and the last choice."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """The two headers as they came; empty where they did not."""

    accept: bytes = b""
    accept_encoding: bytes = b""

    @property
    def arrow(self) -> bool:
        """Whether an Arrow stream is preferred to JSON; never where it is not named.

        Of two with the same weight the one that is named more exactly is preferred, and then JSON.
        """
        if b"arrow" not in self.accept.lower():
            return False
        weights = _weights(self.accept)
        wanted = _preference(ARROW, weights)
        return wanted[0] > 0 and wanted > _preference(JSON, weights)

    @property
    def encoding(self) -> str:
        """One of ENCODINGS; empty for none."""
        weights = _weights(self.accept_encoding)
        others = weights.get("*", 0.0)
        scores = {name: weights.get(name, others) for name in ENCODINGS}
        scores["identity"] = weights.get("identity", weights.get("*", _UNSAID))
        best = max(scores, key=lambda name: scores[name])
        return best if best in ENCODINGS and scores[best] > 0 else ""


NO_WISHES = Wishes()


def wishes_of(headers: Iterable[tuple[bytes, bytes]]) -> Wishes:
    """Of an ASGI scope's headers, whose names are in lower case. A header that is repeated is one list."""
    accept = accept_encoding = b""
    for name, value in headers:
        if name == b"accept":
            accept = b",".join((accept, value)) if accept else value
        elif name == b"accept-encoding":
            accept_encoding = b",".join((accept_encoding, value)) if accept_encoding else value
    return Wishes(accept, accept_encoding) if accept or accept_encoding else NO_WISHES


async def compressed(body: bytes, wishes: Wishes) -> tuple[bytes, str]:
    """The body as it is to be sent, and its content encoding; empty where it stays as it is."""
    if len(body) < MIN_COMPRESSED or not wishes.accept_encoding:
        return body, ""
    encoding = wishes.encoding
    if not encoding:
        return body, ""
    if len(body) < IN_THREAD:
        return _compress(body, encoding), encoding
    return await asyncio.to_thread(_compress, body, encoding), encoding


def _compress(body: bytes, encoding: str) -> bytes:
    # Not kept: a codec has a state, which two threads must not share.
    packed: bytes = pa.Codec(encoding, compression_level=LEVEL).compress(body, asbytes=True)
    return packed


def _weights(header: bytes) -> dict[str, float]:
    """Each listed name, in lower case and without parameters, and its weight. Malformed members are left out."""
    weights: dict[str, float] = {}
    for member in header.decode("latin-1").lower().split(","):
        name, _, parameters = member.partition(";")
        weight = _WEIGHT.search(parameters)
        if weight is None or _NUMBER.fullmatch(weight["q"]):
            weights[name.strip()] = 1.0 if weight is None else float(weight["q"])
    return weights


def _preference(media_type: str, weights: Mapping[str, float]) -> tuple[float, int]:
    """Its weight by the most exact range that names it, and how exact that is."""
    ranges = (media_type, f"{media_type.partition('/')[0]}/*", "*/*")
    return next(((weights[name], -i) for i, name in enumerate(ranges) if name in weights), (0.0, -len(ranges)))
