"""Models on the Hugging Face Hub, from a local server that speaks its protocol: fetched once, then from the cache."""

import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import jax
import pytest

from cases.models import SMALL
from sam_jax import load_model
from sam_jax.checkpoints import export_checkpoint
from sam_jax.checkpoints.hub import model_everything_options
from sam_jax.checkpoints.repositories import is_repository_name
from sam_jax.config import NO_OPTIONS
from sam_jax.modeling import init_params

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LOAD = """
import sys
from sam_jax import load_model
from sam_jax.errors import UserError
for name in sys.argv[1:]:
    try:
        print(load_model(name).config.image_size)
    except UserError as error:
        print(f"{type(error).__name__}: {error}")
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves the folder acme/sam-small as a model of that name, and a second one without tensors."""

    folder: Path
    asked: list[str]

    def files(self) -> dict[str, bytes]:
        found = {path.name: path.read_bytes() for path in self.folder.iterdir()}
        found |= {"README.md": b"# a model", "pytorch_model.bin": b"not asked for"}
        return {name: data for name, data in found.items() if "sam-small" in self.path or "safetensors" not in name}

    def answer(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        path, body = self.path.partition("?")[0], b""
        headers = {"X-Repo-Commit": COMMIT}
        allowed = self.headers.get("Authorization") == "Bearer secret"
        if "/acme/" not in path or not allowed:
            self.send_response(404 if allowed else 401)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if "/tree/" in path:
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": f"{i:040x}"}
                for i, (name, data) in enumerate(self.files().items())
            ]
            body = json.dumps(entries).encode()
        elif path.startswith("/api/models/"):
            body = json.dumps({"id": "acme/sam-small", "sha": COMMIT, "siblings": []}).encode()
        else:
            name = path.rpartition("/")[2]
            body = self.files()[name]
            headers["ETag"] = f'"{name}-{len(body)}"'
        self.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_GET = do_HEAD = answer

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path):
    params = init_params(SMALL, jax.random.key(0))
    export_checkpoint(tmp_path / "folder", params, SMALL)
    handler = type("Here", (Hub,), {"folder": tmp_path / "folder", "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", handler.asked
        server.shutdown()
        thread.join()


def load(names, tmp_path, address, **environment):
    """The lines that a process prints which loads models by name."""
    ours = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "secret"}
    command = [sys.executable, "-c", LOAD, *names]
    result = subprocess.run(
        command, env=os.environ | ours | environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_a_model_on_the_hub_is_fetched_once_and_needs_no_network_afterwards(hub, tmp_path):
    address, asked = hub
    size, missing, without = load(["acme/sam-small", "other/sam", "acme/bin-alone"], tmp_path, address)
    assert size == str(SMALL.image_size)
    assert missing.startswith("UserError: 'other/sam' is no path here, and the Hugging Face Hub has no such model")
    assert without.startswith("UserError: expected a safetensors file in 'acme/bin-alone'")
    fetched = sorted({line.rpartition("/")[2] for line in asked if "GET" in line and "/sam-small/resolve/" in line})
    assert fetched == ["config.json", "model.safetensors", "preprocessor_config.json"]
    asked.clear()
    offline = load(["acme/sam-small", "acme/other"], tmp_path, address, HF_HUB_OFFLINE="1")
    assert offline[0] == size
    assert offline[1].startswith("DownloadFailed: cannot fetch 'acme/other' from the Hugging Face Hub")
    assert asked == []


def test_what_may_be_a_path_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert is_repository_name("facebook/sam-vit-base")
    for name in (
        "vit_b",
        "runs/mine",
        "other/model.safetensors",
        "a/b/c",
        "/a",
        "../a",
        "a/",
        "~/a",
        "a b/c",
        "a/b.pth",
    ):
        assert not is_repository_name(name), name
    assert model_everything_options("facebook/sam-vit-base") == NO_OPTIONS  # without a network
    with pytest.raises(ValueError, match=r"OWNER/NAME of one on the Hugging Face Hub, got 'runs/mine'"):
        load_model("runs/mine")


def test_without_the_hubs_package_its_name_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'sam_jax\[hub\]'"):
        load_model("facebook/sam-vit-base")
