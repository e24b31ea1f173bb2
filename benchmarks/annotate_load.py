"""Many people on the annotation page at once: seconds per click, errors, lost masks.

Starts `sam-jax annotate` on a copy of some images, then plays annotators through its routes: each opens an image,
clicks with a pause in between, feeds masks back, and saves one after every third click. At the end the store must hold
every mask that was saved, as it was saved.

    python benchmarks/annotate_load.py [--images FOLDER] [--clients 50] [--seconds 60] [--pause 1.0] [--model small]
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from sam_jax.app.images import scan
from sam_jax.engine.store import Store


class Annotator(threading.Thread):
    """One person: clicks until the time is over."""

    def __init__(self, address: str, name: str, end: float, pause: float) -> None:
        super().__init__()
        self.connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
        self.name, self.end, self.pause = name, end, pause
        self.random = random.Random(name)
        self.clicks: list[float] = []  # seconds each
        self.saves: list[float] = []
        self.errors: list[str] = []
        self.saved: dict[str, str] = {}  # id -> run lengths

    def ask(self, method: str, path: str, body: Any = None) -> tuple[Any, float]:
        """The answer, and how long it took."""
        data = None if body is None else json.dumps(body)
        started = time.perf_counter()
        self.connection.request(method, f"{path}?annotator={self.name}", data, {"Content-Type": "application/json"})
        answer = self.connection.getresponse()
        content = answer.read()
        passed = time.perf_counter() - started
        if answer.status != 200:
            raise ValueError(f"{method} {path}: {answer.status} {content[:200]!r}")
        return json.loads(content), passed

    def run(self) -> None:
        try:
            self.annotate()
        except Exception as error:
            self.errors.append(f"{type(error).__name__}: {error}")

    def annotate(self) -> None:
        image = self.ask("POST", "/api/next")[0]["picture"]["id"]
        self.ask("POST", f"/api/pictures/{image}/embed")
        opened = self.ask("GET", f"/api/pictures/{image}")[0]["picture"]
        points: list[dict] = []
        previous = None
        while time.monotonic() < self.end:
            time.sleep(self.random.uniform(0.5, 1.5) * self.pause)
            x, y = (self.random.randrange(opened[side]) for side in ("width", "height"))
            points.append({"x": x, "y": y, "label": 1 if not points else self.random.randrange(2)})
            body = {"points": points, "previous": previous}
            answer, passed = self.ask("POST", f"/api/pictures/{image}/predict", body)
            self.clicks.append(passed)
            previous = {"id": answer["id"], "mask": answer["best"]}
            if len(points) == 3:
                mask = answer["masks"][answer["best"]]
                if mask["area"]:
                    name = uuid.uuid4().hex
                    body = {"segmentation": mask["segmentation"], "seconds": 3 * self.pause}
                    self.saves.append(self.ask("PUT", f"/api/pictures/{image}/masks/{name}", body)[1])
                    self.saved[name] = mask["segmentation"]["counts"]
                points, previous = [], None


def play(address: str, clients: int, seconds: float, pause: float) -> list[Annotator]:
    end = time.monotonic() + seconds
    annotators = [Annotator(address, f"{clients}-{i}", end, pause) for i in range(clients)]
    for annotator in annotators:
        annotator.start()
    for annotator in annotators:
        annotator.join()
    return annotators


def cpu_seconds(process: int) -> float:
    """What a process has computed so far, all of its threads; Linux alone tells."""
    path = Path(f"/proc/{process}/stat")
    if not path.exists():
        return math.nan
    fields = path.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def summary(annotators: list[Annotator], store: Store, computed: float) -> dict[str, Any]:
    """
    Args:
        computed: seconds of CPU that the server took, its embeddings and saves included.
    """
    kept = {mask.id: mask.segmentation["counts"] for p in store.images() for mask in store.masks(p.id)}
    saved = {name: counts for annotator in annotators for name, counts in annotator.saved.items()}
    result: dict[str, Any] = {"clients": len(annotators)}
    for what in ("clicks", "saves"):
        times = [second for annotator in annotators for second in getattr(annotator, what)]
        p50, p95 = np.percentile(times, [50, 95]) if times else (np.nan, np.nan)
        worst = max(times, default=np.nan)
        result[what] = {"count": len(times), "p50_ms": 1e3 * p50, "p95_ms": 1e3 * p95, "max_ms": 1e3 * worst}
    result["server_cpu_ms_per_click"] = 1e3 * computed / max(1, result["clicks"]["count"])
    result["errors"] = [error for annotator in annotators for error in annotator.errors]
    result["saved"] = len(saved)
    result["lost"] = sum(kept.get(name) != counts for name, counts in saved.items())
    return result


def fill(folder: Path, source: Path | None, count: int) -> None:
    """`count` images: of the source, in turn, or drawn."""
    folder.mkdir()
    names = scan(source).names if source else []
    for i in range(count):
        if source:
            name = names[i % len(names)]
            shutil.copyfile(source / name, folder / f"{i:04}{Path(name).suffix}")
        else:
            coarse = np.random.default_rng(i).integers(0, 255, (12, 16, 3), np.uint8)
            Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{i:04}.jpg")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder; without it images are drawn")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--pause", type=float, default=1.0, help="mean seconds between an answer and the next click")
    parser.add_argument("--model", default="small")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="annotate_load_") as name:
        folder = Path(name)
        fill(folder / "pictures", options.images, options.clients + 1)
        command = [sys.executable, "-m", "sam_jax", "annotate", str(folder / "pictures"), "--port", "0"]
        command += ["--project", str(folder / "project"), "--model", options.model]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as server:
            try:
                assert server.stdout is not None
                address = server.stdout.readline().split("Open ")[1].split()[0]
                play(address, 1, 3, 0.1)  # compiles
                store = Store(folder / "project")
                results = []
                for clients, pause in ((1, options.pause / 4), (options.clients, options.pause)):
                    before = cpu_seconds(server.pid)
                    annotators = play(address, clients, options.seconds, pause)
                    results.append(summary(annotators, store, cpu_seconds(server.pid) - before))
            finally:
                server.kill()
    for result in results:
        print(json.dumps(result, default=str))
    return 1 if any(result["errors"] or result["lost"] for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
