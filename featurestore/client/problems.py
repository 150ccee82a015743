"""Problem documents of the read API (RFC 9457) as the errors that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from featurestore.errors import (
    AccessDenied,
    AtOutOfRange,
    FeatureStoreError,
    InvalidRequest,
    NotFound,
    Unavailable,
    UsageError,
)

API = "api"
"""The part that is unavailable where an answer does not say which."""


class ApiNotFound(NotFound):
    """A name that the API does not know, in its own words."""

    def __init__(self, message: str, *, hint: str = "", field: str = "") -> None:
        super().__init__(field, "", hint=hint)
        self.message = message
        self.args = (message,)


def error_of(status: int, problem: Mapping[str, Any]) -> FeatureStoreError:
    """The error for a problem document and its HTTP status; `code`, `field`, `hint` and `instance` are the document's.

    Its class goes by the code, and for a code that is not known here by the status.
    """
    code, detail = str(problem.get("code", "")), str(problem.get("detail", problem.get("title", "")))
    near = tuple(str(name) for name in problem.get("near", ()))
    if near and "did you mean" not in detail:
        detail += f"; did you mean {' or '.join(repr(name) for name in near)}?"
    kind = _BY_CODE.get(code) or _BY_STATUS.get(status) or (UsageError if status < 500 else FeatureStoreError)
    error = kind(detail, hint=str(problem.get("hint", "")), field=str(problem.get("field", "")))
    error.code, error.status = code or error.code, status
    error.instance = str(problem.get("instance", ""))
    if isinstance(error, NotFound):
        error.near = near
    return error


def _unavailable(detail: str, *, hint: str, field: str) -> Unavailable:
    return Unavailable(field or API, detail, hint=hint)


_BY_CODE: Mapping[str, Callable[..., FeatureStoreError]] = {
    "not_found": ApiNotFound,
    "invalid_request": InvalidRequest,
    "body_too_large": InvalidRequest,
    "at_out_of_range": AtOutOfRange,
}
_BY_STATUS: Mapping[int, Callable[..., FeatureStoreError]] = {
    401: AccessDenied,
    403: AccessDenied,
    408: _unavailable,
    429: _unavailable,
    502: _unavailable,
    503: _unavailable,
    504: _unavailable,
}
