"""The command that reads many values, from names that are kept: encoding and packing them anew takes longer than what
Redis needs to answer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from featurestore.online.keys import Keyspace

MOST_NAMES = 16_384
"""Kept of each view; with one more all are forgotten, which takes 1 to 2 ms."""


Wanted = Sequence[tuple[str, Sequence[str]]]
"""Views, each with canonical keys."""
Values = list[bytes | None]
"""What is stored under keys, in their order; None where nothing is."""


def mget(names: Sequence[bytes]) -> bytes:
    """The command that reads values, from their packed names, one or more."""
    return b"*%d\r\n$4\r\nMGET\r\n%b" % (1 + len(names), b"".join(names))


class Names:
    """Names of stored values in the form in which they are sent. For one thread."""

    def __init__(self, keyspace: Keyspace) -> None:
        self._keyspace = keyspace
        self._known: dict[str, dict[str, bytes]] = {}

    def of(self, wanted: Wanted) -> list[bytes]:
        """Packed names of several views' canonical keys. Raises InvalidRequest for a key that cannot be stored."""
        return list(chain.from_iterable(self._of(view_id, keys) for view_id, keys in wanted))

    def _of(self, view_id: str, keys: Sequence[str]) -> list[bytes]:
        known = self._known.setdefault(view_id, {})
        try:
            return list(map(known.__getitem__, keys))
        except KeyError:
            pass
        new: Sequence[str] = [key for key in keys if key not in known]
        if len(known) + len(new) > MOST_NAMES:
            known.clear()
            new = keys
        names = self._keyspace.values(view_id, new)
        known.update(zip(new, (b"$%d\r\n%b\r\n" % (len(name), name) for name in names), strict=True))
        return list(map(known.__getitem__, keys))
