"""Who may ask: every request is somebody's, unless the API listens where nobody else can reach it.

`/healthz` and `/readyz` are open, since probes hold no keys. Any caller may look up the services that its scopes name,
and see which those are; all else needs the scope `admin`, routes included that do not exist.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from ipaddress import ip_address
from typing import TYPE_CHECKING

from featurestore import telemetry
from featurestore.clock import Clock
from featurestore.config import Settings
from featurestore.errors import ConfigError
from featurestore.serving import keys
from featurestore.serving.callers import ANYONE, NOBODY, Caller, Rejected
from featurestore.serving.keys import Keyring, digest_of, parse_keys
from featurestore.serving.problems import Problem, Refused
from featurestore.serving.watched import WatchedFile

if TYPE_CHECKING:
    from featurestore.serving.tokens import Tokens

MAX_TOKEN = 8192
"""Bytes of a credential; identity providers that list groups write long ones."""
MAX_RECENT = 4096
"""Tokens that were checked a while ago are not checked again: a signature costs more than the rest of a request."""
LOOK_SECONDS = 0.4
"""Files are looked at this often, in a thread; a change counts at the second look."""

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
COMMON_PATHS = frozenset({"/v1/lookup", "/v1/services", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"})

_KEY = keys.PREFIX.encode()
_SCHEME = b"bearer "
_HOW = "send the header Authorization: Bearer, with an API key or a token"

Headers = Iterable[tuple[bytes, bytes]]
"""As ASGI has them: names in lower case."""


def _unauthenticated(detail: str, error: str) -> Problem:
    challenge = ("www-authenticate", f'Bearer realm="featurestore"{error}')
    return Problem(401, "unauthenticated", detail, "Authorization", _HOW, headers=(challenge,))


def _forbidden(detail: str, field: str, hint: str) -> Problem:
    challenge = ("www-authenticate", 'Bearer realm="featurestore", error="insufficient_scope"')
    return Problem(403, "forbidden", detail, field, hint, headers=(challenge,))


# One text for all that is wrong with a credential: only its holder could use more, and it may not be the holder.
_MISSING = _unauthenticated("this API answers only callers that it knows", "")
_INVALID = _unauthenticated("the credential is not valid, or not any more", ', error="invalid_token"')
_NOT_ADMIN = _forbidden("this route is for operators", "Authorization", "it needs the scope admin")
# The same for services that exist and for those that do not.
_NOT_YOURS = _forbidden("this caller may not look up that service", "service", "it needs the scope lookup:<service>")


def refusal(reason: str, problem: Problem) -> Refused:
    telemetry.ACCESS_REFUSED.labels(reason).inc()
    return Refused(problem)


def require_lookup(caller: Caller, service: str) -> None:
    """Raises Refused where the caller's scopes do not name the service, which may or may not exist."""
    if not caller.may_lookup(service):
        raise refusal("scope", _NOT_YOURS)


@dataclass(slots=True)
class Credentials:
    """What is believed. Files are followed by `Access.run`."""

    keyring: Keyring = field(default_factory=Keyring)
    keys_file: WatchedFile[Keyring] | None = None
    tokens: WatchedFile[Tokens] | None = None

    def keyrings(self) -> tuple[Keyring, ...]:
        return (self.keyring,) if self.keys_file is None else (self.keyring, self.keys_file.content)

    @property
    def files(self) -> list[WatchedFile[Keyring] | WatchedFile[Tokens]]:
        return [file for file in (self.keys_file, self.tokens) if file is not None]


class Access:
    """Knows callers by what they show. Without credentials everyone is let in as `ANYONE`."""

    def __init__(self, credentials: Credentials | None, clock: Clock) -> None:
        self._credentials, self._clock = credentials, clock
        self._recent: dict[bytes, tuple[Caller, int]] = {}

    @property
    def required(self) -> bool:
        return self._credentials is not None

    def admit(self, path: str, headers: Headers) -> Caller:
        """Whose request this is. Raises Refused with 401, and with 403 for a route that is not the caller's."""
        if self._credentials is None:
            return ANYONE
        if path in OPEN_PATHS:
            return NOBODY
        caller = self._identify(_credential(headers), self._credentials)
        if path not in COMMON_PATHS and not caller.admin:
            raise refusal("admin", _NOT_ADMIN)
        return caller

    async def run(self) -> None:
        """Follows the files until cancelled."""
        files = self._credentials.files if self._credentials is not None else []
        while files:
            await asyncio.sleep(LOOK_SECONDS)
            if any([await asyncio.to_thread(file.refresh) for file in files]):
                self._recent.clear()

    def _identify(self, token: bytes, credentials: Credentials) -> Caller:
        now = self._clock.now()
        if token.startswith(_KEY):
            return _holder(digest_of(token), credentials, now)
        if credentials.tokens is None:
            raise refusal("unknown_key", _INVALID)
        digest = sha256(token).digest()
        caller, until = self._recent.get(digest, (NOBODY, 0))
        return caller if now < until else self._verified(digest, token, credentials.tokens.content, now)

    def _verified(self, digest: bytes, token: bytes, tokens: Tokens, now: int) -> Caller:
        try:
            caller, until = tokens.verify(token, now)
        except Rejected as rejected:
            raise refusal(rejected.reason, _INVALID) from None
        if len(self._recent) >= MAX_RECENT:
            del self._recent[next(iter(self._recent))]
        self._recent[digest] = (caller, until)
        return caller


def _credential(headers: Headers) -> bytes:
    """What the one Authorization header carries. Raises Refused."""
    shown = [value for name, value in headers if name == b"authorization"]
    if not shown:
        raise refusal("missing", _MISSING)
    value = shown[0].strip()
    token = value[len(_SCHEME) :].strip()
    if len(shown) > 1 or value[: len(_SCHEME)].lower() != _SCHEME or not 0 < len(token) <= MAX_TOKEN:
        raise refusal("malformed", _INVALID)
    return token


def _holder(digest: bytes, credentials: Credentials, now: int) -> Caller:
    found = [held for ring in credentials.keyrings() if (held := ring.find(digest)) is not None]
    if not found:
        raise refusal("unknown_key", _INVALID)
    for key, caller in found:
        if key.expires is None or now < key.expires:
            return caller
    raise refusal("expired", _INVALID)


def is_local(host: str) -> bool:
    """Whether only this machine can reach what listens on `host`. A name that is not known to be local is not."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def access_to(settings: Settings, clock: Clock) -> Access:
    """What the settings say about callers of an API that listens on `settings.host`.

    Raises ConfigError where callers would have to be known and could not be, and for unusable keys.
    """
    if settings.auth == "none":
        return Access(None, clock)
    credentials = Credentials()
    if settings.api_keys:
        credentials.keyring = parse_keys(settings.api_keys, "FS_API_KEYS")
    if settings.api_keys_file is not None:
        where = str(settings.api_keys_file)
        credentials.keys_file = WatchedFile(
            "FS_API_KEYS_FILE", settings.api_keys_file, lambda content: parse_keys(_text(content, where), where)
        )
    credentials.tokens = _tokens(settings)
    if credentials.keyring.keys or credentials.files:
        return Access(credentials, clock)
    if settings.auth == "auto" and is_local(settings.host):
        return Access(None, clock)
    raise ConfigError(
        f"the read API would listen on {settings.host} and knows no callers"
        if settings.auth == "auto"
        else "FS_AUTH=required, and the read API knows no callers",
        hint="make keys with `featurestore keys new NAME --scope lookup:SERVICE --append FILE` and set "
        "FS_API_KEYS_FILE, or set FS_JWT_ISSUER, FS_JWT_AUDIENCE and FS_JWT_KEYS_FILE; where a proxy in front knows "
        "the callers, say so with FS_AUTH=none",
        field="FS_AUTH",
    )


def _text(content: bytes, where: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{where} is no text in UTF-8", field="FS_API_KEYS_FILE") from None


def _tokens(settings: Settings) -> WatchedFile[Tokens] | None:
    """Raises ConfigError unless all three of issuer, audience and keys are given, or none."""
    path = settings.jwt_keys_file
    given = {"FS_JWT_ISSUER": settings.jwt_issuer, "FS_JWT_AUDIENCE": settings.jwt_audience, "FS_JWT_KEYS_FILE": path}
    missing = [name for name, value in given.items() if not value]
    if len(missing) == len(given):
        return None
    if path is None or missing:
        what = f"tokens cannot be checked without {' and '.join(missing)}"
        raise ConfigError(what, hint="without them a token for anyone would do", field=missing[0])
    try:
        from featurestore.serving.tokens import Policy, parse_token_keys  # noqa: PLC0415 — an optional extra
    except ImportError as error:
        what = f"tokens need a package that is not installed: {error.name}"
        raise ConfigError(what, hint="pip install 'featurestore[jwt]'", field="FS_JWT_KEYS_FILE") from None
    policy = Policy(settings.jwt_issuer, settings.jwt_audience, frozenset(settings.jwt_algorithms.split(",")))
    return WatchedFile("FS_JWT_KEYS_FILE", path, lambda content: parse_token_keys(content, policy, str(path)))
