"""The read API as the command line sees it. The standard library's client: others cost half a second to import."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any

from featurestore.errors import FeatureStoreError, InvalidRequest, NotFound, Unavailable, UsageError

TIMEOUT_SECONDS = 30.0
MAX_BYTES = 64 << 20

# Proxies of the environment are for the world outside, and would answer in the API's place.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))

_ERRORS: Mapping[str, type[FeatureStoreError]] = {"invalid_request": InvalidRequest, "at_out_of_range": UsageError}


class ApiNotFound(NotFound):
    """A name that the API does not know, in its own words."""

    def __init__(self, message: str, hint: str, field: str) -> None:
        super().__init__(field, "", hint=hint)
        self.message = message
        self.args = (message,)


def is_ok(url: str) -> bool:
    """Whether it answers 200 within two seconds."""
    try:
        with _OPENER.open(url, timeout=2.0) as answer:
            return bool(answer.status == 200)
    except (OSError, HTTPException):
        return False


def get(url: str, *, timeout: float = TIMEOUT_SECONDS) -> Any:
    """Raises Unavailable("api") where nothing answers, else the error that the API describes."""
    return _exchange(urllib.request.Request(url), timeout)  # noqa: S310 — `require_http` looked at it


def post(url: str, body: Any, *, timeout: float = TIMEOUT_SECONDS) -> Any:
    """As `get`, with a JSON document to send."""
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310 — as above
    return _exchange(request, timeout)


def require_http(url: str) -> str:
    """The URL without its last slash. Raises UsageError for what is no http(s) URL."""
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"{url!r} is no URL of the read API", hint="as http://127.0.0.1:8000", field="url")
    return url.rstrip("/")


def _exchange(request: urllib.request.Request, timeout: float) -> Any:
    url = request.full_url
    try:
        with _OPENER.open(request, timeout=timeout) as answer:
            return _document(answer.read(MAX_BYTES), url)
    except urllib.error.HTTPError as error:
        with error:
            raise _described(error.code, error.read(MAX_BYTES), url) from None
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise Unavailable(
            "api", f"the read API at {request.host} does not answer: {reason}",
            hint="start it with `featurestore serve` (or `featurestore dev`), or say where it is with --url",
        ) from None  # fmt: skip


def _document(raw: bytes, url: str) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        raise Unavailable("api", f"what answers at {url} is no read API: it sent no JSON",
                          hint="say where the read API is with --url") from None  # fmt: skip


def _described(status: int, raw: bytes, url: str) -> FeatureStoreError:
    """The problem document of an answer, as the error that it stands for."""
    problem = _document(raw, url)
    if not isinstance(problem, dict) or "code" not in problem:
        return Unavailable("api", f"what answers at {url} is no read API: HTTP {status}",
                           hint="say where the read API is with --url")  # fmt: skip
    code, detail = str(problem["code"]), str(problem.get("detail", problem.get("title", "")))
    field, hint = str(problem.get("field", "")), str(problem.get("hint", ""))
    near = [str(name) for name in problem.get("near", [])]
    if near and "did you mean" not in detail:
        detail += f"; did you mean {' or '.join(repr(name) for name in near)}?"
    if code == "not_found":
        return ApiNotFound(detail, hint, field)
    if status == 503:
        return Unavailable(field or "api", detail, hint=hint or "`featurestore doctor` checks every part")
    return _ERRORS.get(code, FeatureStoreError)(detail, hint=hint, field=field)
