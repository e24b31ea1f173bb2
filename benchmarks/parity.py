"""How far this package is from the PyTorch implementations, end to end on one image: ViT-B, float32, CPU.

    python benchmarks/parity.py --image PICTURE [--official FOLDER] [--weights CHECKPOINT]

All get the same weights, converted and loaded with strict=True: random ones from a fixed seed, none of them zero, or a
checkpoint's. The table gives the largest absolute difference of the image embedding, of the low-resolution logits and
of the predicted IoU; then the pixels of the masks, at the size of the image, that differ; then how many of those have
a logit further than 1e-3 from the threshold, which must be none.

--official is a checkout of github.com/facebookresearch/segment-anything. Its predictor gets the image, as ours does;
Hugging Face's model gets our resized frame, for its own processor resizes with another filter.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from official import official_model, random_params, use_official

from sam_jax.checkpoints import SAM, load_checkpoint, state_from_params
from sam_jax.checkpoints.huggingface import config_to_huggingface
from sam_jax.config import VIT_B, SamConfig
from sam_jax.data.images import read_image
from sam_jax.model import Sam
from sam_jax.ops.transforms import fit_image
from sam_jax.predictor import SamPredictor
from sam_jax.prompting.prompts import Prompt
from sam_jax.types import Params

NEAR = 1e-3  # logits this near to the threshold may fall on either side


class Predictor(Protocol):
    """What the three have in common."""

    def set_image(self, image: np.ndarray) -> None: ...
    def get_image_embedding(self) -> Any: ...
    def predict(self, **prompt: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...


class HuggingFacePredictor:
    """`transformers.SamModel` behind the official predictor's interface."""

    def __init__(self, params: Params, config: SamConfig) -> None:
        import transformers

        self.config = config
        self.model = transformers.SamModel(transformers.SamConfig(**config_to_huggingface(config))).eval()
        state = state_from_params(params, config, "huggingface")
        self.model.load_state_dict({name: torch.tensor(array) for name, array in state.items()}, strict=True)

    def set_image(self, image: np.ndarray) -> None:
        frame, (h, w) = fit_image(image, self.config.image_size)
        pixels = np.zeros((1, 3, *frame.shape[:2]), np.float32)
        encoder = self.config.encoder
        colours = (frame[:h, :w] - np.float32(encoder.pixel_mean)) / np.float32(encoder.pixel_std)
        pixels[0, :, :h, :w] = colours.transpose(2, 0, 1)
        self.size, self.input_size = image.shape[:2], (h, w)
        with torch.inference_mode():
            self.embedding = self.model.get_image_embeddings(torch.from_numpy(pixels))

    def get_image_embedding(self) -> torch.Tensor:
        return self.embedding

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = True,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        inputs = {}
        if point_coords is not None:
            points, _ = Prompt(point_coords, point_labels).tokens(self.size, self.config)
            inputs["input_points"] = torch.from_numpy(points[None, None, :-1]).float()  # it pads by itself
            inputs["input_labels"] = torch.tensor(point_labels)[None, None]
        if box is not None:
            corners, _ = Prompt(box=box).tokens(self.size, self.config)
            inputs["input_boxes"] = torch.from_numpy(corners.reshape(1, 1, 4)).float()
        if mask_input is not None:
            inputs["input_masks"] = torch.tensor(mask_input)[None]
        with torch.inference_mode():
            output = self.model(image_embeddings=self.embedding, multimask_output=multimask_output, **inputs)
            h, w = self.input_size
            logits = F.interpolate(output.pred_masks[0], (self.config.image_size,) * 2, mode="bilinear")
            logits = F.interpolate(logits[..., :h, :w], self.size, mode="bilinear")
        return logits[0].numpy(), output.iou_scores[0, 0].numpy(), output.pred_masks[0, 0].numpy()


def official_predictor(folder: Path, params: Params, config: SamConfig) -> Predictor:
    use_official(folder)
    from segment_anything import SamPredictor as OfficialPredictor

    return OfficialPredictor(official_model(params, config))


def prompts(size: tuple[int, int], low_res_logits: np.ndarray) -> dict[str, dict[str, Any]]:
    """Arguments of `predict`, for an image of `size` (h, w)."""
    h, w = size
    points = {"point_coords": np.array([[0.28 * w, 0.31 * h], [0.62 * w, 0.52 * h]]), "point_labels": np.array([1, 0])}
    box = {"box": np.array([0.24 * w, 0.5 * h, 0.68 * w, 0.83 * h])}
    return {
        "points": points,
        "box": box,
        "box + points": {**points, **box},
        "points + mask input": {**points, "mask_input": low_res_logits},
        "no prompt": {},
        "points, one mask": {**points, "multimask_output": False},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--official", type=Path, help="folder that contains segment_anything")
    parser.add_argument("--weights", type=Path, help="checkpoint of a ViT-B, any known format; default: random")
    arguments = parser.parse_args()

    image = read_image(arguments.image)
    params, config = (
        load_checkpoint(arguments.weights, SAM, VIT_B) if arguments.weights else (random_params(VIT_B), VIT_B)
    )
    ours = SamPredictor(Sam(config, params))
    ours.set_image(image)
    embedding = np.asarray(ours.get_image_embedding()).transpose(0, 3, 1, 2)
    first = prompts(image.shape[:2], np.zeros(0))["points"]
    cases = prompts(image.shape[:2], ours.predict(**first)[2][:1])
    results = {name: ours.predict(**prompt, return_logits=True) for name, prompt in cases.items()}

    print(f"{arguments.image.name}, {image.shape[1]} x {image.shape[0]} pixels, {config.name}, float32\n")
    print("| against | prompt | embedding | logits | predicted IoU | mask pixels that differ | not near 0 |")
    print("|---|---|---|---|---|---|---|")
    worst, far = 0.0, 0
    for peer in ("Hugging Face", "official") if arguments.official else ("Hugging Face",):
        if peer == "official":
            theirs: Predictor = official_predictor(arguments.official, params, config)
        else:
            theirs = HuggingFacePredictor(params, config)
        theirs.set_image(image)
        other = theirs.get_image_embedding().numpy()
        embedding_error = f"{np.abs(embedding - other).max():.1e} of {np.abs(other).max():.1f}"
        for name, prompt in cases.items():
            (logits, iou, low_res), (their_logits, their_iou, their_low_res) = (
                results[name],
                theirs.predict(**prompt, return_logits=True),
            )
            differ = (logits > 0) != (their_logits > 0)
            beyond = int((differ & (np.abs(their_logits) > NEAR)).sum())
            error = np.abs(low_res - their_low_res).max()
            worst, far = max(worst, float(error)), far + beyond
            print(
                f"| {peer} | {name} | {embedding_error} | {error:.1e} of {np.abs(their_low_res).max():.1f} "
                f"| {np.abs(iou - their_iou).max():.1e} | {differ.sum()} of {differ.size} | {beyond} |",
                flush=True,
            )
        del theirs
    if worst > NEAR or far:
        sys.exit(f"parity is lost: logits differ by up to {worst:.1e}, {far} mask pixels beyond {NEAR}")


if __name__ == "__main__":
    main()
