"""What `doctor` says about those who may ask the read API."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from featurestore.clock import DAY, SystemClock, format_instant
from featurestore.config import Settings, variable
from featurestore.online.health import Finding, Level
from featurestore.serving.access import access_to, is_local
from featurestore.serving.keys import ApiKey, parse_keys
from featurestore.serving.tls import tls_options

_SOON = 14 * DAY
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def access_findings(settings: Settings, now: int) -> list[Finding]:
    """`now` in µs. Raises ConfigError for settings that the API would not start with."""
    return [*_callers(settings), *_keys(settings, now), *_files(settings), *_tls(settings)]


def _callers(settings: Settings) -> Iterator[Finding]:
    if access_to(settings, SystemClock()).required:
        yield Finding("", Level.OK, "callers must say who they are")
    elif is_local(settings.host):
        yield Finding("", Level.OK, f"anyone on this machine may ask: the API listens on {settings.host} only")
    else:
        hint = "only where a proxy in front knows the callers, and nobody gets past it"
        yield Finding("", Level.ADVICE, f"FS_AUTH=none on {settings.host}: whoever reaches it may ask", hint)


def _keys(settings: Settings, now: int) -> Iterator[Finding]:
    """Of names whose last key is over, or soon will be: another key of the same name is how keys are changed."""
    last: dict[str, ApiKey] = {}
    for key in _written(settings):
        other = last.get(key.name)
        if other is None or (other.expires is not None and (key.expires is None or key.expires > other.expires)):
            last[key.name] = key
    if last:
        yield Finding("", Level.OK, f"{len(last)} holders of API keys")
    for name, key in sorted(last.items()):
        if key.expires is not None and key.expires < now + _SOON:
            when = "expired" if key.expires <= now else "expires"
            hint = f"featurestore keys new {name} --scope {' --scope '.join(key.scopes)} --append FILE"
            yield Finding("", Level.ADVICE, f"the last key of {name} {when} at {format_instant(key.expires)}", hint)


def _written(settings: Settings) -> list[ApiKey]:
    texts = {"FS_API_KEYS": settings.api_keys}
    if settings.api_keys_file is not None:
        texts[str(settings.api_keys_file)] = settings.api_keys_file.read_text("utf-8")
    return [key for where, text in texts.items() for key in parse_keys(text, where).keys]


def _files(settings: Settings) -> Iterator[Finding]:
    """Whoever can write the keys can let themselves in. Reading them is harmless: a hash opens nothing."""
    for field in ("api_keys_file", "jwt_keys_file", "tls_ca"):
        path: Path | None = getattr(settings, field)
        if path is not None and _mode(path) & _OTHERS_WRITE:
            hint = f"chmod go-w {path}"
            yield Finding("", Level.ADVICE, f"{variable(field)}: others than its owner can write {path}", hint)
    if settings.tls_key is not None and _mode(settings.tls_key) & _OTHERS:
        hint = f"chmod 600 {settings.tls_key}"
        yield Finding("", Level.ADVICE, f"FS_TLS_KEY: others than its owner can get at {settings.tls_key}", hint)


def _mode(path: Path) -> int:
    return path.stat().st_mode


def _tls(settings: Settings) -> Iterator[Finding]:
    options = tls_options(settings)
    if options:
        clients = "from clients with a certificate" if "ssl_ca_certs" in options else "from all clients"
        yield Finding("", Level.OK, f"TLS {clients}")
