"""The ASGI app: routes, errors as JSON, health, metrics and documentation around one service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from nemo_steerlm import __version__
from nemo_steerlm.core.errors import SteerLMError
from nemo_steerlm.serving import attributes, generate, openai_routes
from nemo_steerlm.serving.docs_page import HEADERS, docs_page
from nemo_steerlm.serving.errors import HTTP_CODES, RETRY_AFTER, error_body, invalid_body, param_of, status_of
from nemo_steerlm.serving.middleware import FramingMiddleware, RequestMiddleware
from nemo_steerlm.serving.page import routes as page_routes
from nemo_steerlm.serving.page.session import Session
from nemo_steerlm.serving.service import Service


def create_app(service: Service, *, page: bool = False) -> FastAPI:
    """The app around ``service``, with the page if there is to be one. It closes the service when it ends."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(title="nemo_steerlm", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.service = service
    for module in (attributes, openai_routes, generate):
        app.include_router(module.router(service))
    _add_health(app, service)
    _add_errors(app)
    session = Session(service.settings.api_key) if page and service.settings.api_key else None
    if page:
        app.include_router(page_routes.router(session))
    app.add_middleware(RequestMiddleware, service=service, session=session)
    if service.settings.cors_origins:
        # Around the request middleware: a browser tells its page what a refusal says only where the refusal has these headers too.
        origins = list(service.settings.cors_origins)
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=["Retry-After"])
    app.add_middleware(FramingMiddleware)
    return app


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/health/live", tags=["Health"], summary="Whether the process answers")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    @app.get("/health/ready", tags=["Health"], summary="Whether new requests are taken")
    async def ready() -> JSONResponse:
        return JSONResponse({"status": "draining"}, 503) if service.draining else JSONResponse({"status": "ready"})

    @app.get("/metrics", tags=["Health"], summary="Prometheus metrics")
    async def metrics() -> Response:
        others = [one.metrics for one in service.served[1:]]
        return Response(service.metrics.text(*others), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(docs_page(app.openapi()), headers=HEADERS)


def _add_errors(app: FastAPI) -> None:
    async def known(_: Request, error: Exception) -> Response:
        assert isinstance(error, SteerLMError)
        return _error(status_of(error), error.code, str(error), param=param_of(error))

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        sentence, field = invalid_body(error)
        return _error(400, "invalid_request", sentence, param=field)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if isinstance(error.__cause__, SteerLMError):
            return await known(request, error.__cause__)
        if isinstance(error.__cause__, RequestValidationError):
            return await invalid(request, error.__cause__)
        code = HTTP_CODES.get(error.status_code, "invalid_request")
        return _error(error.status_code, code, str(error.detail), dict(error.headers or {}))

    handlers: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
        SteerLMError: known,
        RequestValidationError: invalid,
        HTTPException: http,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def _error(status: int, code: str, message: str, headers: dict[str, str] | None = None, param: str | None = None) -> JSONResponse:
    if status in RETRY_AFTER:
        headers = {"Retry-After": RETRY_AFTER[status]} | (headers or {})
    return JSONResponse(error_body(status, code, message, param), status, headers)
