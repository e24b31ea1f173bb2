"""A rating page for one person on this machine: the standard library's web server, bound to the loopback address.

    GET  /                      the page
    GET  /api/state[?job=N]     what to show: the job asked for, or else the first without a rating
    GET  /api/jobs/N/VIEW.png   a view of it
    POST /api/ratings           {"job": N, "rating": 1-10, "seconds": S}; answers like /api/state

The page learns neither the source of a mask nor which masks are of one object. Requests with another Host than the
loopback address, or from another Origin, are refused: no other site that is open in the browser can rate.
"""

from __future__ import annotations

import json
import re
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any
from urllib.parse import parse_qs, urlsplit

from sam_jax.evals.rating.study import Study
from sam_jax.evals.rating.views import VIEWS, render

HOST = "127.0.0.1"
MAX_BODY = 4096  # bytes
POLICY = (
    "default-src 'none'; img-src 'self'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


class RatingServer(ThreadingHTTPServer):
    """Serves a study on the loopback address.

    Example:
        with RatingServer(Study(folder), port=8000) as server:
            server.serve_forever()

    Args:
        port: 0 takes one that is free; see `url`.

    Raises:
        OSError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, study: Study, port: int = 0) -> None:
        self.study = study
        self.page = (resources.files("sam_jax") / "assets" / "rate.html").read_bytes()
        super().__init__((HOST, port), _Handler)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}/"

    @property
    def hosts(self) -> tuple[str, ...]:
        """What a Host header may say."""
        return f"{HOST}:{self.server_port}", f"localhost:{self.server_port}"


class _Refused(Exception):
    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: RatingServer
    server_version = "sam-jax"
    timeout = 30  # seconds that a connection may be silent

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, work: Any) -> None:
        try:
            self._check_site()
            self._send(HTTPStatus.OK, *work())
        except _Refused as error:
            self._send_error(error.status, str(error))
        except (ValueError, FileNotFoundError) as error:
            self._send_error(HTTPStatus.BAD_REQUEST, str(error))
        except OSError as error:  # a full disk, say: the page must not take it for a rating
            self._send_error(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))

    def _check_site(self) -> None:
        if self.headers.get("Host") not in self.server.hosts:
            raise _Refused(HTTPStatus.FORBIDDEN, f"expected Host {' or '.join(self.server.hosts)}")
        origin = self.headers.get("Origin")
        if origin is not None and origin.removeprefix("http://") not in self.server.hosts:
            raise _Refused(HTTPStatus.FORBIDDEN, "requests of other sites are refused")

    def _get(self) -> tuple[str, bytes]:
        url = urlsplit(self.path)
        if url.path == "/":
            return "text/html; charset=utf-8", self.server.page
        if url.path == "/api/state":
            asked = parse_qs(url.query).get("job")
            return self._state(self.server.study.next_job() if asked is None else self._job(asked[0]))
        view = re.fullmatch(r"/api/jobs/([0-9]{1,9})/([a-z_]+)\.png", url.path)
        if view and view[2] in VIEWS:
            return "image/png", render(self.server.study.jobs[self._job(view[1])], view[2])
        raise _Refused(HTTPStatus.NOT_FOUND, "no such page")

    def _post(self) -> tuple[str, bytes]:
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,9}", length):
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "expected a Content-Length")
        if int(length) > MAX_BODY:
            self.close_connection = True
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"expected at most {MAX_BODY} bytes")
        body = self.rfile.read(int(length))
        if self.path != "/api/ratings":
            raise _Refused(HTTPStatus.NOT_FOUND, "no such page")
        if self.headers.get_content_type() != "application/json":
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected application/json")
        try:
            content = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"expected JSON: {error}") from error
        self.server.study.rate(content)
        return self._state(self.server.study.next_job())

    def _job(self, text: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", text) or int(text) >= len(self.server.study.jobs):
            raise _Refused(HTTPStatus.NOT_FOUND, f"expected a job of 0 to {len(self.server.study.jobs) - 1}")
        return int(text)

    def _state(self, number: int | None) -> tuple[str, bytes]:
        study = self.server.study
        state: dict[str, Any] = {"job": number, "jobs": len(study.jobs), "rated": len(study.ratings)}
        if number is not None:
            given = study.ratings.get(number)
            state["rating"] = given and given.rating
            state["prompt"] = "point" if study.jobs[number].point else "box"
        return "application/json", json.dumps(state).encode()

    def _send_error(self, status: HTTPStatus, reason: str) -> None:
        self._send(status, "application/json", json.dumps({"error": reason}).encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Errors alone: the terminal shows the address."""

    def log_error(self, format: str, *arguments: Any) -> None:
        print(f"sam-jax rate: {format % arguments}", file=sys.stderr)
