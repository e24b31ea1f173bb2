"""Safety of the annotation page's server: it refuses foreign hosts and sites, wrong tokens, paths, sizes and names."""

import contextlib
import http.client
import json
import socket
import threading
import time
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest
import schemathesis
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from cases.app import BASE, SIZE, basic, make_store, mask_message, serve, write_images
from sam_jax.app.images import locate, scan
from sam_jax.app.server import create_app
from sam_jax.web import serving
from sam_jax.web.guard import MAX_BODY, Access, is_loopback, new_token

ADA = {"annotator": "Ada"}
TOKEN = "a" * 24
ONE_CLICK = {"points": [{"x": 1, "y": 1, "label": 1}]}


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path, 2)


@pytest.fixture
def client(store, tiny_model):
    with TestClient(create_app(store, tiny_model, Access(), model_version="tiny"), base_url=BASE) as client:
        yield client


@pytest.fixture
def guarded(store, tiny_model):
    app = create_app(store, tiny_model, Access("0.0.0.0", TOKEN), model_version="tiny")
    return TestClient(app, base_url="http://box.example:8009", follow_redirects=False)


# Hosts and sites


def test_other_hosts_are_refused_without_a_token(client):
    for host in (
        "evil.example",
        "evil.example:8009",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "",
        "10.0.0.1",
        "[::1].evil.example",
        "[::1]evil.example:8009",
        "[::1%25evil.example]",
        "[::1",
        "evil.example@127.0.0.1:8009",
        "127.0.0.1:8009@evil.example",
        "127.0.0.1:8009/evil.example",
        "127.0.0.1:8009?evil.example",
        "127.0.0.1#evil.example",
        "127.0.0.1\\evil.example",
        "127.0.0.1 evil.example",
        "127.0.0.1,evil.example",
        "127.0.0.1:",
        "127.0.0.1:0",
        "127.0.0.1:99999",
        "127.0.0.1:8009:8009",
        "localhost.",
        "2130706433",
    ):
        assert client.get("/api/state", params=ADA, headers={"Host": host}).status_code == 403, host
    for host in ("localhost:8009", "127.0.0.1", "[::1]:8009", "LocalHost:8009", "[0:0:0:0:0:0:0:1]"):
        assert client.get("/api/state", params=ADA, headers={"Host": host}).status_code == 200, host


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:9999"},  # another server of this machine
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Origin": "https://127.0.0.1"},  # a page that was not served from here
        {"Origin": "http://evil.example@127.0.0.1"},
        {"Origin": "http://127.0.0.1.evil.example"},
        {"Origin": "http://[::1]"},
        {"Origin": "//127.0.0.1"},
        {"Origin": "http://127.0.0.1/"},
        {"Origin": "127.0.0.1"},
        {"Origin": ""},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_requests_that_other_sites_make_a_browser_send_are_refused(client, store, headers):
    assert client.post("/api/next", params=ADA, headers=headers).status_code == 403
    message = mask_message()
    assert client.put("/api/pictures/1/masks/m", params=ADA, json=message, headers=headers).status_code == 403
    assert store.masks(1) == []
    assert not store.images("open")
    good = {"Origin": BASE, "Sec-Fetch-Site": "same-origin"}
    assert client.post("/api/next", params=ADA, headers=good).status_code == 200
    assert client.post("/api/next", params=ADA, headers={"Host": "127.0.0.1:80", "Origin": BASE}).status_code == 200


def test_headers_that_say_two_things_are_refused(client):
    for name, values in {"Origin": (BASE, "http://evil.example"), "Sec-Fetch-Site": ("none", "cross-site")}.items():
        headers = [("Host", "127.0.0.1"), *((name, value) for value in values)]
        assert client.post("/api/next", params=ADA, headers=headers).status_code == 403


@pytest.mark.parametrize("half", [b"", b"GET / HT", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{"])
def test_requests_that_do_not_become_whole_are_closed_and_whole_ones_are_not(monkeypatch, half):
    monkeypatch.setattr(serving, "REQUEST_SECONDS", 0.5)
    app = FastAPI()
    app.get("/")(lambda: "ok")

    @app.post("/")
    def take(body: list[int]) -> int:
        return len(body)

    server = serving.make_server(app)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            address = listening.getsockname()
            whole = http.client.HTTPConnection(*address)
            with socket.create_connection(address, timeout=20) as slow, contextlib.closing(whole):
                slow.sendall(half)
                for _ in range(4):
                    whole.request("GET", "/")
                    assert whole.getresponse().read() == b'"ok"'
                    assert whole.sock is not None
                    time.sleep(0.2)
                assert slow.recv(4096) == b""
        finally:
            server.should_exit = True
            thread.join()


def test_answers_forbid_foreign_scripts_frames_and_guesses_of_types(client):
    for path in ("/", "/assets/main.js", "/api/state?annotator=Ada", "/api/pictures/1/image", "/nothing"):
        headers = client.get(path).headers
        assert "script-src 'self'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert "Access-Control-Allow-Origin" not in headers


# Token


def test_an_address_that_others_reach_demands_a_token():
    for host in ("0.0.0.0", "::", "192.0.2.1", "box.example"):
        with pytest.raises(ValueError, match="token is needed"):
            Access(host)
    for host in ("127.0.0.1", "::1", "localhost", "127.9.9.9"):
        assert is_loopback(host)
        Access(host)
    for token in ("short", "with space in the middle", "b" * 257, "c" * 20 + "\n"):
        with pytest.raises(ValueError, match="16 to 256"):
            Access("0.0.0.0", token)
    assert Access("0.0.0.0", new_token()).token != Access("0.0.0.0", new_token()).token


def test_nothing_is_told_without_the_token(guarded):
    for path in ("/", "/assets/main.js", "/api/state?annotator=Ada", "/api/openapi.json", "/label-studio/health"):
        assert guarded.get(path).status_code == 401, path
    wrong = [
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": "Bearer"},
        {"Authorization": "Basic ?"},
        {"Authorization": basic("wrong")},
        {"Cookie": f"{Access('0.0.0.0', TOKEN).cookie}=wrong"},
        {"Cookie": "=;;=\x00"},
        {"Authorization": "Bearer \xff".encode("latin-1")},
    ]
    for headers in wrong:
        assert guarded.get("/api/state", params=ADA, headers=headers).status_code == 401, headers
    assert guarded.get("/?token=wrong").status_code == 401


def test_the_token_opens_as_bearer_as_password_and_after_a_first_visit_as_cookie(guarded):
    assert guarded.get("/api/state", params=ADA, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert guarded.get("/label-studio/health", headers={"Authorization": basic(TOKEN)}).status_code == 200
    visit = guarded.get(f"/?token={TOKEN}&x=1")
    assert (visit.status_code, visit.headers["Location"]) == (303, "/?x=1")  # the token leaves the address bar
    assert "HttpOnly" in visit.headers["Set-Cookie"]
    assert "SameSite=Strict" in visit.headers["Set-Cookie"]
    assert guarded.get("/").status_code == 200
    assert guarded.post("/api/next", params=ADA).status_code == 200
    refused = guarded.post("/api/next", params=ADA, headers={"Origin": "http://evil.example"})
    assert refused.status_code == 403


def test_the_command_draws_a_token_for_a_host_that_others_reach(tmp_path):
    write_images(tmp_path / "pictures", 1)
    process, address = serve(tmp_path, "--host", "0.0.0.0")
    try:
        base, token = address.split("?token=")
        assert len(token) >= 32
        base = base.replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{base}api/state", params=ADA).status_code == 401
        bearer = {"Authorization": f"Bearer {token}"}
        assert httpx.get(f"{base}api/state", params=ADA, headers=bearer).status_code == 200
    finally:
        process.kill()
        process.wait()


# Paths


def test_images_outside_the_folder_are_not_found_and_not_served(tmp_path, client, store):
    root = tmp_path / "pictures"
    outside = write_images(tmp_path / "outside", 1)
    (root / "link.png").symlink_to(outside / "0.png")
    (root / "inside.png").symlink_to(root / "0.png")
    (root / "folder").symlink_to(outside)
    (root / "ring.png").symlink_to(root / "ring.png")
    (root / ".hidden.png").write_bytes(b"")
    (root / "mine").mkdir()
    (root / "mine" / "9.png").write_bytes((root / "0.png").read_bytes())
    found = scan(root, leave_out=root / "mine")
    assert found.names == ["0.png", "1.png", "inside.png"]
    assert found.refused == ["link.png"]
    for name in ("../outside/0.png", str(outside / "0.png"), "link.png", "folder/0.png", "ring.png"):
        with pytest.raises(ValueError, match=r"leads out|cannot follow"):
            locate(root, name)
    # An image that becomes a link after the scan.
    (root / "1.png").unlink()
    (root / "1.png").symlink_to(outside / "0.png")
    for method, url in (("GET", "image"), ("POST", "embed")):
        answer = client.request(method, f"/api/pictures/2/{url}")
        assert answer.status_code == 409
        assert "leads out of the folder" in answer.json()["error"]
        assert str(tmp_path) not in answer.text


def test_no_address_reaches_a_file_by_its_name(client):
    for path in (
        "/api/pictures/..%2f..%2fetc%2fpasswd/image",
        "/api/pictures/0/image",
        "/api/pictures/-1/image",
        "/api/pictures/99999999999999999999/image",
        "/assets/../guard.py",
        "/assets/..%2findex.html",
        "/assets/%2e%2e/small.safetensors",
        "/pictures/0.png",
        "/0.png",
        "/docs",
    ):
        assert client.get(path).status_code in (404, 422), path


def test_label_studio_gets_images_of_the_project_alone(client):
    setup = (
        '<View><Image name="i" value="$image"/><BrushLabels name="b" toName="i"><Label value="x"/></BrushLabels></View>'
    )
    region = {"type": "keypointlabels", "original_width": SIZE[1], "original_height": SIZE[0]}
    region["value"] = {"x": 50, "y": 50, "keypointlabels": ["x"]}
    for address in (
        "http://127.0.0.1/secret.png",
        "file:///etc/passwd",
        "/data/local-files/?d=../../etc/passwd",
        "/data/local-files/?d=/etc/passwd",
        "/data/local-files/",
        "/data/upload/1/0.png",
        "/data/local-files/?d=" + "a/" * 40_000 + "x.jpg",
        "/data/local-files/?d=" + "a/" * 200 + "0.png",
        "/data/upload/1/" + "x" * 100_000 + ".png",
        None,
    ):
        body = {
            "tasks": [{"data": {"image": address}}],
            "label_config": setup,
            "params": {"context": {"result": [region]}},
        }
        assert client.post("/label-studio/predict", json=body).status_code == 422, address
    for config in ("", "<View>", "<!DOCTYPE x [<!ENTITY a 'b'>]><View/>", "<View/>"):
        body = {"tasks": [{"data": {}}], "label_config": config, "params": {"context": {"result": [region]}}}
        assert client.post("/label-studio/predict", json=body).status_code == 422, config


# Sizes


def test_bodies_and_images_are_bounded(client, store, tiny_model):
    json_type = {"Content-Type": "application/json"}
    big = b" " * (MAX_BODY + 1)
    path = "/api/pictures/1/predict"
    assert client.post(path, content=big, headers=json_type).status_code == 413
    pieces = (big[: 1 << 20] for _ in range(5))  # chunked: its length is not told
    assert client.post(path, content=pieces, headers=json_type).status_code == 413
    assert client.post(path, content=b"[" * 100_000, headers=json_type).status_code in (400, 422)
    assert client.post(path, json={"points": ONE_CLICK["points"] * 1000}).status_code == 422
    Image.new("1", (9000, 9000)).save(store.image(1).path)  # 10 kB, 81 million pixels
    answer = client.post(path, json=ONE_CLICK)
    assert answer.status_code == 409
    assert "scale it down" in answer.json()["error"]
    assert client.get("/api/pictures/1/image").status_code == 409


@pytest.mark.parametrize(
    "change",
    [
        {"name": "x" * 201},
        {"name": "a\x00b"},
        {"name": 5},
        {"rank": -1},
        {"seconds": -1},
        {"seconds": float("nan")},
        {"seconds": float("inf")},
        {"state": "proposed"},
        {"origin": "automatic"},
        {"annotator": "Eve"},
        {"predicted_iou": 1e300},
        {"prompts": [{"type": "point", "x": 1, "y": 1, "label": 2}]},
        {"prompts": [{"type": "lasso"}]},
        {"prompts": [{"type": "brush", "label": 1, "size": 3, "path": [[0, 0]] * 5000}]},
        {"segmentation": {"size": [60, 80], "counts": 5}},
        {"segmentation": {"size": [60, 80], "counts": "x" * 2_000_001}},
        {"segmentation": {"size": [-60, -80], "counts": "0"}},
        {"segmentation": None},
    ],
)
def test_what_is_no_mask_is_refused_and_not_kept(client, store, change):
    client.post("/api/pictures/1/embed")
    body = json.dumps(mask_message() | change).encode()
    headers = {"Content-Type": "application/json"}
    assert client.put("/api/pictures/1/masks/m", params=ADA, content=body, headers=headers).status_code == 422
    assert store.masks(1) == []


@pytest.mark.parametrize("counts", ["", "o", "\x7f", "é", "0" * 50, "PPYo1", "ZZZZZZZZZZZZZZZZ"])
def test_run_lengths_that_are_none_are_refused(client, store, counts):
    message = {"segmentation": {"size": list(SIZE), "counts": counts}}
    answer = client.put("/api/pictures/1/masks/m", params=ADA, json=message)
    assert answer.status_code == 409
    assert "expected" in answer.json()["error"]
    assert store.masks(1) == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"points": []},
        {"points": [{"x": 80, "y": 1, "label": 1}]},
        {"points": [{"x": -1, "y": 1, "label": 1}]},
        {"points": [{"x": "nan", "y": 1, "label": 1}]},
        {"points": [{"x": 1, "y": 1}]},
        {"box": [30, 30, 10, 10]},
        {"box": [0, 0, 1]},
        {"box": [100, 100, 200, 200]},
        ONE_CLICK | {"previous": {"id": "../../x", "mask": 0}},
        ONE_CLICK | {"previous": {"id": "0" * 16, "mask": 4}},
        ONE_CLICK | {"extra": 1},
    ],
)
def test_what_is_no_prompt_is_refused(client, body):
    answer = client.post("/api/pictures/1/predict", json=body)
    assert answer.status_code == 422
    assert answer.json()["error"]


@pytest.mark.parametrize("name", ["", "%20", "x" * 65, "a%0Ab", "%3Cscript%3E", "a/b", "%FF", "%00"])
def test_annotators_without_a_proper_name_are_refused(client, store, name):
    assert client.post(f"/api/next?annotator={name}").status_code == 422
    assert not store.images("open")


def test_annotators_have_names_of_any_script(client):
    for name in ("Ada", "Žofie Ö.", "山田", "a@b.example"):
        assert client.get("/api/state", params={"annotator": name}).status_code == 200


# Fuzz


CHECKS = (not_a_server_error, status_code_conformance, response_schema_conformance)
FEW = settings(
    max_examples=10,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def fuzz(operation, mode):
    """Sends requests that the schema allows, or that it forbids, and returns the statuses of the responses."""
    seen = set()

    @FEW
    @given(operation.as_strategy(generation_mode=mode))
    def send(case):
        response = case.call(timeout=30)
        case.validate_response(response, checks=CHECKS)
        seen.add(response.status_code)

    with contextlib.suppress(Unsatisfiable):  # an operation without parameters has no wrong ones
        send()
    return seen


def test_whatever_comes_is_answered_as_described_and_slow_clients_hinder_nobody(tmp_path):
    write_images(tmp_path / "pictures", 2)
    process, address = serve(tmp_path)
    slow = [socket.create_connection((urlsplit(address).hostname, urlsplit(address).port)) for _ in range(100)]
    try:
        for i, connection in enumerate(slow):  # they begin a request and never end it
            head = b"POST /api/pictures/1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            connection.sendall(head if i % 2 else head + b"Content-Length: 1000\r\n\r\n{")
        httpx.post(f"{address}api/pictures/1/predict", json=ONE_CLICK, timeout=60)  # compiled once
        schema = schemathesis.openapi.from_url(f"{address}api/openapi.json")
        operations = [result.ok() for result in schema.get_all_operations()]
        right = {operation.label: fuzz(operation, GenerationMode.POSITIVE) for operation in operations}
        wrong = {operation.label: fuzz(operation, GenerationMode.NEGATIVE) for operation in operations}
        assert httpx.get(f"{address}api/state", params=ADA).status_code == 200
    finally:
        for connection in slow:
            connection.close()
        process.kill()
        process.wait()
    assert {"GET /api/export.json", "POST /label-studio/predict"} <= set(right)
    assert 200 in right["POST /api/next"]
    assert 422 in wrong["PUT /api/pictures/{picture_id}/masks/{mask_id}"]
