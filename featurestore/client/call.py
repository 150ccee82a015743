"""One lookup as seen by the client, without any I/O: what is sent, how long it may take, what an answer means."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any

import httpx
import msgspec

from featurestore.client.contents import NoAnswer, read_arrow, read_lean
from featurestore.client.problems import API, error_of
from featurestore.client.result import LookupResult
from featurestore.clock import Instant, format_instant, to_instant
from featurestore.errors import FeatureStoreError, InvalidRequest, Unavailable

MAX_ENTITIES = 1_000
"""What the API answers at a time."""
ARROW_ENTITIES = 250
"""From so many on an answer travels as Arrow, unless the caller says how."""
MAX_ANSWER = 256 << 20
"""Bytes, unpacked: several times what a thousand entities with five hundred features take."""
UNBUDGETED_SECONDS = 30.0
"""What a lookup may take for which neither the call nor the client names a budget."""
LEAST_BUDGET_MS = 1.0
"""That a second attempt is given, whatever the first has left."""

LEAN_PATH, ARROW_PATH = "/v1/lookup?types=true", "/v1/lookup"
ARROW = "application/vnd.apache.arrow.stream"

_REPEATABLE = (httpx.NetworkError, httpx.RemoteProtocolError)
"""Where no answer began: the connection was refused, reset or closed. Lookups change nothing, and can be repeated."""
_BUSY = (429, 503)


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked. `arrow` is how the answer travels."""

    service: str
    entities: bytes
    """JSON: key column → values."""
    rows: int
    at: str | None
    request: msgspec.Raw | None
    arrow: bool

    def body(self, budget_ms: float | None) -> bytes:
        said = {"service": self.service, "entities": msgspec.Raw(self.entities)}
        optional = {"at": self.at, "budget_ms": budget_ms, "request": self.request}
        return _encode(said | {name: value for name, value in optional.items() if value is not None})


def question(
    service: str, entities: Mapping[str, Any], at: Instant | None, request: Mapping[str, Any] | None, arrow: bool | None
) -> Question:
    """Raises InvalidRequest that names the field."""
    columns = {name: _column(f"entities.{name}", column) for name, column in entities.items()}
    rows = max(map(len, columns.values()), default=0)
    if rows > MAX_ENTITIES:
        raise InvalidRequest(
            f"{rows:,} entities; at most {MAX_ENTITIES:,} are answered at a time",
            hint="split them; parts that hold for the same instant need the first one's `at`, and `service@version`",
            field=f"entities.{next(iter(entities))}",
        )
    try:
        instant = None if at is None else format_instant(to_instant(at))
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(f"at: {error}", field="at") from None
    fields = None if request is None else msgspec.Raw(_encoded("request", request))
    arrow = rows >= ARROW_ENTITIES if arrow is None else arrow
    return Question(service, _encoded("entities", columns), rows, instant, fields, arrow)


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer of HTTP."""

    status: int
    headers: httpx.Headers
    body: bytes


class TimeLeft(Mapping[str, float]):
    """The timeouts of a request as httpx takes them: each step may take what is left when it begins."""

    def __init__(self, until: float) -> None:
        self._until = until

    def __getitem__(self, step: str) -> float:
        return max(self._until - monotonic(), 0.001)

    def __iter__(self) -> Iterator[str]:
        return iter(("connect", "read", "write", "pool"))

    def __len__(self) -> int:
        return 4


class Call:
    """One lookup, from the question to the answer; whoever does the I/O asks it what to do next.

    It is repeated at most once, while its budget lasts: where the connection was lost before an answer began, and where
    the API is too busy and says to come back within the budget.
    """

    def __init__(self, asked: Question, api: str, budget_ms: float | None, allowance_ms: float) -> None:
        self._asked, self._api, self._budget_ms = asked, api, budget_ms
        self._started = monotonic()
        budget = UNBUDGETED_SECONDS if budget_ms is None else budget_ms / 1e3
        self._until = self._started + budget
        self._deadline = self._until + allowance_ms / 1e3
        self._repeated = False

    @property
    def seconds_left(self) -> float:
        """Until an answer is no longer waited for."""
        return max(self._deadline - monotonic(), 0.0)

    def request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """The request to send now, with the budget that is left now."""
        budget_ms = self._budget_ms
        if self._repeated and budget_ms is not None:
            budget_ms = max(self._left() * 1e3, LEAST_BUDGET_MS)
        return http.build_request(
            "POST",
            ARROW_PATH if self._asked.arrow else LEAN_PATH,
            content=self._asked.body(budget_ms),
            headers=self._headers(budget_ms),
            extensions={"timeout": TimeLeft(self._deadline)},
        )

    def _headers(self, budget_ms: float | None) -> dict[str, str]:
        # The budget also stands in the body; there it is read only after the API let the lookup in.
        headers = {} if budget_ms is None else {"x-budget-ms": f"{budget_ms:.3f}"}
        return headers | {"accept": ARROW} if self._asked.arrow else headers

    def taken(self, size: int) -> None:
        """Looks at how much of the answer there is so far. Raises Unavailable where it is too much, or too late."""
        if size > MAX_ANSWER:
            raise self._no_api(f"it sent more than {MAX_ANSWER >> 20} MiB")
        if monotonic() > self._deadline:
            raise self.too_late()

    def lost(self, error: httpx.TransportError) -> None:
        """What to do where no answer began: returns where the call is to be repeated, and raises where not."""
        if isinstance(error, httpx.TimeoutException):
            raise self.too_late(error) from error
        if self._repeated or not isinstance(error, _REPEATABLE) or self._left() <= 0:
            hint = "check the address, and /readyz there"
            raise Unavailable(API, f"the read API at {self._api} does not answer: {error}", hint=hint) from error
        self._repeated = True

    def broken_off(self, error: httpx.HTTPError) -> FeatureStoreError:
        """Where an answer began, and did not end."""
        if isinstance(error, httpx.TimeoutException):
            return self.too_late(error)
        return Unavailable(API, f"the read API at {self._api} broke off its answer: {error}", hint="ask again")

    def too_late(self, error: httpx.TimeoutException | None = None) -> Unavailable:
        waited = f"within {(monotonic() - self._started) * 1e3:.0f} ms"
        if isinstance(error, httpx.PoolTimeout):
            hint = "let the client have more `connections`, or ask less at once"
            return Unavailable(API, f"no connection to the read API at {self._api} became free {waited}", hint=hint)
        hint = "do without, as for values with the status `deadline`"
        return Unavailable(API, f"the read API at {self._api} did not answer {waited}", hint=hint)

    def pause(self, reply: Reply) -> float | None:
        """Seconds after which to ask again; None where the reply stands."""
        after = reply.headers.get("retry-after", "")
        if self._repeated or reply.status not in _BUSY or not (after.isascii() and after.isdigit()):
            return None
        if len(after) > 6 or int(after) >= self._left():
            return None
        self._repeated = True
        return float(after)

    def result(self, reply: Reply) -> LookupResult:
        """Raises the error that the reply stands for."""
        if reply.status != httpx.codes.OK:
            raise self._described(reply)
        try:
            arrow = reply.headers.get("content-type") == ARROW
            result = read_arrow(reply.body) if arrow else read_lean(reply.body, self._asked.entities)
        except NoAnswer as error:
            raise self._no_api(f"it answered with {error}") from error
        if len(result) != self._asked.rows:
            raise self._no_api(f"it answered with {len(result)} rows for {self._asked.rows}")
        return result

    def _left(self) -> float:
        return self._until - monotonic()

    def _described(self, reply: Reply) -> FeatureStoreError:
        try:
            problem = msgspec.json.decode(reply.body, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError):
            problem = {}
        return error_of(reply.status, problem) if "code" in problem else self._no_api(f"HTTP {reply.status}")

    def _no_api(self, reason: str) -> Unavailable:
        return Unavailable(API, f"what answers at {self._api} is no read API: {reason}", hint="check the address")


def _column(name: str, column: Any) -> list[Any]:
    values = list(column) if isinstance(column, tuple) else _converted(column)
    if not isinstance(values, list):
        hint = f'as {{"{name.partition(".")[2]}": ["JFK", "LGA"]}}'
        detail = f"{name} is a {type(column).__name__}, expected a list with a value for each entity"
        raise InvalidRequest(detail, hint=hint, field=name)
    if bytes in set(map(type, values)):
        # As JSON they would become base64, and so the keys of other entities.
        raise InvalidRequest(f"{name} has bytes in it, expected text", hint="decode them", field=name)
    return values


def _encoded(name: str, value: Any) -> bytes:
    try:
        return _encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidRequest(f"{name} cannot be written as JSON: {error}", field=name) from None


def _converted(value: Any) -> Any:
    """Columns and scalars of NumPy, pandas, Polars and Arrow as Python's own; anything else as it is."""
    for name in ("to_pylist", "to_list", "tolist", "as_py", "item"):
        convert: Callable[[], Any] | None = getattr(value, name, None)
        if convert is not None:
            return convert()
    return value


def _plain(value: Any) -> Any:
    converted = _converted(value)
    if converted is value:
        raise TypeError(f"a {type(value).__name__} is no value of a key or a field")
    return converted


_encode = msgspec.json.Encoder(enc_hook=_plain).encode
