"""How Redis is reached, and what its errors mean here."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from redis import exceptions as redis_errors
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from featurestore.errors import ConfigError, Corrupt, FeatureStoreError, StoreRefused, Unavailable

CONNECTIONS = 32
"""Most connections of one client; a command waits for a free one."""

_SCHEMES = ("redis", "rediss", "unix")
_FORMS = "expected redis://[user:password@]host[:port][/db], rediss://… for TLS, or unix://[user:password@]/path[?db=0]"
# Anything else in a URL's query would override the timeouts and the decoding that this package relies on.
_QUERY = {"db", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server to talk to. `address` is what messages may show of its URL: no user, no password."""

    url: str
    address: str

    def __repr__(self) -> str:
        return f"Endpoint({self.address!r})"


def parse_endpoint(url: str) -> Endpoint:
    """Raises ConfigError for what is no Redis URL, without repeating it: it may hold a password."""
    try:
        parts = urlsplit(url)
        port = parts.port
        query = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
    except ValueError:
        raise ConfigError(
            f"the Redis URL cannot be read; {_FORMS}",
            field="FS_REDIS",
            hint="percent-encode the characters / ? # [ ] @ : in a password",
        ) from None
    if parts.scheme not in _SCHEMES or (parts.scheme == "unix" and not parts.path):
        raise ConfigError(f"the Redis URL has the scheme {parts.scheme[:16]!r}; {_FORMS}", field="FS_REDIS")
    database = query.get("db", "") if parts.scheme == "unix" or "db" in query else parts.path.strip("/")
    if database and not (database.isdigit() and len(database) <= 5):
        raise ConfigError(f"the Redis URL names no database by number; {_FORMS}", field="FS_REDIS")
    if foreign := sorted(set(query) - _QUERY):
        raise ConfigError(
            f"the Redis URL has the parameter {foreign[0][:32]!r}; expected one of {', '.join(sorted(_QUERY))}",
            field="FS_REDIS",
        )
    host = parts.hostname or "localhost"
    return Endpoint(url, parts.path if parts.scheme == "unix" else f"{host}:{port or 6379}")


def open_client(endpoint: Endpoint, *, timeout_seconds: float, connections: int = CONNECTIONS) -> Redis:
    """A client that connects on first use and never retries by itself.

    The library's default is ten retries: a frozen server then takes a minute to fail. Who may repeat a command, and
    how long its caller can wait, is known above.
    """
    pool = BlockingConnectionPool.from_url(
        endpoint.url,
        max_connections=connections,
        timeout=timeout_seconds,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=timeout_seconds,
        retry=Retry(NoBackoff(), 0),
        decode_responses=False,
        protocol=2,
    )
    return Redis.from_pool(pool)


@contextmanager
def translated(address: str) -> Iterator[None]:
    """Turns errors of the Redis client into this package's, with `address` as what was tried."""
    try:
        yield
    except (redis_errors.RedisError, OSError) as error:
        raise _meaning(error)(address, _brief(error)) from error
    except RuntimeError as error:
        # uvloop says so, where asyncio raises an OSError, of a connection that the server reset while it lay idle.
        if "handler is closed" not in str(error):
            raise
        raise _GONE(address, _brief(error)) from error


@dataclass(frozen=True, slots=True)
class _Meaning:
    """What one kind of error is worth to the caller."""

    kind: type[FeatureStoreError]
    problem: str
    hint: str

    def __call__(self, address: str, detail: str) -> FeatureStoreError:
        message = f"Redis at {address} {self.problem}: {detail}"
        if issubclass(self.kind, Unavailable):
            return self.kind("redis", message, hint=self.hint)
        return self.kind(message, hint=self.hint, field="redis")


_FULL = _Meaning(
    Unavailable, "is out of memory and refuses writes",
    "raise maxmemory or remove views that nobody reads; nothing is lost, writing goes on when there is room",
)  # fmt: skip
_DENIED = _Meaning(
    StoreRefused, "refuses this user", "check user and password in FS_REDIS, and the user's ACL"
)  # fmt: skip
_CLUSTER = _Meaning(
    StoreRefused, "is a node of a cluster", "use a Redis without cluster mode; this client talks to one server"
)  # fmt: skip
_LOADING = _Meaning(Unavailable, "is loading its data", "wait; it answers when it is done")
_REPLICA = _Meaning(
    Unavailable, "takes no writes", "a replica or a failover in progress; FS_REDIS must lead to the primary"
)  # fmt: skip
_SLOW = _Meaning(
    Unavailable, "did not answer in time", "see whether the server is overloaded, frozen, or out of reach"
)  # fmt: skip
_GONE = _Meaning(Unavailable, "does not answer", "start it, or correct FS_REDIS; `featurestore doctor` checks it")
_BUSY = _Meaning(Unavailable, "is held up by a script", "SCRIPT KILL ends one that only reads")
_DISK = _Meaning(
    Unavailable, "refuses writes because it cannot save", "free its disk or repair its permissions; see its log"
)  # fmt: skip
_FOREIGN = _Meaning(
    Corrupt, "holds something else under one of our keys",
    "something else writes under this project's prefix; give each application a project of its own",
)  # fmt: skip
_OLD = _Meaning(
    StoreRefused, "does not know a command", "Redis 6.2 or later, or Valkey, with EVALSHA, SCRIPT and INFO enabled"
)  # fmt: skip
_OTHER = _Meaning(Unavailable, "refused a command", "see the server's log")

# The first that fits counts, so a class stands before those it derives from.
_BY_CLASS: tuple[tuple[type[Exception], _Meaning], ...] = (
    (redis_errors.OutOfMemoryError, _FULL),
    (redis_errors.AuthenticationError, _DENIED),
    (redis_errors.NoPermissionError, _DENIED),
    (redis_errors.MovedError, _CLUSTER),
    (redis_errors.AskError, _CLUSTER),
    (redis_errors.ClusterCrossSlotError, _CLUSTER),
    (redis_errors.BusyLoadingError, _LOADING),
    (redis_errors.ReadOnlyError, _REPLICA),
    (redis_errors.MasterDownError, _REPLICA),
    (redis_errors.TimeoutError, _SLOW),
    (redis_errors.ConnectionError, _GONE),
    (OSError, _GONE),
)

# Redis 6.2 wraps the error of a command within a script into text, and some errors have no class.
_BY_TEXT: tuple[tuple[str, _Meaning], ...] = (
    ("OOM command not allowed", _FULL),
    ("READONLY", _REPLICA),
    ("MISCONF", _DISK),
    ("BUSY", _BUSY),
    ("WRONGTYPE", _FOREIGN),
    ("NOAUTH", _DENIED),
    ("NOPERM", _DENIED),
    ("unknown command", _OLD),
)


def _meaning(error: Exception) -> _Meaning:
    for kind, meaning in _BY_CLASS:
        if isinstance(error, kind):
            return meaning
    text = str(error)
    return next((meaning for part, meaning in _BY_TEXT if part in text), _OTHER)


def _brief(error: Exception) -> str:
    """One line of bounded length: what a server says may echo what it was sent."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0][:200]
