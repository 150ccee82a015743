"""API keys: how one is made, how it is written down, and how one that is shown is recognised.

A line per key, so that a file of them can be read, compared and merged by people:

    NAME  SCOPES  sha256:HEX  [EXPIRY]
    scoring  lookup:flight_delay,lookup:leg_delay  sha256:9f86d0…  2027-01-01T00:00:00Z

`#` begins a comment. Several keys may have one name: that is how a key is changed without a gap.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256

from featurestore.clock import format_instant, parse_instant
from featurestore.errors import ConfigError, UsageError
from featurestore.serving.callers import SCOPE_FORM, Caller, caller_of, is_scope

PREFIX = "fsk_"
"""What every key begins with: logs and repositories can be searched for keys that leaked."""
MAX_KEYS = 10_000
MAX_NAME = 64

_SECRET_BYTES = 32
_ADDRESS_BYTES = 8
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME - 1}}}", re.ASCII)
_HASH = re.compile(r"sha256:([0-9a-f]{64})", re.ASCII)
_FORM = "expected NAME SCOPES sha256:HEX [EXPIRY], as `featurestore keys new` writes it"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is written down of a key. The key itself is known to its holder only.

    Its digest is a plain SHA-256: salts and slow hashes protect what people can guess, and nobody guesses 256 random
    bits, while a slow hash would be in the time of every lookup.
    """

    name: str
    scopes: tuple[str, ...]
    digest: bytes = field(repr=False)
    expires: int | None = None
    """µs; the first instant at which it is worth nothing."""

    @property
    def line(self) -> str:
        until = "" if self.expires is None else f"  {format_instant(self.expires)}"
        return f"{self.name}  {','.join(self.scopes)}  sha256:{self.digest.hex()}{until}"


def digest_of(key: bytes) -> bytes:
    return sha256(key).digest()


def new_key(name: str, scopes: Iterable[str], *, expires: int | None = None) -> tuple[str, ApiKey]:
    """A new key as its holder needs it, and what to write down. Raises UsageError for a bad name or scope."""
    given = tuple(dict.fromkeys(scopes))
    if _NAME.fullmatch(name) is None or name.startswith(PREFIX):
        raise UsageError(
            f"{name[:MAX_NAME]!r} cannot be a key's name",
            hint=f"expected letters, digits and ._-, at most {MAX_NAME}, as scoring-prod",
            field="name",
        )
    if not given or (wrong := [scope for scope in given if not is_scope(scope)]):
        what = f"{wrong[0][:MAX_NAME]!r} is no scope" if given else "a key without a scope may do nothing"
        raise UsageError(what, hint=f"expected {SCOPE_FORM}", field="scope")
    key = PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    return key, ApiKey(name, given, digest_of(key.encode()), expires)


class Keyring:
    """The keys that are valid, by what is shown of them."""

    def __init__(self, keys: Iterable[ApiKey] = ()) -> None:
        self.keys = tuple(keys)
        self._holders: dict[bytes, list[tuple[ApiKey, Caller]]] = {}
        for key in self.keys:
            holder = (key, caller_of(key.name, key.scopes))
            self._holders.setdefault(key.digest[:_ADDRESS_BYTES], []).append(holder)

    def find(self, digest: bytes) -> tuple[ApiKey, Caller] | None:
        """The key with this digest, expired or not, and what its holder may do.

        The first bytes of the digest lead to the candidates, which are compared in constant time. How long that took
        says at most something about the digest, from which no key can be made.
        """
        for key, caller in self._holders.get(digest[:_ADDRESS_BYTES], ()):
            if hmac.compare_digest(key.digest, digest):
                return key, caller
        return None


def parse_keys(text: str, where: str) -> Keyring:
    """Raises ConfigError that names the line; `where` says what was read. Never repeats what a line holds."""
    keys: list[ApiKey] = []
    numbers: dict[bytes, int] = {}
    for number, words in _lines(text):
        try:
            key = _parse(words)
        except ValueError as error:
            raise ConfigError(f"{where}, line {number}: {error}", hint=_FORM, field="FS_API_KEYS") from None
        if key.digest in numbers:
            what = f"{where}, line {number}: this key is in line {numbers[key.digest]} already"
            raise ConfigError(what, hint="each key has one line", field="FS_API_KEYS")
        numbers[key.digest] = number
        keys.append(key)
        if len(keys) > MAX_KEYS:
            raise ConfigError(f"{where} has more than {MAX_KEYS:,} keys", field="FS_API_KEYS")
    return Keyring(keys)


def _lines(text: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if words := line.partition("#")[0].split():
            yield number, words


def _parse(words: list[str]) -> ApiKey:
    if any(word.startswith(PREFIX) for word in words):
        raise ValueError("it holds a key itself; only its hash belongs here, and this key is to be replaced")
    if not 3 <= len(words) <= 4:
        raise ValueError(f"it has {len(words)} words")
    name, scopes, written = words[0], words[1].split(","), _HASH.fullmatch(words[2])
    if _NAME.fullmatch(name) is None:
        raise ValueError("its name is not made of letters, digits and ._-")
    if not all(map(is_scope, scopes)):
        raise ValueError(f"its scopes are not all of {SCOPE_FORM}")
    if written is None:
        raise ValueError("its hash is not sha256: and 64 hexadecimal digits")
    expires = parse_instant(words[3]) if len(words) == 4 else None
    return ApiKey(name, tuple(scopes), bytes.fromhex(written[1]), expires)
