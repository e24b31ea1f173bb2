"""`sam-jax demo`: objects cut out of the package's own photograph."""

from __future__ import annotations

import dataclasses
from importlib import resources
from pathlib import Path

import numpy as np

from sam_jax.commands.results import mask_records, write_files
from sam_jax.data.images import read_image
from sam_jax.ops.draw import draw_masks
from sam_jax.prompting.prompts import Prompt

# What the demonstration asks for, in pixels of assets/demo.jpg.
DEMO_PROMPTS = {
    "apple": Prompt(
        points=np.array([[238, 262], [238, 330]]), labels=np.array([1, 1]), box=np.array([150, 182, 330, 374])
    ),
    "left bananas": Prompt(box=np.array([68, 12, 226, 374])),
    "right banana": Prompt(points=np.array([[385, 220], [330, 130]]), labels=np.array([1, 0])),
}


@dataclasses.dataclass(frozen=True)
class Demo:
    """Cuts objects out of a photograph that comes with the package, with the embedded model."""

    out: Path = Path("demo_output")
    """Folder for the results."""
    model: str = "tiny"
    """Name or path of a checkpoint."""

    def run(self) -> None:
        """Writes the photograph with its masks, and the masks as JSON."""
        from sam_jax.checkpoints.hub import load_model
        from sam_jax.predictor import SamPredictor

        with resources.as_file(resources.files("sam_jax") / "assets" / "demo.jpg") as path:
            image = read_image(path)
        predictor = SamPredictor(load_model(self.model))
        predictor.set_image(image)
        result = predictor.predict_prompts(list(DEMO_PROMPTS.values()))
        best = result.iou_predictions.argmax(-1)
        masks = [result.masks[q, m] for q, m in enumerate(best)]
        scores = [float(result.iou_predictions[q, m]) for q, m in enumerate(best)]
        asked = image
        for prompt in DEMO_PROMPTS.values():
            points = [] if prompt.points is None else [(x, y) for x, y in prompt.points.tolist()]
            labels = [] if prompt.labels is None else prompt.labels.tolist()
            boxes = [] if prompt.box is None else [tuple(prompt.box.tolist())]
            asked = draw_masks(asked, [], points, labels, boxes)
        drawn = draw_masks(image, masks)
        cut_out = np.where(np.any(masks, 0)[..., None], image, 255).astype(np.uint8)
        records = zip(DEMO_PROMPTS, mask_records(masks, scores), strict=True)
        files = {
            "demo.png": np.concatenate([asked, drawn, cut_out], 1),
            "demo.json": {
                "picture": "demo.jpg",
                "model": self.model,
                "masks": [{"name": name} | record for name, record in records],
            },
        }
        write_files(self.out, files)
