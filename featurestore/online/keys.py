"""Names of everything this package keeps in Redis.

    {project}:v:{view_id}:{hh}:{canonical key}    one packed value of one entity
    {project}:v:{view_id}.next:{hh}:{key}         one that a backfill has computed, until it takes the other's place
    {project}:fence:{view_id}                     hash, one field per entity partition
    {project}:intake:{source}                     hash, one field per source partition
    {project}:beat:{stage}                        hash, one field per partition
    {project}:rebuild                             hash, one field per view that is being rebuilt

`{hh}`, braces included, is the hash tag of Redis Cluster: two hex digits of a hash of the canonical key. A batch of
any size touches at most 256 slots, so that it can be grouped by slot, and all views' values of one entity share one.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from zlib import crc32

from featurestore.errors import ConfigError, Corrupt, InvalidRequest

MAX_KEY_BYTES = 1024
"""The longest canonical entity key, in UTF-8 bytes."""

_TAGS = 256
_NAME = re.compile(r"[A-Za-z0-9_.@:/-]{1,256}", re.ASCII)
_PROJECT = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)


def encode_keys(keys: Iterable[str]) -> list[bytes]:
    """Canonical keys as UTF-8. Raises InvalidRequest for one that is too long or no valid text."""
    try:
        encoded = [key.encode() for key in keys]
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"entity key {error.object[:64]!r} holds a lone surrogate at {error.start}; expected valid Unicode",
            field="entities",
        ) from None
    if max(map(len, encoded), default=0) > MAX_KEY_BYTES:
        longest = max(encoded, key=len)
        raise InvalidRequest(
            f"entity key {longest[:64].decode(errors='replace')!r}… has {len(longest)} bytes; "
            f"expected at most {MAX_KEY_BYTES}",
            field="entities",
            hint="use a shorter identifier, or a digest of the long one, as the entity key",
        )
    return encoded


@dataclass(frozen=True, slots=True)
class Keyspace:
    """The names of one project. Two projects can share a server."""

    project: str

    def __post_init__(self) -> None:
        if not _PROJECT.fullmatch(self.project):
            raise ConfigError(
                f"project {self.project!r} cannot prefix Redis keys; expected 1 to 64 letters, digits, '_', '.' or '-'",
                field="project",
            )

    def values(self, view_id: str, keys: Iterable[str]) -> list[bytes]:
        """The Redis keys of many entities of one view, in order."""
        prefixes = _prefixes(self.project, view_id)
        return [prefixes[crc32(key) & 255] + key for key in encode_keys(keys)]

    def pattern(self, view_id: str) -> bytes:
        """What `SCAN … MATCH` takes to find every value of one view. Names hold no character special to it."""
        return f"{self.project}:v:{_checked(view_id)}:{{??}}:*".encode()

    def entity(self, view_id: str, name: bytes) -> str:
        """The canonical key within the Redis key of a value. Raises Corrupt where it is not one of the view."""
        prefixes = _prefixes(self.project, view_id)
        key = name[len(prefixes[0]) :]
        try:
            text = key.decode()
        except UnicodeDecodeError:
            text = ""
        if not text or prefixes[crc32(key) & 255] + key != name:
            raise Corrupt(
                f"Redis key {name[:96]!r} is not a value of view {view_id!r}",
                hint="something else writes under this project's prefix; give each application a project of its own",
            )
        return text

    def owner(self, name: bytes) -> tuple[str, str]:
        """View id and canonical key of the Redis key of a value; no view has the id of another kind of name."""
        place, _, key = name.partition(b"}:")
        view_id = place[len(self.project) + 3 : -4]
        return view_id.decode(errors="replace"), key.decode(errors="replace")

    def fences(self, view_id: str) -> bytes:
        return f"{self.project}:fence:{_checked(view_id)}".encode()

    def intake(self, source: str) -> bytes:
        return f"{self.project}:intake:{_checked(source)}".encode()

    def beats(self, stage: str) -> bytes:
        return f"{self.project}:beat:{_checked(stage)}".encode()

    def rebuilds(self) -> bytes:
        return f"{self.project}:rebuild".encode()


def staged(view_id: str) -> str:
    """Under which id the values of a view's next generation wait."""
    return f"{view_id}.next"


@lru_cache(maxsize=1024)
def _prefixes(project: str, view_id: str) -> tuple[bytes, ...]:
    return tuple(f"{project}:v:{_checked(view_id)}:{{{tag:02x}}}:".encode() for tag in range(_TAGS))


def _checked(name: str) -> str:
    """A brace here would become the hash tag, and a wildcard would widen a scan."""
    if not _NAME.fullmatch(name):
        raise InvalidRequest(f"{name!r} cannot be part of a Redis key; expected 1 to 256 of A-Z a-z 0-9 _ . @ : / -")
    return name
