"""Cuts an object out of an image: python example.py IMAGE X Y MASK.png, with onnxruntime, numpy and pillow alone."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

folder = Path(__file__).parent
facts = json.loads((folder / "model.json").read_text())
image = Image.open(sys.argv[1]).convert("RGB")
scale = facts["image_size"] / max(image.size)
width, height = (int(length * scale + 0.5) for length in image.size)
scaled = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32)

encoder, decoder = (onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in ("encoder", "decoder"))
(embeddings,) = encoder.run(None, {"input_image": scaled[None] if facts["batch"] else scaled})
x, y = float(sys.argv[2]) * width / image.width, float(sys.argv[3]) * height / image.height
side = facts["low_res_size"]
masks, iou_predictions, low_res_masks = decoder.run(
    None,
    {
        "image_embeddings": embeddings,
        "point_coords": np.array([[[x, y], [0, 0]]], np.float32),
        "point_labels": np.array([[1, -1]], np.float32),  # on the object; no box
        "mask_input": np.zeros((1, 1, side, side), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
        "orig_im_size": np.array([image.height, image.width], np.float32),
    },
)
best = 1 + iou_predictions[0, 1:].argmax()  # the first is for prompts that leave no doubt
Image.fromarray((masks[0, best] > facts["mask_threshold"]).astype(np.uint8) * 255).save(sys.argv[4])
print(f"predicted IoU {iou_predictions[0, best]:.3f}")
