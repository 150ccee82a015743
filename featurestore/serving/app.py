"""The read API as an ASGI application: lookups in front, FastAPI for everything that people read."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Route

from featurestore import telemetry
from featurestore.allocator import keep_freed_memory
from featurestore.clock import Clock, SystemClock
from featurestore.config import Settings
from featurestore.errors import FeatureStoreError, near_matches
from featurestore.monitor.freshness import FreshnessBoard
from featurestore.offline.lake import Lake
from featurestore.online.store import OnlineStore
from featurestore.registry.catalog import Catalog
from featurestore.registry.follow import Follower
from featurestore.registry.log import Registry
from featurestore.serving import problems
from featurestore.serving.endpoint import LookupEndpoint, Plans, logged, problem_response
from featurestore.serving.front import Front
from featurestore.serving.lookup import LookupEngine
from featurestore.serving.past import PastLookups
from featurestore.serving.problems import Problem, Refused
from featurestore.serving.routes import Parts, router

STORE_SECONDS = 1.0
"""A store that takes longer than this is as good as away: the rows are answered as `unavailable`."""

DESCRIPTION = """\
Point-in-time-correct feature values for inference. Every value says what it is worth; every error is an RFC 9457
problem document whose `code` is stable.
"""


def create_app(settings: Settings, *, clock: Clock | None = None) -> Front:
    """Connects to nothing until it is started, and starts whether or not Redis and the lake are there."""
    clock = clock or SystemClock()
    store = OnlineStore.connect(settings.redis, project=settings.project, timeout_seconds=STORE_SECONDS)
    lake = Lake(settings.lake)
    board = FreshnessBoard(store, clock, lake=lake)

    async def adopt(catalog: Catalog) -> None:
        board.watch(catalog.views.values())
        with suppress(FeatureStoreError):  # the board goes on trying, and vouches for nothing until it succeeds
            await board.refresh()
        telemetry.REGISTRY_REVISION.set(catalog.revision)

    follower = Follower(Registry(settings.lake), adopt)
    past = PastLookups(lake, store, board)
    engine = LookupEngine(store, board, past, clock)
    endpoint = LookupEndpoint(Plans(follower.current), engine)
    parts = Parts(follower.current, board, endpoint, store.check)

    @asynccontextmanager
    async def running() -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(store.close)
            stack.callback(past.close)
            stack.push_async_callback(engine.close)
            for work in (follower.run(), board.run()):
                task = asyncio.ensure_future(work)
                stack.push_async_callback(_stop, task)
            # What start-up built stays for good: without this each full collection walks it, 20 ms at a time.
            gc.collect()
            gc.freeze()
            keep_freed_memory()
            yield

    return Front(_documented(parts, running), endpoint, running)


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def _documented(parts: Parts, running: Callable[[], AbstractAsyncContextManager[None]]) -> FastAPI:
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

    async def on_http(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        headers = getattr(error, "headers", None) or {}
        allow = tuple(method.strip() for method in headers.get("Allow", "").split(",") if method)
        near = near_matches(request.url.path, paths) if status == 404 else ()
        return _shown(problems.of_status(status, request.url.path, near, allow))

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
