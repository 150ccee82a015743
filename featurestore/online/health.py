"""Whether a Redis server is fit to be an online store."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from featurestore.errors import StoreRefused

MIN_VERSION = (6, 2)
SAFE_POLICY = "noeviction"
_SLOW_MS = 5.0


class Level(StrEnum):
    OK = "ok"
    ADVICE = "advice"
    """Works; the operator should know."""
    FAULT = "fault"
    """Must be repaired."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked."""

    check: str
    level: Level
    message: str
    hint: str = ""


Info = Mapping[str, Any]
"""The reply to INFO, parsed by the client."""


def find(info: Info, *, round_trip_ms: float, address: str) -> list[Finding]:
    """All findings on a server that answers."""
    level = Level.ADVICE if round_trip_ms > _SLOW_MS else Level.OK
    hint = "lookups make one round trip each; put the server nearer" if level is Level.ADVICE else ""
    reached = Finding("reachable", level, f"{address} answers in {round_trip_ms:.1f} ms", hint)
    return [reached, *(check(info) for check in _CHECKS)]


def refuse_unsafe(info: Info, address: str) -> None:
    """Raises StoreRefused where using the server could lose or cut values without a sign."""
    for check in (_version, _policy, _mode):
        finding = check(info)
        if finding.level is Level.FAULT:
            raise StoreRefused(f"Redis at {address}: {finding.message}", hint=finding.hint, field="redis")


def _version(info: Info) -> Finding:
    text = str(info.get("redis_version", ""))
    if not text:
        return Finding("version", Level.ADVICE, "version unknown", "let the user run INFO")
    numbers = tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
    if numbers >= MIN_VERSION:
        return Finding("version", Level.OK, f"version {text}")
    return Finding("version", Level.FAULT, f"version {text}", "use Redis 6.2 or later, or Valkey")


def _policy(info: Info) -> Finding:
    policy = str(info.get("maxmemory_policy", "unknown"))
    if policy == SAFE_POLICY:
        return Finding("maxmemory-policy", Level.OK, f"maxmemory-policy is {policy}")
    return Finding(
        "maxmemory-policy",
        Level.FAULT,
        f"maxmemory-policy is {policy}, expected {SAFE_POLICY}: evicted entities would look as if never seen",
        f"CONFIG SET maxmemory-policy {SAFE_POLICY}, and the same in redis.conf; "
        "where the user may run neither INFO nor CONFIG GET, allow INFO",
    )


def _mode(info: Info) -> Finding:
    if int(info.get("cluster_enabled", 0)):
        return Finding("mode", Level.FAULT, "runs in cluster mode", "use a server without cluster mode")
    return Finding("mode", Level.OK, f"runs as {info.get('role', 'master')}")


def _evicted(info: Info) -> Finding:
    count = int(info.get("evicted_keys", 0))
    if not count:
        return Finding("evicted-keys", Level.OK, "no key was ever evicted")
    return Finding(
        "evicted-keys",
        Level.FAULT,
        f"{count} keys were evicted since the server started: values are missing",
        f"set maxmemory-policy {SAFE_POLICY}, empty the store and restart the workers: they read the log again",
    )


def _memory(info: Info) -> Finding:
    used, limit = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if not limit:
        return Finding(
            "memory", Level.ADVICE, f"{_mebibytes(used)} used, without a limit",
            "set maxmemory below the machine's memory, so that a full store refuses writes instead of being killed",
        )  # fmt: skip
    share = used / limit
    text = f"{_mebibytes(used)} of {_mebibytes(limit)} used ({share:.0%})"
    if share < 0.8:
        return Finding("memory", Level.OK, text)
    return Finding("memory", Level.ADVICE, text, "raise maxmemory, or shorten the retention of large views")


def _persistence(info: Info) -> Finding:
    if info.get("rdb_last_bgsave_status", "ok") != "ok" or info.get("aof_last_write_status", "ok") != "ok":
        return Finding(
            "persistence", Level.FAULT, "the last save failed; the server may refuse writes",
            "free its disk or repair its permissions; see its log",
        )  # fmt: skip
    if int(info.get("aof_enabled", 0)):
        return Finding("persistence", Level.OK, "append-only file is on")
    return Finding(
        "persistence", Level.ADVICE, "append-only file is off: a restart loses values, which are then replayed",
        "CONFIG SET appendonly yes shortens recovery; the lake remains the record either way",
    )  # fmt: skip


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"


_CHECKS: tuple[Callable[[Info], Finding], ...] = (_version, _mode, _policy, _evicted, _memory, _persistence)
