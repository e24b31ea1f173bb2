"""A page from a folder of `assets`, errors as JSON, and the loop that serves both."""

from __future__ import annotations

import os
import socket
import sys
from importlib import resources

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from sam_jax.errors import MissingFile, UserError
from sam_jax.web.guard import Access, is_loopback, new_token

KINDS = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}
PERSON = r"^\w[\w .@+\-]{0,63}$"  # how people may call themselves


def access_of(host: str, token: str | None) -> Access:
    """Who may ask a command's page: the token given, or else SAM_JAX_TOKEN, or one that is drawn where it is needed.

    Raises:
        ValueError: not a proper token.
    """
    token = token or os.environ.get("SAM_JAX_TOKEN")
    return Access(host, new_token() if token is None and not is_loopback(host) else token)


def serve_app(app: FastAPI, access: Access, port: int, greeting: str) -> None:
    """Serves until it is interrupted, and prints the greeting with the address once connections are taken.

    Args:
        port: 0 takes one that is free.

    Raises:
        OSError: the address or port can't be listened on.
    """
    with _listen(access.host, port) as listening:
        name = f"[{access.host}]" if ":" in access.host else access.host
        query = f"?token={access.token}" if access.token else ""
        print(f"{greeting} Open http://{name}:{listening.getsockname()[1]}/{query} (Ctrl-C ends)", flush=True)
        config = uvicorn.Config(app, log_level="warning", server_header=False, ws="none", timeout_graceful_shutdown=5)
        uvicorn.Server(config).run([listening])


def serve_page(app: FastAPI, folder: str) -> None:
    """The files of a folder of `assets`: index.html as /, the others under /assets."""
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


def answer_errors(app: FastAPI) -> None:
    """Every error as {"error": what was expected, what came}."""

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: StarletteHTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def not_valid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return JSONResponse({"error": f"{where}: {first['msg']}"}, 422)

    @app.exception_handler(UserError)
    async def not_possible(request: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 409)

    @app.exception_handler(MissingFile)
    @app.exception_handler(FileNotFoundError)
    async def gone(request: Request, error: FileNotFoundError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 404)

    @app.exception_handler(OSError)
    async def not_now(request: Request, error: OSError) -> JSONResponse:
        print(f"{app.title}: {error}", file=sys.stderr)
        return JSONResponse({"error": "the server could not read or write; try again"}, 503)

    @app.exception_handler(Exception)  # answered and raised again, so that uvicorn logs it with its traceback
    async def bug(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": "the server has a bug, its log says where"}, 500)


def _listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections before the address is told."""
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
