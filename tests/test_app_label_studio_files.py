"""Images in Label Studio: how those of the project are recognised, and how others are fetched."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest

from cases.app import make_store, write_images
from sam_jax.app.label_studio_files import LabelStudio, file_of, find_images
from sam_jax.engine.store import Store

PERSONAL, LEGACY = "head.refresh.signature", "0123456789abcdef"
PHOTO = "upload/1/b0a1f543-my_photo_\u00fc_1.png"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    image = (write_images(tmp_path_factory.mktemp("uploads"), 1) / "0.png").read_bytes()
    return {
        "/data/upload/1/b0a1f543-my_photo_\u00fc_1.png": image,
        "/data/local-files/?d=deep/new one.png": image,
        "/data/upload/1/page.png": b"<html>",
    }


@pytest.fixture(scope="module")
def server(files):
    """Responds to requests as Label Studio 1.23.2 does, and records them in `asked`."""
    asked = []

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            good = self.path == "/api/token/refresh" and body == {"refresh": PERSONAL}
            self.answer(200 if good else 401, b'{"access": "head.access.signature"}')

        def do_GET(self):
            asked.append(self.path)
            if self.headers["Authorization"] not in (f"Token {LEGACY}", "Bearer head.access.signature"):
                self.answer(401, b"{}")
            elif self.path == "/data/upload/1/moved.png":
                self.send_response(302)
                self.send_header("Location", "/data/upload/1/page.png")
                self.end_headers()
            else:
                content = files.get(unquote(self.path))
                self.answer(404 if content is None else 200, content or b"")

        def answer(self, status, content):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.asked = asked
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path, 2)


@pytest.mark.parametrize(
    ("address", "file"),
    [
        ("/data/upload/1/b0a1f543-my_photo_%C3%BC_1.png", PHOTO),
        ("http://ls.example/sub/data/upload/1/a.png", "upload/1/a.png"),
        ("/data/local-files/?d=photos/deep%20er/1.png", "local-files/photos/deep er/1.png"),
        ("http://ls.example/data/local-files/?d=x&d=%2Fphotos%2F1.png", "local-files/photos/1.png"),
    ],
)
def test_an_address_means_an_upload_or_a_local_file(address, file):
    assert file_of(address) == file


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1/secret.png",
        "file:///etc/passwd",
        "s3://bucket/1.png",
        "/data/local-files/",
        "/data/local-files/?d=../../etc/passwd",
        "/data/upload/../../api/current-user/token",
        "/data/upload/1/%2e%2e/%2e%2e/export.png",
        None,
        7,
    ],
)
def test_other_addresses_and_ways_out_of_the_folder_are_refused(address):
    with pytest.raises(ValueError, match="expected a"):
        file_of(address)


def test_images_of_the_project_are_found_by_the_end_of_their_path(tmp_path):
    store = Store(tmp_path / "project")
    names = ["1.png", "deep/1.png", "deep/2.png", "1/0a1b2c3d-cat.png", "x/3.png", "y/3.png"]
    store.add_images(tmp_path, names)
    found = {name: number for number, name in enumerate(names, 1)}
    assert find_images(store, ["local-files/photos/deep/1.png"]) == [found["deep/1.png"]]
    assert find_images(store, ["local-files/photos/1.png"]) == [found["1.png"]]
    assert find_images(store, ["local-files/2.png"]) == [found["deep/2.png"]]  # Label Studio's root lies in the folder
    assert find_images(store, ["local-files/3.png"]) == [None]  # two are called so
    assert find_images(store, ["local-files/x/3.png"]) == [found["x/3.png"]]
    assert find_images(store, ["upload/1/0a1b2c3d-cat.png"]) == [found["1/0a1b2c3d-cat.png"]]
    assert find_images(store, ["upload/1/1.png"]) == [None]  # somebody else's 1.png


@pytest.mark.parametrize("key", [PERSONAL, LEGACY])
def test_what_the_project_does_not_have_is_fetched_once_and_kept(server, store, files, key):
    assert find_images(store, [PHOTO]) == [None]
    number = LabelStudio(server.url + "/", key).add_image(store, PHOTO, 10_000)
    assert find_images(store, [PHOTO]) == [number]
    assert store.image(number).path.read_bytes() == files["/data/" + PHOTO]
    assert store.image(number).path.is_relative_to(store.folder.resolve() / "label_studio")
    other = LabelStudio(server.url, key).add_image(store, "local-files/deep/new one.png", 10_000)
    assert find_images(store, ["local-files/deep/new one.png"]) == [other] != [number]
    assert len(store.images()) == 4


@pytest.mark.parametrize(
    ("file", "key", "why"),
    [
        (PHOTO, "wrong", "answers 401"),
        (PHOTO, "not.a.token", "answers 401"),
        ("upload/1/gone.png", LEGACY, "answers 404"),
        ("upload/1/moved.png", LEGACY, "answers 302"),
        ("upload/1/page.png", LEGACY, "image cannot be decoded"),
        ("upload/1/table.csv", LEGACY, "expected an image"),
    ],
)
def test_nothing_is_kept_of_what_is_no_image_or_not_given_away(server, store, file, key, why):
    with pytest.raises(ValueError, match=why):
        LabelStudio(server.url, key).add_image(store, file, 10_000)
    assert len(store.images()) == 2
    assert not [path for path in store.folder.rglob("label_studio/**/*") if path.is_file()]
    assert "/data/upload/1/table.csv" not in server.asked


def test_too_large_a_image_is_refused(server, store):
    with pytest.raises(ValueError, match="pixels, above the 100 allowed"):
        LabelStudio(server.url, LEGACY).add_image(store, PHOTO, 100)


@pytest.mark.parametrize("url", ["localhost:8080", "file:///etc", "http://", "http://me:pw@host", "http://host/?x=1"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ValueError, match="expected the address"):
        LabelStudio(url, LEGACY)


def test_a_key_is_needed_and_is_not_shown():
    with pytest.raises(ValueError, match="LABEL_STUDIO_API_KEY"):
        LabelStudio("http://localhost:8080", "")
    assert LEGACY not in repr(LabelStudio("http://localhost:8080", LEGACY))
