"""Every error this package raises on purpose.

FeatureStoreError
├── UsageError               the caller asked for something that cannot be (a bad argument, a bad spine)
│   ├── DefinitionError      feature definitions do not hold together; carries every fault at once
│   ├── ContractError        an event contract is unreadable or unsupported
│   ├── ConfigError          a setting (FS_*) is missing or malformed
│   ├── NotFound             a name is unknown; carries near matches
│   ├── InvalidRequest       a lookup or spine is malformed; names the field
│   ├── AtOutOfRange         the instant cannot be answered exactly from here
│   └── AccessDenied         the read API does not know the caller, or does not let them
├── BreakingChange           a plan would change what a published version means
├── RegistryConflict         another writer made the revision first
├── ReplayConflict           another process is sending dead letters of the topic
├── RebuildConflict          another process is rebuilding the view
├── LogTooShort              events that a view needs are neither in the lake nor in the log any more
├── Unavailable              a part (Kafka, Redis, the lake) does not answer; retry later
├── StoreRefused             a part answers, and must not be used as it is configured
├── Misrouted                an entity of an aligned source was seen in two partitions
└── Corrupt                  stored bytes are not what was written

Each class has a stable `code`, an `exit_code` for the command line and an HTTP `status`; the edges read these
tables and nothing else decides how an error looks.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches


class FeatureStoreError(Exception):
    """Base class. `message` says what is wrong and `hint` what to do next."""

    code = "error"
    exit_code = 1
    status = 500
    instance = ""
    """What the read API's log calls this occurrence, where the error comes from there."""

    def __init__(self, message: str, *, hint: str = "", field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.field = field

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        """Errors of another process arrive as they were raised, whatever their class is made from."""
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[FeatureStoreError], args: tuple[object, ...], state: dict[str, object]) -> FeatureStoreError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class UsageError(FeatureStoreError):
    code = "usage"
    exit_code = 2
    status = 422


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with a set of definitions."""

    where: str
    """Dotted path, as `AirportDelay.delay_mean_1h`."""
    problem: str
    expected: str = ""
    near: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.where}: {self.problem}"
        if self.expected:
            text += f"; expected {self.expected}"
        if self.near:
            text += f"; did you mean {' or '.join(repr(n) for n in self.near)}?"
        return text


class DefinitionError(UsageError):
    """All faults of a definition, or of a whole file of them, in one error."""

    code = "bad_definition"

    def __init__(self, faults: Iterable[Fault], *, hint: str = "") -> None:
        self.faults: tuple[Fault, ...] = tuple(faults)
        count = len(self.faults)
        head = "1 fault" if count == 1 else f"{count} faults"
        super().__init__(f"{head} in the definitions\n" + "\n".join(f"  - {f}" for f in self.faults), hint=hint)


class ContractError(UsageError):
    code = "bad_contract"


class ConfigError(UsageError):
    code = "bad_config"


class NotFound(UsageError):
    code = "not_found"
    exit_code = 1
    status = 404

    def __init__(self, kind: str, name: str, known: Iterable[str] = (), *, hint: str = "") -> None:
        self.kind, self.name = kind, name
        self.near = near_matches(name, known)
        guess = f"; did you mean {' or '.join(repr(n) for n in self.near)}?" if self.near else ""
        super().__init__(f"unknown {kind} {name!r}{guess}", hint=hint, field=kind)


class InvalidRequest(UsageError):
    code = "invalid_request"


class AtOutOfRange(UsageError):
    code = "at_out_of_range"


class AccessDenied(UsageError):
    code = "forbidden"
    exit_code = 1
    status = 403


class BreakingChange(FeatureStoreError):
    code = "breaking_change"
    exit_code = 4
    status = 409


class RegistryConflict(FeatureStoreError):
    code = "registry_conflict"
    status = 409


class ReplayConflict(FeatureStoreError):
    code = "replay_conflict"
    status = 409


class RebuildConflict(FeatureStoreError):
    code = "rebuild_conflict"
    status = 409


class LogTooShort(FeatureStoreError):
    code = "log_too_short"


class Unavailable(FeatureStoreError):
    """`part` is one of `kafka`, `redis`, `lake`, `registry`, `api`."""

    code = "unavailable"
    status = 503

    def __init__(self, part: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint, field=part)
        self.part = part


class StoreRefused(FeatureStoreError):
    code = "store_refused"
    status = 503


class Misrouted(FeatureStoreError):
    code = "misrouted"


class Corrupt(FeatureStoreError):
    code = "corrupt"


def near_matches(name: str, known: Iterable[str], limit: int = 3) -> tuple[str, ...]:
    """Names that a person who typed `name` may have meant, best first."""
    candidates: Sequence[str] = sorted(set(known))
    return tuple(get_close_matches(name, candidates, n=limit, cutoff=0.6))
