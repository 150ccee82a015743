"""The read API as the command line sees it. The standard library's client: others cost half a second to import."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any

from featurestore.client.problems import error_of
from featurestore.config import Settings, variable
from featurestore.errors import AccessDenied, ConfigError, FeatureStoreError, Unavailable, UsageError

TIMEOUT_SECONDS = 30.0
MAX_BYTES = 64 << 20

KEY_VARIABLE = variable("api_key")


class _Stay(urllib.request.HTTPRedirectHandler):
    """The API redirects nobody, and who follows others takes the key with them."""

    def redirect_request(self, *args: Any) -> None:
        return None


# Proxies of the environment are for the world outside, and would answer in the API's place.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Stay())


def is_ok(url: str) -> bool:
    """Whether it answers 200 within two seconds."""
    try:
        with _OPENER.open(url, timeout=2.0) as answer:
            return bool(answer.status == 200)
    except (OSError, HTTPException):
        return False


def get(url: str, *, timeout: float = TIMEOUT_SECONDS) -> Any:
    """Raises Unavailable("api") where nothing answers, else the error that the API describes."""
    return _exchange(urllib.request.Request(url, headers=_credential()), timeout)  # noqa: S310 — `require_http` looked


def post(url: str, body: Any, *, timeout: float = TIMEOUT_SECONDS) -> Any:
    """As `get`, with a JSON document to send."""
    headers = {"content-type": "application/json", **_credential()}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310 — as above
    return _exchange(request, timeout)


def api_url(settings: Settings) -> str:
    """Where the read API of these settings is reached from this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)  # noqa: S104 — a name, no bind
    return f"{'http' if settings.tls_cert is None else 'https'}://{host}:{settings.port}"


def require_http(url: str) -> str:
    """The URL without its last slash. Raises UsageError for what is no http(s) URL."""
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"{url!r} is no URL of the read API", hint="as http://127.0.0.1:8000", field="url")
    return url.rstrip("/")


def _credential() -> dict[str, str]:
    """Raises ConfigError for what cannot be in a header."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key:
        return {}
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            f"{KEY_VARIABLE} holds what no key has", hint="expected one word, as fsk_…", field=KEY_VARIABLE
        )
    return {"authorization": f"Bearer {key}"}


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
    error = error_of(status, problem)
    if isinstance(error, AccessDenied):
        error.hint = _denied_hint(status, error.hint)
    elif status == 503 and not error.hint:
        error.hint = "`featurestore doctor` checks every part"
    return error


def _denied_hint(status: int, hint: str) -> str:
    if status == 403:
        return f"{hint}; the key in {KEY_VARIABLE} has not"
    return f"the key in {KEY_VARIABLE} is not one of the API's" if _credential() else f"set {KEY_VARIABLE} to a key"
