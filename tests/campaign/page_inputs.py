"""Requests to the annotation page's server, sound ones and damaged ones, to every address that it has."""

import json
import random
from pathlib import Path
from typing import Any

from campaign.mutate import WRONG, mutate_bytes, mutate_json

LABELS = (
    '<View><Image name="i" value="$image"/><BrushLabels name="b" toName="i"><Label value="x"/></BrushLabels></View>'
)


class Page:
    """The application in this process, whose exceptions are not turned into answers of 500."""

    count, large = 4_000, False

    def prepare(self, folder: Path) -> None:
        from fastapi.testclient import TestClient

        from campaign.checkpoint_inputs import CONFIG, params_of
        from cases.app import BASE, SIZE, make_store, mask_message
        from sam_jax.app.server import create_app
        from sam_jax.model import Sam
        from sam_jax.web.guard import Access

        self.store = make_store(folder, 3)
        app = create_app(self.store, Sam(CONFIG, params_of(CONFIG)), Access(), model_version="least")
        self.client = TestClient(app, base_url=BASE, follow_redirects=False)
        self.client.__enter__()
        click = {
            "points": [{"x": 40, "y": 30, "label": 1}],
            "box": [10, 10, 50, 40],
            "previous": {"id": "0" * 16, "mask": 1},
        }
        prompts = [
            {"type": "point", "x": 1, "y": 2, "label": 1},
            {"type": "brush", "label": 0, "size": 5, "path": [[1, 2]]},
        ]
        saved = mask_message(name="cup", rank=1, prompts=prompts, predicted_iou=0.5, stability_score=0.9)
        value = {"x": 50, "y": 50, "width": 10, "height": 8, "rotation": 30, "rectanglelabels": ["x"]}
        region = {"type": "rectanglelabels", "original_width": SIZE[1], "original_height": SIZE[0], "value": value}
        task = {"id": 1, "data": {"image": "/data/local-files/?d=0.png"}}
        asked = {"tasks": [task], "label_config": LABELS, "params": {"context": {"result": [region]}}}
        self.bodies = [click, saved, {"outcome": "done", "seconds": 3.5}, asked, {"project": "1", "schema": LABELS}]
        self.requests = [
            *(
                ("GET", path)
                for path in ("/", "/assets/main.js", "/api/state", "/api/openapi.json", "/api/export.json")
            ),
            *(("POST", "/api/next"), ("GET", "/api/back"), ("POST", "/api/pictures/1/take")),
            *(("GET", f"/api/pictures/1{end}") for end in ("", "/image", "/export/png", "/sa1b.json")),
            *(("POST", f"/api/pictures/1/{end}") for end in ("embed", "predict", "predict", "predict", "finish")),
            *[("PUT", "/api/pictures/1/masks/m")] * 4,
            *(("DELETE", "/api/masks/m"), ("POST", "/api/masks/m/restore"), ("GET", "/api/masks/m/history")),
            *(("GET", "/label-studio/health"), ("POST", "/label-studio/setup"), ("POST", "/label-studio/webhook")),
            *[("POST", "/label-studio/predict")] * 3,
        ]

    def run(self, rng: random.Random, folder: Path) -> None:
        method, path = rng.choice(self.requests)
        parts = path.split("/")
        if rng.random() < 0.3:
            parts[rng.randrange(1, len(parts))] = rng.choice(
                ("2", "0", "-1", "9" * 20, "a" * 300, "..%2f..", "%00", "é", "")
            )
        path = "/".join(parts)
        query: dict[str, Any] = {"annotator": rng.choice(("Ada", "Ada", "Bob", "", "x" * 65, "a\nb", "é"))}
        body = self.bodies[self._fitting(path)] if rng.random() < 0.9 else rng.choice(self.bodies)
        content = json.dumps(body).encode()
        if rng.random() < 0.8:
            content = mutate_json(content, rng) if rng.random() < 0.85 else mutate_bytes(content, rng)
        headers = {"Content-Type": "application/json"}
        if rng.random() < 0.1:
            name = rng.choice(("Host", "Origin", "Content-Type", "Content-Length", "Authorization", "Cookie"))
            headers[name] = str(rng.choice(WRONG)).encode("ascii", "ignore").decode().replace("\0", "")[:300]
        answer = self.client.request(method, path, params=query, content=content, headers=headers)
        assert answer.status_code < 500, (method, path, content[:300], answer.text[:300])

    @staticmethod
    def _fitting(path: str) -> int:
        words = ("predict", "masks", "finish", "label-studio/predict", "label-studio")
        return max((i for i, word in enumerate(words) if word in path), default=0)
