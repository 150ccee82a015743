"""Who may ask for what: a caller's rights, and the words that grant them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

ADMIN = "admin"
EVERY = "*"
_LOOKUP = re.compile(r"lookup:(?P<service>\*|[a-z][a-z0-9_]{0,99})", re.ASCII)

CALLER = "featurestore.caller"
"""The member of an ASGI scope that says whose request it is."""

SCOPE_FORM = "lookup:<service>, lookup:* or admin"


class Rejected(Exception):
    """A credential that is not believed. `reason` is for the metric; its sender is not told."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever sent a request. `name` is for people: what a key is called, or the subject of a token."""

    name: str
    services: frozenset[str] = frozenset()
    """Names without version or alias; `*` stands for all of them."""
    admin: bool = False
    """May see how this process and every view is. It is no right to look anything up."""

    @property
    def every_service(self) -> bool:
        return EVERY in self.services

    def may_lookup(self, service: str) -> bool:
        """`service` as requests write it: `name`, `name@alias` or `name@version`."""
        return service.partition("@")[0] in self.services or EVERY in self.services


ANYONE = Caller("anyone", frozenset({EVERY}), admin=True)
"""Every caller, where the API asks nobody who they are."""
NOBODY = Caller("nobody")


def caller_of(name: str, scopes: Iterable[str]) -> Caller:
    """Scopes that mean nothing here give no right: a token may be for other services as well."""
    given = frozenset(scopes)
    services = frozenset(match["service"] for scope in given if (match := _LOOKUP.fullmatch(scope)))
    return Caller(name, services, ADMIN in given)


def is_scope(text: str) -> bool:
    return text == ADMIN or _LOOKUP.fullmatch(text) is not None
