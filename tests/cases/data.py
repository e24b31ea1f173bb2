"""Makes small images with masks, and writes them in each of the formats that training reads."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from sam_jax.ops.rle import encode_rle

SIZES = ((60, 90), (100, 70), (48, 64), (80, 80))


def make_image(number: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """An image that is not square, with a rectangle and an ellipse that do not touch, whole images apart."""
    h, w = SIZES[number % len(SIZES)]
    image = np.random.default_rng(number).integers(80, 120, (h, w, 3)).astype(np.uint8)
    rectangle = np.zeros((h, w), bool)
    rectangle[4 : 14 + number, 10:40] = True
    ys, xs = np.mgrid[:h, :w]
    ellipse = ((ys - 0.7 * h) / 9) ** 2 + ((xs - 0.5 * w) / 20) ** 2 < 1
    image[rectangle], image[ellipse] = 250, 5
    return image, [rectangle, ellipse]


def encoded(image: np.ndarray, format: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format, quality=95)
    return buffer.getvalue()


def sa1b_json(number: int, masks: list[np.ndarray]) -> dict:
    h, w = masks[0].shape
    annotations = [
        {"id": i, "segmentation": encode_rle(mask), "area": int(mask.sum()), "bbox": [0.0, 0.0, 1.0, 1.0]}
        for i, mask in enumerate(masks)
    ]
    image = {"image_id": number, "width": w, "height": h, "file_name": f"sa_{number}.jpg"}
    return {"image": image, "annotations": annotations}


def sa1b_files(numbers: range) -> dict[str, bytes]:
    files = {}
    for number in numbers:
        image, masks = make_image(number)
        files[f"sa_{number}.jpg"] = encoded(image)
        files[f"sa_{number}.json"] = json.dumps(sa1b_json(number, masks)).encode()
    return files


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def write_tar(path: Path, files: dict[str, bytes], inside: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(inside + name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def coco_json(numbers: range, segmentation=encode_rle) -> dict:
    images, annotations = [], []
    for number in numbers:
        _, masks = make_image(number)
        h, w = masks[0].shape
        images.append({"id": number, "file_name": f"{number}.jpg", "height": h, "width": w})
        annotations += [
            {"id": 10 * number + i, "image_id": number, "segmentation": segmentation(mask), "iscrowd": 0}
            for i, mask in enumerate(masks)
        ]
    return {"images": images, "annotations": annotations, "categories": []}


def write_images(folder: Path, numbers: range) -> Path:
    return write_files(folder, {f"{number}.jpg": encoded(make_image(number)[0]) for number in numbers})


def check(example, number: int) -> None:
    """Asserts that the example is the image of that number with its masks, whatever their order."""
    from sam_jax.ops.rle import decode_rle

    image, masks = make_image(number)
    assert np.abs(example.image().astype(int) - image).mean() < 8  # JPEG
    assert {decode_rle(rle).tobytes() for rle in example.masks} == {mask.tobytes() for mask in masks}
