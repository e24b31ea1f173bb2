"""Serving of a page: its files from a folder of `assets`, errors as JSON, and the server itself."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from importlib import resources

import h11
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from uvicorn.protocols.http.h11_impl import H11Protocol

from sam_jax.errors import MissingFile, UserError
from sam_jax.web.guard import Access, is_loopback, new_token

KINDS = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}
REQUEST_SECONDS = 60.0  # a request of MAX_BODY needs this long at half a megabit a second
PERSON = r"^\w[\w .@+\-]{0,63}$"  # names of annotators and raters


def access_of(host: str, token: str | None) -> Access:
    """Returns who may use a command's page.

    Args:
        host: address to listen on.
        token: None means the environment variable SAM_JAX_TOKEN; if that is not set and other machines can reach the
            address, a random token.

    Raises:
        UserError: the token is malformed.
    """
    token = token or os.environ.get("SAM_JAX_TOKEN")
    return Access(host, new_token() if token is None and not is_loopback(host) else token)


def serve_app(app: FastAPI, access: Access, port: int, greeting: str) -> None:
    """Serves until interrupted. Prints the greeting and the address once connections are accepted.

    Args:
        port: 0 means any free port.

    Raises:
        OSError: the server can't listen on the address or port.
    """
    with _listen(access.host, port) as listening:
        name = f"[{access.host}]" if ":" in access.host else access.host
        query = f"?token={access.token}" if access.token else ""
        print(f"{greeting} Open http://{name}:{listening.getsockname()[1]}/{query} (Ctrl-C ends)", flush=True)
        make_server(app).run([listening])


def make_server(app: FastAPI) -> uvicorn.Server:
    """Returns the server of an application, which closes connections whose requests do not become whole."""
    config = uvicorn.Config(
        app, http=BoundedProtocol, log_level="warning", server_header=False, ws="none", timeout_graceful_shutdown=5
    )
    return uvicorn.Server(config)


class BoundedProtocol(H11Protocol):
    """HTTP on a connection that is closed when a request does not arrive in full within `REQUEST_SECONDS`.

    uvicorn itself only closes connections that wait for the next request.
    """

    _deadline: asyncio.TimerHandle | None = None  # of the request that is arriving

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expects the first request."""
        super().connection_made(transport)
        self._set_deadline()

    def data_received(self, data: bytes) -> None:
        """Takes bytes of a request, and notes whether it is whole."""
        super().data_received(data)
        self._set_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """Expects nothing any more."""
        self._drop_deadline()
        super().connection_lost(exc)

    def _set_deadline(self) -> None:
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._drop_deadline()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(REQUEST_SECONDS, self.transport.close)

    def _drop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def serve_page(app: FastAPI, folder: str) -> None:
    """Adds routes for the files of a folder of `assets`: / for index.html, and /assets/NAME for the others."""
    path = resources.files("sam_jax") / "assets" / folder
    files = {entry.name: entry.read_bytes() for entry in path.iterdir() if entry.name.endswith(tuple(KINDS))}

    def send(name: str) -> Response:
        return Response(files[name], media_type=KINDS[name.rpartition(".")[2]], headers={"Cache-Control": "no-cache"})

    @app.get("/", include_in_schema=False)
    def page() -> Response:
        return send("index.html")

    @app.get("/assets/{name}", include_in_schema=False)
    def part(name: str) -> Response:
        if name not in files:
            raise HTTPException(404, "no such file")
        return send(name)


def add_error_handlers(app: FastAPI) -> None:
    """Makes every error a JSON response with the field `error`: what was expected and what came."""

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: StarletteHTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return JSONResponse({"error": f"{where}: {first['msg']}"}, 422)

    @app.exception_handler(UserError)
    async def conflict(request: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 409)

    @app.exception_handler(MissingFile)
    @app.exception_handler(FileNotFoundError)
    async def missing(request: Request, error: FileNotFoundError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 404)

    @app.exception_handler(OSError)
    async def unavailable(request: Request, error: OSError) -> JSONResponse:
        print(f"{app.title}: {error}", file=sys.stderr)
        return JSONResponse({"error": "the server could not read or write; try again"}, 503)

    @app.exception_handler(Exception)  # answered and raised again, so that uvicorn logs it with its traceback
    async def internal_error(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": "the server has a bug, its log says where"}, 500)


def _listen(host: str, port: int) -> socket.socket:
    """Returns a socket that accepts connections, so that the address can be printed."""
    (family, kind, protocol, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(1024)
    except OSError as error:
        listening.close()
        raise OSError(f"cannot listen on {host} port {port}: {error}; say another --port") from error
    return listening
