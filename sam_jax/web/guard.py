"""Access control: checks the host, origin, token and body size of every request, and adds security headers."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import hmac
import ipaddress
import json
import re
import secrets
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sam_jax.errors import UserError

MAX_BODY = 4 << 20  # bytes of a request
TOKEN_PATTERN = r"[A-Za-z0-9_\-]{16,256}"
# A name or an IPv4 address, or an IPv6 address in brackets, and a port. Nothing that a URL may have beside them.
HOST_PATTERN = r"(?:\[(?P<v6>[0-9a-f:.]{2,45})\]|(?P<name>[a-z0-9_](?:[a-z0-9_.\-]{0,252})))(?::(?P<port>[0-9]{1,5}))?"
DEFAULT_PORTS = {"http": "80", "https": "443"}
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' blob:; connect-src 'self'; style-src 'self'; "
    "script-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def is_loopback(host: str) -> bool:
    """Returns whether only this machine can reach an address: localhost or a loopback IP address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclasses.dataclass(frozen=True)
class Access:
    """Who may send requests.

    Without a token, the Host of a request must be the loopback address, so that no other site's name can be made to
    resolve to the server. With a token, requests must contain it: as a cookie, which a first visit with ?token= sets,
    or in the Authorization header, as Bearer or as the password of Basic. Requests that a browser sends on behalf of
    another site are refused in both cases.

    Args:
        host: the address to listen on.
        token: 16 to 256 letters, digits, - and _; None to require none.

    Raises:
        UserError: other machines can reach the address and there is no token, or the token is malformed.
    """

    host: str = "127.0.0.1"
    token: str | None = None

    def __post_init__(self) -> None:
        if self.token is None and not is_loopback(self.host):
            raise UserError(f"{self.host} can be reached by others: a token is needed; see new_token()")
        if self.token is not None and not re.fullmatch(TOKEN_PATTERN, self.token):
            raise UserError("expected a token of 16 to 256 letters, digits, - and _")

    @property
    def cookie(self) -> str:
        """The name of the cookie. Cookies are shared by all ports of a host, so each server needs its own name."""
        return f"sam_jax_{hashlib.sha256((self.token or '').encode()).hexdigest()[:8]}"

    def accepts(self, token: str) -> bool:
        """Returns whether a token is the right one, in constant time."""
        return self.token is not None and hmac.compare_digest(token.encode(), self.token.encode())


def new_token() -> str:
    """Returns a random token."""
    return secrets.token_urlsafe(24)


class Guard:
    """ASGI middleware that refuses requests which `Access` does not allow, and bodies of more than `max_body` bytes."""

    def __init__(self, app: ASGIApp, access: Access, max_body: int = MAX_BODY) -> None:
        self.app, self.access, self.max_body = app, access, max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, _with_headers(send))
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        if reason := self._foreign(scope["method"], scope.get("scheme", "http"), headers):
            await _refuse(send, 403, reason)
        elif self.access.token is not None and (location := self._first_visit(scope)):
            secure = "; Secure" if scope.get("scheme") == "https" else ""
            morsel = f"{self.access.cookie}={self.access.token}; Path=/; HttpOnly; SameSite=Strict{secure}"
            await _reply(send, 303, b"", {"Location": location, "Set-Cookie": morsel})
        elif self.access.token is not None and not self._has_token(headers):
            reason = "expected the token: open the address that the command printed, or send it as Bearer"
            await _refuse(send, 401, reason, {"WWW-Authenticate": "Bearer"})
        elif not re.fullmatch("[0-9]{1,15}", length := headers.get("content-length", "0")):
            await _refuse(send, 400, "expected a Content-Length in digits")
        elif int(length) > self.max_body:
            await _refuse(send, 413, f"expected at most {self.max_body} bytes", {"Connection": "close"})
        else:
            await self.app(scope, self._bounded(receive), send)

    def _foreign(self, method: str, scheme: str, headers: Headers) -> str | None:
        """Returns why a request is refused whatever its token: its Host or origin is foreign. None if it is not."""
        hosts, origins, sites = (headers.getlist(name) for name in ("host", "origin", "sec-fetch-site"))
        if len(hosts) != 1 or len(origins) > 1 or len(sites) > 1:
            return "expected one Host, and at most one Origin and Sec-Fetch-Site"
        host = _read_host(hosts[0], scheme)
        if host is None:
            return "expected a Host such as 127.0.0.1:8009"
        if self.access.token is None and not is_loopback(host[0]):
            return "expected a Host of this machine"
        for origin in origins:
            kind, _, rest = origin.lower().partition("://")
            if _read_host(rest, kind) != host:
                return "requests of other sites are refused"
            if kind != scheme:
                return f"expected Origin {scheme}://..., got {kind}; a proxy that adds TLS must send X-Forwarded-Proto"
        if method not in SAFE_METHODS and any(site not in ("same-origin", "none") for site in sites):
            return "requests of other sites are refused"
        return None

    def _first_visit(self, scope: Scope) -> str | None:
        """Returns where to redirect a visit whose address contains the token, which must not stay there; else None."""
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = [value for name, value in query if name == "token"]
        if scope["method"] != "GET" or scope["path"] != "/" or not given or not self.access.accepts(given[0]):
            return None
        rest = urlencode([item for item in query if item[0] != "token"])
        return f"/?{rest}" if rest else "/"

    def _has_token(self, headers: Headers) -> bool:
        kind, _, value = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return self.access.accepts(value.strip())
        if kind.lower() == "basic":
            try:
                return self.access.accepts(base64.b64decode(value).decode().partition(":")[2])
            except (binascii.Error, ValueError):
                return False
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(self.access.cookie)
        except CookieError:
            return False
        return cookie is not None and self.access.accepts(cookie.value)

    def _bounded(self, receive: Receive) -> Receive:
        """Limits the size of a body while it is received, since a request may lack a Content-Length."""
        received = 0

        async def bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_body:
                raise HTTPException(413, f"expected at most {self.max_body} bytes")
            return message

        return bounded


def _read_host(text: str, scheme: str) -> tuple[str, str] | None:
    """Returns the name or address of a Host, in lower case, and its port; None if it is malformed."""
    match = re.fullmatch(HOST_PATTERN, text.lower())
    port = match and (match["port"] or DEFAULT_PORTS.get(scheme))
    if not match or not port or not 0 < int(port) < 1 << 16:
        return None
    if match["v6"] is None:
        return match["name"], str(int(port))
    try:
        return str(ipaddress.IPv6Address(match["v6"])), str(int(port))
    except ValueError:
        return None


def _with_headers(send: Send) -> Send:
    async def sender(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.update(HEADERS)
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return sender


async def _refuse(send: Send, status: int, reason: str, headers: dict[str, str] | None = None) -> None:
    kind = {"Content-Type": "application/json"}
    await _reply(send, status, json.dumps({"error": reason}).encode(), kind | (headers or {}))


async def _reply(send: Send, status: int, body: bytes, headers: dict[str, str]) -> None:
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    raw.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
