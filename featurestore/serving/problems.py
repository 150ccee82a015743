"""RFC 9457 problem documents: how every error of the read API looks, and what of it may be said."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from featurestore.errors import AtOutOfRange, FeatureStoreError, InvalidRequest, NotFound, Unavailable

MEDIA_TYPE = "application/problem+json"

TITLES: dict[str, str] = {
    "unauthenticated": "The API must know who asks",
    "forbidden": "This is not for who asks",
    "not_found": "No such name",
    "invalid_request": "The request cannot be understood",
    "at_out_of_range": "The instant cannot be answered exactly",
    "no_such_route": "No such route",
    "method_not_allowed": "The route has another method",
    "body_too_large": "The body is too large",
    "unsupported_encoding": "The body's encoding is not supported",
    "body_timeout": "The body did not arrive in time",
    "head_timeout": "The request's head did not arrive in time",
    "head_too_large": "The request's head is too large",
    "overloaded": "Too much work is waiting",
    "quota_spent": "The caller has too many lookups under way",
    "not_vouched_for": "A view's values cannot be vouched for",
    "entity_missing": "A view has never seen the entity",
    "unavailable": "A part of the service does not answer",
    "internal": "The server failed",
}
"""Short text of each `code`; the code never changes, the text may."""

_STATUS_CODES: dict[int, str] = {404: "no_such_route", 405: "method_not_allowed", 413: "body_too_large"}

_SAYABLE: tuple[type[FeatureStoreError], ...] = (NotFound, InvalidRequest, AtOutOfRange)
"""Errors about the caller's own words. The text of any other may hold addresses and paths, so it goes to the log."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One error as a client sees it. `field` is a dotted path into the request, `near` what may have been meant."""

    status: int
    code: str
    detail: str
    field: str = ""
    hint: str = ""
    near: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    """Methods that the route has, for the Allow header of a 405."""
    instance: str = ""
    """Names this one occurrence; the log has the same name."""
    headers: tuple[tuple[str, str], ...] = ()
    """Sent with it, and no part of the document."""

    def encode(self) -> bytes:
        title = TITLES.get(self.code, TITLES["internal"])
        said = {"type": f"urn:featurestore:problem:{self.code}", "title": title, "status": self.status}
        said |= {"detail": self.detail, "code": self.code}
        optional = {"field": self.field, "hint": self.hint, "near": list(self.near)}
        optional["instance"] = self.instance
        return msgspec.json.encode(said | {name: value for name, value in optional.items() if value})


class Refused(Exception):
    """Ends a request with this problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


def invalid(detail: str, *, field: str = "", hint: str = "", near: Iterable[str] = ()) -> Refused:
    """A 422 about the request's content."""
    return Refused(Problem(422, "invalid_request", detail, field, hint, tuple(near)))


def of_error(error: FeatureStoreError) -> Problem:
    """The package's own error → what may be said of it."""
    if isinstance(error, _SAYABLE):
        near = error.near if isinstance(error, NotFound) else ()
        return Problem(error.status, error.code, error.message, error.field, error.hint, near)
    if isinstance(error, Unavailable):
        return Problem(503, "unavailable", f"{error.part} does not answer", error.part, "try again in a moment")
    return INTERNAL


INTERNAL = Problem(500, "internal", "an unexpected error ended this request; the server's log has it", hint="try again")


def of_status(status: int, path: str, known: Iterable[str] = (), allow: tuple[str, ...] = ()) -> Problem:
    """What a web framework refuses by itself → a problem with the same form as ours."""
    details = {404: f"there is no route {path!r}", 405: f"{path} takes {' or '.join(allow) or 'another method'}"}
    code = _STATUS_CODES.get(status, "invalid_request" if status < 500 else "internal")
    return Problem(status, code, details.get(status, TITLES[code]), near=tuple(known), allow=allow)
