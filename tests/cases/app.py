"""Projects, servers and pages, for the tests of the web servers."""

import base64
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from cases.models import TRAINED
from sam_jax.engine.store import Store
from sam_jax.ops.rle import encode_rle

SIZE = (60, 80)  # (H, W)
BASE = "http://127.0.0.1"


def write_images(folder: Path, count: int) -> Path:
    """Writes images with a bright disc in the middle, named 0.png, 1.png, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    y, x = np.indices(SIZE)
    disc = (y - 30) ** 2 + (x - 40) ** 2 < 15**2
    for i in range(count):
        image = np.where(disc[..., None], (250, 200, 40), (20, 60 + i % 100, 120)).astype(np.uint8)
        Image.fromarray(image).save(folder / f"{i}.png")
    return folder


def make_store(folder: Path, count: int) -> Store:
    images = write_images(folder / "pictures", count)
    store = Store(folder / "project")
    store.add_images(images, [f"{i}.png" for i in range(count)])
    return store


def read_events(store: Store, kind: str) -> list[dict]:
    """Returns the events of one kind in the project's history, oldest first: `at` and what belongs to the kind."""
    rows = store.rows("SELECT at, record FROM events WHERE kind = ? ORDER BY id", (kind,))
    return [{"at": row["at"], **json.loads(row["record"])} for row in rows]


def mask_message(box=(10, 10, 30, 20), **fields):
    """Returns the request by which the page saves a mask: a rectangle (x0, y0, x1, y1)."""
    x0, y0, x1, y1 = box
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return {"segmentation": encode_rle(mask), "seconds": 2.5} | fields


def serve(folder: Path, *options: str) -> tuple[subprocess.Popen, str]:
    """Starts `sam-jax annotate` with a small model in a process, and returns the process and its address."""
    project = ("--project", str(folder / "project"), "--model", str(TRAINED))
    return start("annotate", str(folder / "pictures"), "--port", "0", *project, *options)


def start(*command: str) -> tuple[subprocess.Popen, str]:
    """Starts a command that serves a page, and returns the process and the address that it prints."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}  # one device is enough
    process = subprocess.Popen(
        [sys.executable, "-m", "sam_jax", *command], stdout=subprocess.PIPE, text=True, env=environment
    )
    line = process.stdout.readline()
    if "Open " not in line:
        process.kill()
        raise RuntimeError(f"the server did not start: {line!r}")
    return process, line.split("Open ")[1].split()[0]


def basic(token: str) -> str:
    return "Basic " + base64.b64encode(f"label-studio:{token}".encode()).decode()


def wait_until(page, expression):
    """Waits for an expression; Playwright's own function needs eval in the page, which its security policy forbids."""
    end = time.monotonic() + 120
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"never: {expression}"
        page.wait_for_timeout(20)
