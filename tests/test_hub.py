"""Downloads against a local server: resumed, verified, never half-written, once."""

import dataclasses
import hashlib
import http.server
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from cases.models import SMALL
from sam_jax.checkpoints import hub, save_checkpoint
from sam_jax.checkpoints.hub import CLIP_RELEASES, Release, default_cache_dir, download, load_clip, load_model
from sam_jax.clip.config import CLIP_SIZES, ClipConfig
from sam_jax.clip.network import init_clip_params
from sam_jax.errors import UserError
from sam_jax.modeling import init_params
from sam_jax.predictor import SamPredictor

CONTENT = np.random.default_rng(0).bytes(3 * hub.CHUNK + 12345)


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT at /model.pth, with the faults that its attributes say."""

    break_after: int | None = None  # bytes after which the next transfer is cut off, once
    supports_range = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[str | None] = []  # the Range header of each
        self.url = f"http://127.0.0.1:{self.server_port}/model.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        byte_range = self.headers.get("Range")
        self.server.requests.append(byte_range)
        if self.path != "/model.pth":
            return self.send_error(404)
        start = int(byte_range.removeprefix("bytes=").rstrip("-")) if byte_range and self.server.supports_range else 0
        if start >= len(CONTENT):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        end, self.server.break_after = self.server.break_after, None
        self.wfile.write(CONTENT[start:end])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def release(url: str, sha256: str | None = None) -> Release:
    return Release(SMALL, url, sha256 or hashlib.sha256(CONTENT).hexdigest())


def test_a_download_is_verified_and_kept(server, tmp_path):
    path = download(release(server.url), tmp_path / "cache")
    assert path.read_bytes() == CONTENT
    assert download(release(server.url), tmp_path / "cache") == path
    assert len(server.requests) == 1


def test_an_interrupted_transfer_goes_on_where_it_broke(server, tmp_path):
    server.break_after = 2 * hub.CHUNK
    with pytest.raises(ConnectionError, match="go on from"):
        download(release(server.url), tmp_path)
    assert not (tmp_path / "model.pth").exists()
    assert download(release(server.url), tmp_path).read_bytes() == CONTENT
    assert server.requests == [None, f"bytes={2 * hub.CHUNK}-"]
    assert not (tmp_path / "model.pth.part").exists()


def test_a_server_without_ranges_is_read_from_the_start_again(server, tmp_path):
    server.supports_range = False
    (tmp_path / "model.pth.part").write_bytes(b"x" * 1000)
    assert download(release(server.url), tmp_path).read_bytes() == CONTENT
    assert server.requests == ["bytes=1000-"]


def test_a_whole_part_needs_no_more_bytes(server, tmp_path):
    (tmp_path / "model.pth.part").write_bytes(CONTENT)
    assert download(release(server.url), tmp_path).read_bytes() == CONTENT


def test_a_wrong_sum_leaves_nothing(server, tmp_path):
    with pytest.raises(ValueError, match=r"SHA-256 [0-9a-f]{64}, expected 00") as error:
        download(release(server.url, "00" * 32), tmp_path)
    assert "deleted" in str(error.value)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_a_missing_file_and_a_dead_server_say_so(server, tmp_path):
    with pytest.raises(ConnectionError, match="404"):
        download(release(server.url.replace("model", "other")), tmp_path)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionError, match="cannot download"):
            download(release(f"http://127.0.0.1:{unused.getsockname()[1]}/model.pth"), tmp_path)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_a_server_that_does_not_speak_http_is_a_connection_error(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"220 mail.example ready\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(ConnectionError, match="220 mail"):
            download(release(f"http://127.0.0.1:{listener.getsockname()[1]}/model.pth"), tmp_path)
        thread.join()


def test_concurrent_callers_share_one_transfer(server, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: download(release(server.url), tmp_path), range(4)))
    assert {path.read_bytes() for path in paths} == {CONTENT}
    assert len(server.requests) == 1


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("SAM_JAX_CACHE", raising=False)
    assert default_cache_dir() == tmp_path / "xdg" / "sam_jax"
    monkeypatch.setenv("SAM_JAX_CACHE", str(tmp_path / "own"))
    assert default_cache_dir() == tmp_path / "own"


def test_a_released_name_is_downloaded_converted_once_and_then_needs_no_network(server, tmp_path, monkeypatch):
    params = jax.device_get(init_params(SMALL, jax.random.key(0)))
    conversions = []

    def convert(src, dst, *, config):
        assert src.read_bytes() == CONTENT
        conversions.append(src)
        save_checkpoint(dst, params, config)

    monkeypatch.setattr(hub, "convert_checkpoint", convert)
    releases = {"vit_s": release(server.url)}
    for _ in range(2):
        model = load_model("vit_s", cache_dir=tmp_path, releases=releases)
        assert model.config == SMALL
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(model.params), params)
    assert len(conversions) == len(server.requests) == 1


def test_without_pytorch_nothing_is_downloaded(server, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'sam_jax\[convert\]'"):
        load_model("vit_s", cache_dir=tmp_path, releases={"vit_s": release(server.url)})
    assert server.requests == []


def test_a_path_is_loaded_and_an_unknown_name_lists_the_known_ones(tmp_path):
    save_checkpoint(tmp_path / "m.safetensors", init_params(SMALL, jax.random.key(0)), SMALL)
    assert load_model(tmp_path / "m.safetensors").config == SMALL
    with pytest.raises(ValueError, match="small, vit_b, vit_l, vit_h"):
        load_model("vit_x")
    with pytest.raises(UserError, match="'tiny' is no longer in the package: 'small' replaced it"):
        load_model("tiny")


def test_a_released_clip_is_downloaded_and_read_without_pytorch(server, tmp_path, monkeypatch):
    config = ClipConfig("small", 8, 4, 16, 1, 2, 16, 1, 2, 77, 49408, 8)
    params = jax.device_get(init_clip_params(config, jax.random.key(0)))
    monkeypatch.setattr(hub, "convert_checkpoint", lambda src, dst, *, config: save_checkpoint(dst, params, config))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    for _ in range(2):
        clip = load_clip("small", cache_dir=tmp_path, releases={"small": Release(config, server.url, sha256)})
        assert clip.config == config
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(clip.params), dict(params))
    assert len(server.requests) == 1
    with pytest.raises(ValueError, match="clip_b32, clip_b16, clip_l14, clip_l14_336"):
        load_clip("clip_x")


def test_released_clips_have_the_sums_that_their_addresses_hold():
    for name, released in CLIP_RELEASES.items():
        assert released.url.split("/")[-2] == released.sha256
        assert released.config is CLIP_SIZES[name]


def test_another_image_size_is_taken_and_stays_in_what_is_saved(tmp_path):
    config = dataclasses.replace(SMALL, name="mine")
    save_checkpoint(tmp_path / "model.safetensors", init_params(config, jax.random.key(0)), config)
    model = load_model(tmp_path / "model.safetensors", image_size=96)
    assert model.config == config.with_image_size(96)
    predictor = SamPredictor(model)
    predictor.set_image(np.zeros((50, 80, 3), np.uint8))
    assert predictor.get_image_embedding().shape[1:3] == (model.config.grid_size,) * 2
    save_checkpoint(tmp_path / "other.safetensors", model.params, model.config)
    assert load_model(tmp_path / "other.safetensors").config == model.config
    assert load_model(tmp_path / "other.safetensors", image_size=64).config == config
    with pytest.raises(UserError, match="image_size"):
        load_model(tmp_path / "model.safetensors", image_size=97)
