"""`POST /v1/lookup` without a framework: bytes in, bytes out."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass, replace
from time import perf_counter
from urllib.parse import parse_qs
from uuid import uuid4

from featurestore import telemetry
from featurestore.definitions.compiled import CompiledView
from featurestore.engine.kernel import Kernel
from featurestore.engine.read import ViewReader
from featurestore.errors import FeatureStoreError, NotFound, near_matches
from featurestore.registry.catalog import Catalog
from featurestore.serving import problems
from featurestore.serving.access import require_lookup
from featurestore.serving.answers import SHAPES, Form, encode
from featurestore.serving.arrow import encode_arrow
from featurestore.serving.callers import Caller
from featurestore.serving.lookup import LookupEngine
from featurestore.serving.negotiation import ARROW, JSON, NO_WISHES, VARY, Wishes, compressed
from featurestore.serving.own import with_own_features
from featurestore.serving.plan import LookupPlan, compile_plan
from featurestore.serving.problems import Problem, Refused, invalid
from featurestore.serving.requests import parse_lookup
from featurestore.serving.rows import RememberedRows, Room
from featurestore.serving.served import ServedLog

_log = telemetry.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    media_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


def problem_response(problem: Problem) -> Response:
    allow = (("allow", ", ".join(problem.allow)),) if problem.allow else ()
    return Response(problem.status, problems.MEDIA_TYPE, problem.encode(), (*allow, *problem.headers))


class Plans:
    """Plans of the catalog in use, by the service's name as requests write it (`flight_delay`, `flight_delay@3`)."""

    def __init__(
        self, current: Callable[[], Catalog | None], kernel: Kernel | None = None, room: Room | None = None
    ) -> None:
        """Without `room` no rows are remembered."""
        self._current, self._kernel, self._room = current, kernel, room
        self._catalog: Catalog | None = None
        self._plans: dict[str, LookupPlan] = {}
        self._readers: dict[str, ViewReader] = {}
        self._rows: dict[tuple[str, tuple[int, ...]], RememberedRows] = {}

    def of(self, service: str) -> LookupPlan:
        """Raises NotFound with near matches, and Refused while there is no catalog."""
        catalog = self._current()
        if catalog is None:
            hint = "the registry could not be read yet; /readyz says more"
            raise Refused(Problem(503, "unavailable", "no definitions are loaded", "registry", hint))
        if catalog is not self._catalog:
            self._catalog, self._plans = catalog, {}
            self._forget({view.fingerprint for view in catalog.views.values()})
        plan = self._plans.get(service)
        if plan is None:
            found, version = catalog.resolve(service)
            plan = self._plans[service] = compile_plan(catalog, found, version, self._reader, self._remembered)
        return plan

    def _reader(self, view: CompiledView) -> ViewReader:
        reader = self._readers.get(view.fingerprint)
        if reader is None:
            reader = self._readers[view.fingerprint] = ViewReader(view, self._kernel)
        return reader

    def _remembered(self, reader: ViewReader, features: tuple[int, ...]) -> RememberedRows | None:
        if self._room is None or not self._room.max_bytes or not features:
            return None
        name = reader.view.fingerprint, features
        if name not in self._rows:
            self._rows[name] = RememberedRows(reader, features, self._room)
        return self._rows[name]

    def _forget(self, kept: Set[str]) -> None:
        """What belongs to other views than those."""
        self._readers = {name: reader for name, reader in self._readers.items() if name in kept}
        for name in [name for name in self._rows if name[0] not in kept]:
            self._rows.pop(name).leave()


class LookupEndpoint:
    """Never raises: every fault becomes a problem document."""

    def __init__(self, plans: Plans, engine: LookupEngine, served: ServedLog) -> None:
        self._plans, self._engine, self._served = plans, engine, served
        self._meters: dict[str, tuple[Callable[..., None], ...]] = {}

    async def respond(
        self, body: bytes, query: bytes, caller: Caller, wishes: Wishes = NO_WISHES, arrived: float | None = None
    ) -> Response:
        """`arrived` is when (`perf_counter`) the caller's budget began to run, where it had to wait before this."""
        started = arrived if arrived is not None else perf_counter()
        service = ""
        try:
            request = parse_lookup(body)
            require_lookup(caller, request.service)
            form = _form(query)
            plan = self._plan(request.service, caller)
            service = plan.service.name
            entities = plan.entities.read(request.entities)
            fields = plan.fields.read(request.fields, len(entities[0]))
            budget = request.budget_ms if request.budget_ms is not None else plan.service.budget_ms
            if budget is not None:
                budget -= (perf_counter() - started) * 1e3
            answer = await self._engine.lookup(plan, entities, request.at, budget)
            if plan.service.order:
                answer = with_own_features(plan, answer, fields)
            spent = perf_counter() - started
            if wishes.arrow:
                response = Response(200, ARROW, encode_arrow(plan, answer, entities, spent * 1e3), (VARY,))
            else:
                response = Response(200, JSON, encode(plan, answer, entities, form, spent * 1e3), (VARY,))
            response = await _compressed(response, wishes)
            self._served.note(plan, entities, fields, answer)
        except Refused as refused:
            return self._refuse(service, refused.problem)
        except FeatureStoreError as error:
            return self._refuse(service, logged(error))
        except Exception as error:  # noqa: BLE001 nothing about it may reach the client
            return self._refuse(service, logged(error))
        self._count(service, spent, answer.degraded)
        return response

    def _plan(self, service: str, caller: Caller) -> LookupPlan:
        try:
            return self._plans.of(service)
        except NotFound as error:
            if error.kind != "service" or caller.every_service:
                raise
            # Its hint lists what others may ask for.
            raise NotFound(error.kind, error.name) from None

    def _count(self, service: str, seconds: float, degraded: bool) -> None:
        meters = self._meters.get(service)
        if meters is None:
            observe = telemetry.LOOKUP_DURATION.labels(service).observe
            counts = [telemetry.LOOKUPS.labels(service, outcome).inc for outcome in ("ok", "degraded")]
            meters = self._meters[service] = (observe, *counts)
        meters[0](seconds)
        meters[1 + degraded]()

    def _refuse(self, service: str, problem: Problem) -> Response:
        telemetry.LOOKUPS.labels(service, problem.code).inc()
        return problem_response(problem)


def logged(error: Exception) -> Problem:
    """The problem for an error; what a client must not see of it goes to the log, under the problem's `instance`."""
    problem = problems.of_error(error) if isinstance(error, FeatureStoreError) else problems.INTERNAL
    if problem.status < 500:
        return problem
    instance = f"urn:uuid:{uuid4()}"
    _log.error("a request failed", instance=instance, code=problem.code, exc_info=error)
    return replace(problem, instance=instance)


async def _compressed(response: Response, wishes: Wishes) -> Response:
    body, encoding = await compressed(response.body, wishes)
    if not encoding:
        return response
    return replace(response, body=body, headers=(*response.headers, ("content-encoding", encoding)))


_TYPES = {"true": True, "false": False}
_PLAIN_FORMS = {b"": Form()} | {f"shape={name}".encode(): Form(name) for name in SHAPES}


def _form(query: bytes) -> Form:
    """Other query parameters are ignored."""
    form = _PLAIN_FORMS.get(query)
    if form is not None:
        return form
    asked = parse_qs(query.decode("latin-1"), keep_blank_values=True)
    shape, types = asked.get("shape", ["lean"])[-1], asked.get("types", ["false"])[-1]
    if shape not in SHAPES:
        hint = f"expected {', '.join(SHAPES)}"
        raise invalid(f"there is no shape {shape[:64]!r}", field="shape", hint=hint, near=near_matches(shape, SHAPES))
    if types not in _TYPES:
        raise invalid(f"types is {types[:64]!r}; expected true or false", field="types")
    return Form(shape, _TYPES[types])
