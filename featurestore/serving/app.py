"""The read API as an ASGI application: lookups in front, FastAPI for everything that people read."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Route

from featurestore import telemetry
from featurestore.allocator import keep_freed_memory
from featurestore.clock import Clock, SystemClock
from featurestore.config import Settings
from featurestore.definitions.compiled import CompiledView
from featurestore.engine.kernel import select
from featurestore.errors import FeatureStoreError, near_matches
from featurestore.monitor.freshness import FreshnessBoard
from featurestore.monitor.replica import ReplicaWatch
from featurestore.offline.lake import Lake
from featurestore.online.reads import CONNECTIONS, Reads
from featurestore.online.store import OnlineStore
from featurestore.registry.catalog import Catalog
from featurestore.registry.follow import Follower
from featurestore.registry.log import Registry
from featurestore.serving import problems
from featurestore.serving.access import OPEN_PATHS, Access, access_to
from featurestore.serving.admission import Admission, Limits
from featurestore.serving.endpoint import LookupEndpoint, Plans, logged, problem_response
from featurestore.serving.fallback import Fallbacks, LastKnown
from featurestore.serving.front import Front
from featurestore.serving.lookup import LookupEngine
from featurestore.serving.past import PastLookups
from featurestore.serving.problems import Problem, Refused
from featurestore.serving.routes import Parts, router
from featurestore.serving.rows import Room
from featurestore.serving.schema import add_security
from featurestore.serving.served import ServedLog

STORE_SECONDS = 1.0
"""A store that takes longer than this is as good as away: the rows are answered as `unavailable`."""

GARBAGE = 50_000
"""Containers that may be there beyond those of the start before cycles among them are looked for. A batch makes some
thousands, all of which go away by themselves."""

DESCRIPTION = """\
Point-in-time-correct feature values for inference. Every value says what it is worth; every error is an RFC 9457
problem document whose `code` is stable.
"""


def create_app(settings: Settings, *, clock: Clock | None = None) -> Front:
    """Connects to nothing until it is started, and starts whether or not Redis and the lake are there.

    Raises ConfigError for a kernel that cannot be had.
    """
    clock = clock or SystemClock()
    store = OnlineStore.connect(
        settings.redis,
        project=settings.project,
        timeout_seconds=STORE_SECONDS,
        keep_bytes=settings.remembered_bytes,
    )
    lake = Lake(settings.lake)
    board = FreshnessBoard(store, clock, lake=lake)

    async def adopt(catalog: Catalog) -> None:
        board.watch(catalog.views.values())
        with suppress(FeatureStoreError):  # the board goes on trying, and vouches for nothing until it succeeds
            await board.refresh()
        telemetry.REGISTRY_REVISION.set(catalog.revision)

    follower = Follower(Registry(settings.lake), adopt)
    fallbacks = Fallbacks(LastKnown(settings.last_known_bytes))
    past = PastLookups(lake, store, board, fallbacks)
    connected = _connect(settings, store, follower.current)
    engine = LookupEngine(connected.reads, board, past, fallbacks, clock)
    served = ServedLog(lake, clock, settings.served_share, settings.served_interval_seconds)
    plans = Plans(follower.current, select(settings.lookup_kernel), Room(settings.remembered_bytes))
    endpoint = LookupEndpoint(plans, engine, served)
    access = access_to(settings, clock)
    admission = Admission(_limits(settings))
    parts = Parts(follower.current, board, endpoint, store.check, engine.breaker)

    @asynccontextmanager
    async def running() -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for each in (store, *connected.others):
                stack.push_async_callback(each.close)
            stack.callback(past.close)
            stack.push_async_callback(engine.close)
            for work in (follower.run(), board.run(), access.run(), *connected.watches()):
                task = asyncio.ensure_future(work)
                stack.push_async_callback(_stop, task)
            await stack.enter_async_context(served.running())
            # What start-up built stays for good: without this each full collection walks it, 20 ms at a time.
            gc.collect()
            gc.freeze()
            gc.set_threshold(GARBAGE)
            keep_freed_memory()
            yield

    return Front(_documented(parts, access, running), endpoint, access, admission, running)


@dataclass(frozen=True, slots=True)
class _Connected:
    """How lookups reach the online store. `others` are connections beside the first, and the one to a replica."""

    reads: Reads
    others: list[OnlineStore]
    watch: ReplicaWatch | None

    def watches(self) -> list[Coroutine[Any, Any, None]]:
        return [] if self.watch is None else [self.watch.run()]


def _connect(settings: Settings, store: OnlineStore, current: Callable[[], Catalog | None]) -> _Connected:
    """Opens nothing yet."""

    def another(url: str) -> OnlineStore:
        return OnlineStore.connect(url, project=settings.project, timeout_seconds=STORE_SECONDS)

    def views() -> list[CompiledView]:
        catalog = current()
        return list(catalog.views.values()) if catalog is not None else []

    others = [another(settings.redis) for _ in range(CONNECTIONS - 1)]
    if not settings.redis_replica:
        return _Connected(Reads([store, *others]), others, None)
    replica = another(settings.redis_replica)
    watch = ReplicaWatch(store, replica, views)
    return _Connected(Reads([store, *others], replica, watch.in_step), [*others, replica], watch)


def _limits(settings: Settings) -> Limits:
    return Limits(
        at_once=settings.lookups_at_once,
        waiting=settings.lookups_waiting,
        wait_seconds=settings.lookup_wait_ms / 1e3,
        per_caller=settings.caller_lookups,
    )


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def _documented(parts: Parts, access: Access, running: Callable[[], AbstractAsyncContextManager[None]]) -> FastAPI:
    app = FastAPI(
        title="featurestore read API",
        description=DESCRIPTION,
        version=telemetry.package_version(),
        lifespan=lambda _: running(),
        redirect_slashes=False,
    )
    routes = router(parts)
    app.include_router(routes)
    paths = [route.path for route in routes.routes if isinstance(route, Route)]

    describe = app.openapi

    def described() -> dict[str, Any]:
        document = describe()
        add_security(document, OPEN_PATHS, required=access.required)
        return document

    async def on_http(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        headers = getattr(error, "headers", None) or {}
        allow = tuple(method.strip() for method in headers.get("Allow", "").split(",") if method)
        near = near_matches(request.url.path, paths) if status == 404 else ()
        return _shown(problems.of_status(status, request.url.path, near, allow))

    app.openapi = described  # type: ignore[method-assign]  # as FastAPI documents it
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(Refused, _on_refused)
    app.add_exception_handler(FeatureStoreError, _on_error)
    return app


async def _on_invalid(request: Request, error: Exception) -> Response:
    return _shown(Problem(422, "invalid_request", "a parameter of the request is not as the documentation says"))


async def _on_refused(request: Request, error: Exception) -> Response:
    return _shown(error.problem if isinstance(error, Refused) else logged(error))


async def _on_error(request: Request, error: Exception) -> Response:
    return _shown(logged(error))


def _shown(problem: Problem) -> Response:
    answer = problem_response(problem)
    return Response(answer.body, answer.status, dict(answer.headers), answer.media_type)
