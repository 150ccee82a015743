"""The routes beside the lookup: what is there, how it is, and whether this process can serve."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fastapi import APIRouter, Request, Response

from featurestore import telemetry
from featurestore.clock import SECOND
from featurestore.definitions.compiled import CompiledService, CompiledView
from featurestore.definitions.expressions import RequestField
from featurestore.monitor.freshness import FreshnessBoard
from featurestore.online.health import Finding, Level
from featurestore.registry.catalog import Catalog
from featurestore.serving import schema
from featurestore.serving.answers import SHAPES, Form
from featurestore.serving.breaker import Breaker
from featurestore.serving.callers import CALLER, NOBODY, Caller
from featurestore.serving.endpoint import LookupEndpoint
from featurestore.serving.negotiation import ARROW, ENCODINGS, JSON, wishes_of
from featurestore.serving.problems import Problem, Refused

CHECK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Parts:
    """What the routes look at. `catalog` gives None until one was loaded."""

    catalog: Callable[[], Catalog | None]
    board: FreshnessBoard
    endpoint: LookupEndpoint
    check_store: Callable[[], Awaitable[Sequence[Finding]]]
    breaker: Breaker

    def loaded(self) -> Catalog:
        catalog = self.catalog()
        if catalog is None:
            hint = "the registry could not be read yet; /readyz says more"
            raise Refused(Problem(503, "unavailable", "no definitions are loaded", "registry", hint))
        return catalog


def router(parts: Parts) -> APIRouter:
    routes = APIRouter()
    _add_lookup(routes, parts)
    _add_catalog(routes, parts)
    _add_probes(routes, parts)
    return routes


def _add_lookup(routes: APIRouter, parts: Parts) -> None:
    body = {"required": True, "content": {JSON: {"schema": schema.LookupBody.model_json_schema()}}}

    @routes.post(
        "/v1/lookup",
        summary="Feature values of some entities",
        response_model=schema.LeanAnswer | schema.FullAnswer | schema.ColumnsAnswer,
        responses={200: _other_forms(), **schema.problem_responses(404, 408, 413, 415, 422, 429, 503)},
        openapi_extra={"requestBody": body, "parameters": _parameters()},
        tags=["lookup"],
    )
    async def lookup(request: Request) -> Response:
        # Reached only where the application is mounted without its front, which answers this path first.
        query, wishes = request.url.query.encode(), wishes_of(request.headers.raw)
        answer = await parts.endpoint.respond(await request.body(), query, _caller(request), wishes)
        return Response(answer.body, answer.status, dict(answer.headers), answer.media_type)


def _caller(request: Request) -> Caller:
    """Nobody in particular, without any right, where the application is mounted without its front."""
    caller: Caller = request.scope.get(CALLER, NOBODY)
    return caller


def _parameters() -> list[dict[str, Any]]:
    plain = Form()
    shape = {"type": "string", "enum": list(SHAPES), "default": plain.shape}
    types = {"type": "string", "enum": ["true", "false"], "default": "false"}
    return [
        {"name": "shape", "in": "query", "schema": shape, "description": "The form of a JSON answer."},
        {"name": "types", "in": "query", "schema": types, "description": "Whether a JSON answer has the types."},
    ]


def _other_forms() -> dict[str, Any]:
    """What headers choose: OpenAPI knows no parameter for them."""
    return {
        "description": "Values and what they are worth. `Accept` chooses between JSON, which is the default, and an "
        "Arrow IPC stream; `Accept-Encoding` whether answers above some kilobytes are compressed.",
        "content": {ARROW: {"schema": {"type": "string", "format": "binary"}}},
        "headers": {
            "Vary": {"schema": {"type": "string"}},
            "Content-Encoding": {"schema": {"type": "string", "enum": list(ENCODINGS)}},
        },
    }


def _add_catalog(routes: APIRouter, parts: Parts) -> None:
    refusals = schema.problem_responses(503)

    @routes.get("/v1/services", summary="Services that the caller may use", tags=["catalog"], responses=refusals)
    async def services(request: Request) -> schema.Services:
        catalog, caller = parts.loaded(), _caller(request)
        names = [name for name in sorted(catalog.services) if caller.admin or caller.may_lookup(name)]
        found = [_service(catalog, name) for name in names]
        return schema.Services(revision=catalog.revision, services=found)

    @routes.get("/v1/views", summary="Views, their keys and features", tags=["catalog"], responses=refusals)
    async def views() -> schema.Views:
        catalog = parts.loaded()
        found = [_view(catalog.views[key]) for key in sorted(catalog.views)]
        return schema.Views(revision=catalog.revision, views=found)

    @routes.get("/v1/status", summary="Freshness by view and partition", tags=["operation"])
    async def status() -> schema.ServerStatus:
        catalog = parts.catalog()
        report = {
            view: {partition: schema.PartitionStatus(**asdict(seen)) for partition, seen in partitions.items()}
            for view, partitions in parts.board.report().items()
        }
        return schema.ServerStatus(revision=catalog.revision if catalog else None, views=report)


def _add_probes(routes: APIRouter, parts: Parts) -> None:
    @routes.get("/healthz", summary="The process runs; touches nothing", tags=["operation"])
    async def healthz() -> schema.Liveness:
        return schema.Liveness(status="ok")

    @routes.get(
        "/readyz",
        summary="Whether lookups can be answered from fresh parts",
        responses={503: {"model": schema.Readiness}},
        tags=["operation"],
    )
    async def readyz(response: Response) -> schema.Readiness:
        checks = [_registry_check(parts.catalog()), await _redis_check(parts.check_store, parts.breaker)]
        ready = all(check.ok for check in checks)
        response.status_code = 200 if ready else 503
        return schema.Readiness(ready=ready, checks=checks)

    @routes.get(
        "/metrics",
        summary="Prometheus metrics of this process",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
        tags=["operation"],
    )
    async def metrics() -> Response:
        return Response(telemetry.exposition(), headers={"content-type": telemetry.CONTENT_TYPE})


def _registry_check(catalog: Catalog | None) -> schema.Check:
    if catalog is None:
        return schema.Check(name="registry", ok=False, detail="it could not be read yet")
    if catalog.revision == 0:
        return schema.Check(name="registry", ok=False, detail="nothing was applied yet")
    return schema.Check(name="registry", ok=True, detail=f"revision {catalog.revision}")


async def _redis_check(check: Callable[[], Awaitable[Sequence[Finding]]], breaker: Breaker) -> schema.Check:
    """What exactly is wrong with it is for `doctor`: findings name addresses."""
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            faults = [finding.check for finding in await check() if finding.level is Level.FAULT]
    except TimeoutError:
        faults = ["reachable"]
    if not breaker.closed:
        faults.append("asked: lookups do without it")
    return schema.Check(name="redis", ok=not faults, detail=f"not {', '.join(faults)}" if faults else "answers")


def _service(catalog: Catalog, name: str) -> schema.ServiceSummary:
    versions, aliases = catalog.services[name], catalog.aliases.get(name, {})
    service = versions[aliases.get("prod", max(versions))]
    return schema.ServiceSummary(
        name=name,
        versions=sorted(versions),
        aliases=dict(aliases),
        owner=service.owner,
        description=service.description,
        entities=_service_keys(catalog, service),
        request=[_request_field(field) for field in service.request],
        features=list(service.feature_names),
    )


def _service_keys(catalog: Catalog, service: CompiledService) -> list[schema.EntityKey]:
    keys = {name: dtype for view in service.views for name, dtype in catalog.views[view].keys.items()}
    return [schema.EntityKey(name=name, type=dtype) for name, dtype in keys.items()]


def _request_field(field: RequestField) -> schema.RequestFieldSummary:
    required = field.default is None
    return schema.RequestFieldSummary(name=field.name, type=field.dtype, required=required, default=field.default)


def _view(view: CompiledView) -> schema.ViewSummary:
    return schema.ViewSummary(
        name=view.name,
        version=view.version,
        fingerprint=view.fingerprint,
        entity=view.entity,
        keys=[schema.EntityKey(name=name, type=dtype) for name, dtype in view.keys.items()],
        source=view.source.name,
        freshness_seconds=None if view.freshness is None else view.freshness / SECOND,
        ttl_seconds=None if view.ttl is None else view.ttl / SECOND,
        owner=view.owner,
        description=view.description,
        features=[schema.FeatureSummary(name=n, type=t, many=many) for n, (t, many) in view.types.items()],
    )
