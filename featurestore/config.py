"""Settings: every `FS_*` variable of the environment, read once into one frozen object."""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ByteSize, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from featurestore.errors import ConfigError, near_matches

PREFIX = "FS_"
EMBEDDED = "embedded"
"""The value of `FS_KAFKA` and `FS_REDIS` that starts the part inside the process group."""
JWT_ALGORITHMS = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
)  # fmt: skip
"""Those with a public key: no setting can turn on `none` or a shared secret."""

_log = logging.getLogger(__name__)

_PASSWORD = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)(?P<user>[^:@/\s]*):[^/\s]*@", re.IGNORECASE)
_BROKER = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:,/@\[\]]+):(?P<port>\d{1,5})")


def redact(text: str) -> str:
    """`text` with the password of every URL in it replaced by `***`."""
    return _PASSWORD.sub(r"\g<scheme>\g<user>:***@", text)


def _brokers(text: str) -> str:
    if text == EMBEDDED:
        return text
    for part in text.split(","):
        match = _BROKER.fullmatch(part.strip())
        if match is None or not 0 < int(match["port"]) < 65536:
            raise ValueError("expected host:port, several of them with commas, or 'embedded'")
    return ",".join(part.strip() for part in text.split(","))


def _redis_url(text: str) -> str:
    if text == EMBEDDED or re.match(r"(redis|rediss|unix)://.", text):
        return text
    raise ValueError("expected redis://host:port/db, rediss://…, unix:///path or 'embedded'")


def _algorithms(text: str) -> str:
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in JWT_ALGORITHMS]
    if unknown:
        raise ValueError(f"expected names with commas, of {', '.join(JWT_ALGORITHMS)}")
    return ",".join(names)


def _replica_url(text: str) -> str:
    if not text or re.match(r"(redis|rediss|unix)://.", text):
        return text
    raise ValueError("expected redis://host:port/db, rediss://… or unix:///path")


class Settings(BaseSettings):
    """What the environment says. Field `x` is the variable `FS_X`; an empty variable counts as absent."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, hide_input_in_errors=True
    )

    kafka: Annotated[str, AfterValidator(_brokers)] = Field(
        "127.0.0.1:9092", description="Bootstrap servers, as host:port,host:port; `embedded` for development."
    )
    redis: Annotated[str, AfterValidator(_redis_url)] = Field(
        "redis://127.0.0.1:6379/0", description="URL of the online store; `embedded` for development."
    )
    lake: str = Field("lake", description="Directory or object-store URL of the lake and the registry.")
    definitions: str = Field("", description="Module or .py file of the definitions that `plan` and `apply` take.")
    schemas: Path | None = Field(None, description="Directory of event contracts; default `schemas/` beside them.")
    compute: Literal["auto", "cpu", "gpu"] = Field("auto", description="Where kernels run; `gpu` fails without one.")
    log: Literal["json", "console"] = Field("json", description="Form of the log lines on stderr.")
    project: str = Field(
        "fs",
        pattern=r"^[a-z][a-z0-9-]{0,31}$",
        description="Prefix of consumer groups, Redis keys and shuffle topics: two projects can share the parts.",
    )
    lake_interval_seconds: float = Field(
        5.0, ge=0.05, le=3600, description="Events are appended to the lake at least this often."
    )
    batch_records: int = Field(
        40_000, ge=1, le=1_000_000, description="Most records that a lane takes from Kafka at a time."
    )
    state_bytes: ByteSize = Field(
        ByteSize(1 << 30), ge=1 << 20, description="Memory for a worker's state arrays, as 1GiB; the coldest go first."
    )
    stop_share: float = Field(
        0.5, gt=0, le=1, description="Share of dead letters in the last records that stops a partition."
    )
    host: str = Field("127.0.0.1", min_length=1, description="Address that the read API listens on.")
    port: int = Field(8000, ge=0, le=65535, description="Port that the read API listens on; 0 takes a free one.")
    auth: Literal["auto", "none", "required"] = Field(
        "auto",
        description="Whether callers must say who they are; `auto`: unless the API listens on this machine only and "
        "neither keys nor tokens are configured.",
    )
    api_keys: str = Field("", description="API keys, as lines of NAME SCOPES sha256:HEX [EXPIRY].")
    api_keys_file: Path | None = Field(None, description="File with such lines; read again when it changes.")
    jwt_issuer: str = Field("", description="`iss` that tokens must have.")
    jwt_audience: str = Field("", description="`aud` that tokens must have, or have among others.")
    jwt_keys_file: Path | None = Field(
        None, description="The issuer's public keys, PEM or a JSON Web Key Set; read again when it changes."
    )
    jwt_algorithms: Annotated[str, AfterValidator(_algorithms)] = Field(
        "RS256,ES256,EdDSA", description="Signatures that tokens may have, with commas."
    )
    tls_cert: Path | None = Field(None, description="Certificate chain of the read API, PEM; unset serves plain HTTP.")
    tls_key: Path | None = Field(None, description="Its private key, PEM, without a passphrase.")
    tls_ca: Path | None = Field(
        None, description="Certificates, PEM: only clients with a certificate of one of these may connect."
    )
    api_key: SecretStr | None = Field(None, description="Key that the command line shows to the read API.")
    redis_replica: Annotated[str, AfterValidator(_replica_url)] = Field(
        "", description="URL of a replica that slow reads of lookups are repeated on; empty: none are."
    )
    last_known_bytes: ByteSize = Field(
        ByteSize(64 << 20),
        ge=0,
        description="Memory of an API process for the last values of views whose `on_stale` is `last_known(…)`.",
    )
    remembered_bytes: ByteSize = Field(
        ByteSize(64 << 20),
        ge=0,
        description="Memory of an API process for rows that still hold, and as much again for values; 0 keeps none.",
    )
    lookups_at_once: int = Field(
        300,
        ge=1,
        le=100_000,
        description="Lookups under way in an API process; one counts 1, and 1 more per 256 bytes of its body.",
    )
    lookups_waiting: int = Field(
        1_000, ge=0, le=1_000_000, description="Lookups that may wait for the others, counted in the same way."
    )
    lookup_kernel: Literal["numpy", "numba"] = Field(
        "numpy", description="What evaluates lookups; `numba` compiles it at the start, and needs featurestore[fast]."
    )
    lookup_wait_ms: float = Field(
        50.0, gt=0, le=60_000, description="How long a lookup may wait until it is refused with 503."
    )
    caller_lookups: int = Field(
        0, ge=0, le=1_000_000, description="Lookups of one caller, under way or waiting, in a process; 0: no quota."
    )
    connections: int = Field(
        1_000, ge=1, le=1_000_000, description="Open connections to an API process; lookups on more are refused."
    )
    served_share: float = Field(
        0.0, ge=0, le=1, description="Share of the answers that the read API records in the lake; 0 records none."
    )
    served_interval_seconds: float = Field(
        60.0, ge=0.05, le=3600, description="Recorded answers are appended to the lake at least this often."
    )
    metrics_host: str = Field("127.0.0.1", min_length=1, description="Address that a worker serves its metrics on.")
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of a worker's metrics; 0 takes a free one and logs it; unset serves none.",
    )
    shuffle_partitions: int = Field(
        0, ge=0, le=4096, description="Partitions of a new shuffle topic; 0 takes the source topic's number."
    )

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Without the passwords of URLs, since settings end up in logs and tracebacks."""
        for name, value in super().__repr_args__():
            yield name, redact(value) if isinstance(value, str) else value


def variable(field: str) -> str:
    """The environment's name of a field."""
    return PREFIX + field.upper()


def unknown_variables(environ: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """`FS_*` names in `environ` that no setting has, each with what may have been meant."""
    known = [variable(field) for field in Settings.model_fields]
    return {
        name: near_matches(name, known)
        for name in sorted(environ)
        if name.upper().startswith(PREFIX) and name.upper() not in known
    }


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment; `overrides` (by field name, not None) win, as flags of a command do.

    Unknown `FS_*` variables are logged as warnings, since a typing error there is a silent outage otherwise.
    Raises ConfigError that names every variable that is wrong.
    """
    for name, near in unknown_variables(os.environ).items():
        guess = f"; did you mean {' or '.join(near)}?" if near else ""
        _log.warning("unknown environment variable %s%s", name, guess)
    given = {field: value for field, value in overrides.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        raise _config_error(error) from None


def _config_error(error: ValidationError) -> ConfigError:
    faults = [(variable(str(e["loc"][0])), e["msg"].removeprefix("Value error, ")) for e in error.errors()]
    names = {name for name, _ in faults}
    hint = "`featurestore doctor` checks every part"
    linked = [name for name in sorted(names) if os.environ.get(name, "").startswith("tcp://")]
    if linked:
        service = linked[0].removesuffix("_PORT").lower().replace("_", "-")
        hint = f"Kubernetes sets {linked[0]} for a service that is named `{service}`: use enableServiceLinks: false"
    return ConfigError("; ".join(f"{n}: {what}" for n, what in faults), hint=hint, field=", ".join(sorted(names)))
