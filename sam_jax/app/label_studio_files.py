"""Images that are fetched from a Label Studio server, at the one address that the user has given.

Anybody who may import tasks can write a task, so the address in it is never followed. It only identifies a file, in the
uploads or in the local files storage, which is then requested from the given server, without redirects. Only images
are kept, in the project's folder.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any
from urllib.parse import SplitResult, parse_qs, quote, unquote, urlsplit

from sam_jax.data.images import decode_image, is_image_name
from sam_jax.engine.records import check_name
from sam_jax.engine.store import Store
from sam_jax.errors import UserError
from sam_jax.files import make_folder, write_atomically

FOLDER = "label_studio"  # in the project's folder
UPLOADS, LOCAL_FILES = "/data/upload/", "/data/local-files/"
MAX_FILE = 256 << 20  # bytes of an image's file
TIMEOUT = 30.0  # seconds
MAX_ADDRESS = 1024  # characters
MAX_PARTS = 64  # of a path: every end of it is compared


def file_of(address: object) -> str:
    """Returns the file that a task's address identifies: upload/1/NAME or local-files/PATH.

    Raises:
        UserError: the address is neither, too long, or its path leads out of the folder.
    """
    if isinstance(address, str) and (len(address) > MAX_ADDRESS or address.count("/") > MAX_PARTS):
        raise UserError(
            f"expected an address of at most {MAX_ADDRESS} characters and {MAX_PARTS} parts, got {len(address)} "
            f"characters: {address[:80]!r}..."
        )
    parts = _split(address if isinstance(address, str) else "")
    _, upload, name = parts.path.partition(UPLOADS)
    if upload:
        return check_name(f"upload/{unquote(name)}")
    if parts.path.endswith(LOCAL_FILES) and (path := (parse_qs(parts.query).get("d") or [""])[-1].lstrip("/")):
        return check_name(f"local-files/{path}")
    raise UserError(f"expected a task's image at {UPLOADS}... or {LOCAL_FILES}?d=..., got {str(address)[:80]!r}")


def find_images(store: Store, files: Sequence[str | None]) -> list[int | None]:
    """Returns the id of the project's image that each file (see `file_of`) is; None if no image matches, or several do.

    The root of Label Studio's local files may be above or below the folder of images, or have another name here, so the
    longest matching end of the path counts. The project has the uploads that were fetched, or all of them if its folder
    of images is Label Studio's upload folder. One pass over the project's images serves all files.
    """
    names = {file: _possible_names(file) for file in files if file is not None}
    wanted = set(itertools.chain.from_iterable(names.values()))
    found: dict[str, list[int]] = {}
    for image, name in store.rows("SELECT id, name FROM pictures") if wanted else ():
        ends = (name[at:] for at, character in enumerate(name) if character == "/")  # in any folder
        for known in (name, *ends):
            if known in wanted:
                found.setdefault(known, []).append(image)

    def match(file: str | None) -> int | None:
        same = (found.get(name, []) for name in names.get(file or "", ()))
        return next((images[0] for images in same if len(images) == 1), None)

    return [match(file) for file in files]


def _possible_names(file: str) -> list[str]:
    """Returns the names that a file may have in the project, the likeliest first; /NAME is NAME in any folder."""
    kind, _, path = file.partition("/")
    names = [file, path]
    if kind != "upload":
        parts = path.split("/")
        names += [f"/{path}", *("/".join(parts[i:]) for i in range(1, len(parts)))]
    return names


@dataclasses.dataclass(frozen=True)
class LabelStudio:
    """A Label Studio server from which images are fetched.

    Args:
        url: address of the server, such as http://localhost:8080.
        key: personal access token, or legacy token, of a user who may see the images.

    Raises:
        UserError: the address or the token is malformed.
    """

    url: str
    key: str = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        parts = _split(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise UserError(f"expected the address of a Label Studio such as http://localhost:8080, got {self.url!r}")
        if not self.key.isascii() or not self.key.isprintable() or not self.key:
            raise UserError(
                "expected a token of Label Studio in LABEL_STUDIO_API_KEY; its page Account & Settings has it"
            )

    def add_image(self, store: Store, file: str, max_pixels: int) -> int:
        """Fetches a file (see `file_of`) into the project's folder, and adds it to the store.

        Args:
            max_pixels: larger images are refused.

        Returns:
            The id of the image in the store.

        Raises:
            UserError: Label Studio refuses the request, or the file is too large or not an image.
            OSError: the server does not respond, or the file can't be written.
        """
        if not is_image_name(file):
            raise UserError(f"expected an image, got {file[:80]!r}")
        content = self._get(file)
        decode_image(io.BytesIO(content), file, max_pixels=max_pixels)
        root = store.folder.resolve() / FOLDER
        path = root / file
        make_folder(path.parent)
        write_atomically(path, content)
        store.add_images(root, [file])
        query = "SELECT pictures.id FROM pictures JOIN roots ON roots.id = root_id WHERE path = ? AND name = ?"
        ((image,),) = store.rows(query, (str(root), file))
        return image

    def _get(self, file: str) -> bytes:
        kind, _, name = file.partition("/")
        path = UPLOADS + quote(name) if kind == "upload" else f"{LOCAL_FILES}?d={quote(name, safe='')}"
        return self._ask(path, {"Authorization": self._authorization()})

    def _authorization(self) -> str:
        """Returns the Authorization header; a personal access token (JWT) is exchanged for a short-lived one first."""
        if self.key.count(".") != 2:
            return f"Token {self.key}"
        body = json.dumps({"refresh": self.key}).encode()
        answer = self._ask("/api/token/refresh", {"Content-Type": "application/json"}, body)
        try:
            return f"Bearer {json.loads(answer)['access']}"
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"expected a token from Label Studio, it answers {answer[:80]!r}") from error

    def _ask(self, path: str, headers: dict[str, str], body: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.url.rstrip("/") + path, body, headers)
        try:
            with urllib.request.build_opener(_NoRedirect).open(request, timeout=TIMEOUT) as answer:
                content = answer.read(MAX_FILE + 1)
        except urllib.error.HTTPError as error:
            raise UserError(
                f"Label Studio answers {error.code} when asked for {path[:80]}; is LABEL_STUDIO_API_KEY a token of a "
                "user who may see it?"
            ) from error
        if len(content) > MAX_FILE:
            raise UserError(f"expected a file of at most {MAX_FILE} bytes at {path[:80]}")
        return content


def _split(address: str) -> SplitResult:
    try:
        return urlsplit(address)
    except ValueError as error:  # brackets that do not enclose an IP address
        raise UserError(f"expected an address, got {address[:80]!r}: {error}") from error


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses redirects, which could lead to another server."""

    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        """Returns None, which makes the redirect an error."""
