"""The kinds of input that are fuzzed: sound files, how they are damaged, and who reads them.

Kinds other than page requests are one class each, whose `prepare` makes the sound files once in a process.
"""

import contextlib
import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from campaign.checkpoint_inputs import HuggingFace, Orbax, Pickle, Pytorch, Safetensors, TorchScript
from campaign.mutate import mutate_bytes, mutate_json, mutate_value
from campaign.page_inputs import Page
from sam_jax.data.coco import CocoSource
from sam_jax.data.images import decode_image
from sam_jax.data.phrases import read_phrases
from sam_jax.data.sa1b import Sa1bSource
from sam_jax.errors import BadRecord
from sam_jax.evals.ground_truth import read_ground_truth
from sam_jax.ops.rle import counts_from_rle, decode_rle, encode_rle, rle_from_counts

H, W = 24, 17


def a_mask(seed: int = 0) -> np.ndarray:
    y, x = np.indices((H, W))
    return ((y - 11) ** 2 + (x - 6 - seed) ** 2 < 40) ^ (y == 3)


def an_image(seed: int = 0) -> np.ndarray:
    image = np.random.default_rng(seed).integers(0, 255, (H, W, 3)).astype(np.uint8)
    image[a_mask(seed)] //= 4
    return image


class Images:
    """Image files of ten formats, read as everything that reads images does."""

    count, large = 22_000, False

    def prepare(self, folder: Path) -> None:
        rgb = Image.fromarray(an_image())
        exif = Image.Exif()
        exif[0x0112] = 6
        variants: list[tuple[Image.Image, dict[str, Any]]] = [
            (rgb, {"format": "JPEG"}),
            (rgb, {"format": "JPEG", "exif": exif, "progressive": True}),
            (rgb.convert("CMYK"), {"format": "JPEG"}),
            (rgb, {"format": "PNG"}),
            (rgb.convert("RGBA"), {"format": "PNG"}),
            (rgb.convert("P"), {"format": "PNG", "transparency": 3}),
            (Image.fromarray(an_image()[..., 0].astype(np.uint16) * 200), {"format": "PNG"}),
            (rgb.convert("1"), {"format": "TIFF", "compression": "group4"}),
            (rgb, {"format": "TIFF", "exif": exif}),
            (rgb, {"format": "TIFF", "compression": "tiff_lzw"}),
            (rgb.convert("F"), {"format": "TIFF"}),
            (rgb.convert("RGBA"), {"format": "TIFF", "compression": "tiff_adobe_deflate"}),
            (rgb, {"format": "WEBP"}),
            (rgb.convert("RGBA"), {"format": "WEBP", "lossless": True}),
            (rgb, {"format": "BMP"}),
            (rgb.convert("P"), {"format": "GIF", "save_all": True, "append_images": [rgb.convert("P")]}),
            (rgb, {"format": "PPM"}),
            (rgb, {"format": "JPEG2000"}),
            (rgb.convert("P"), {"format": "PCX"}),
            (rgb, {"format": "TGA"}),
        ]
        self.seeds = []
        for image, options in variants:
            buffer = io.BytesIO()
            image.save(buffer, **options)
            self.seeds.append(buffer.getvalue())

    def run(self, rng: random.Random, folder: Path) -> None:
        data = mutate_bytes(rng.choice(self.seeds), rng, self.seeds)
        image = decode_image(io.BytesIO(data), "x", max_pixels=4_000_000)
        assert image.dtype == np.uint8, image.dtype
        assert image.ndim == 3, image.shape


class Rles:
    """Run lengths in their three forms; what is read must be what pycocotools reads."""

    count, large = 23_800, False

    def prepare(self, folder: Path) -> None:
        self.seeds = [encode_rle(a_mask(i)) for i in range(4)]
        self.seeds += [rle | {"counts": counts_from_rle(rle).tolist()} for rle in self.seeds]

    def run(self, rng: random.Random, folder: Path) -> None:
        rle: Any = dict(rng.choice(self.seeds))
        if rng.random() < 0.3:  # the sum stays right
            counts = counts_from_rle(rle)
            for _ in range(3):
                (a, b), n = rng.sample(range(len(counts)), 2), rng.randrange(12)
                counts[a], counts[b] = counts[a] - n, counts[b] + n
            rle["counts"] = counts.tolist()
            if counts.min() >= 0 and rng.random() < 0.5:
                rle = rle_from_counts(counts, (H, W))
        elif isinstance(rle["counts"], str) and rng.random() < 0.6:
            rle["counts"] = mutate_bytes(rle["counts"].encode(), rng).decode("latin1")
            if rng.random() < 0.3:
                rle["counts"] = rle["counts"].encode("latin1")
        else:
            rle = mutate_value(json.dumps([rle]).encode(), rng)
            rle = rle[0] if rle else None
        counts = counts_from_rle(rle)
        size = tuple(rle["size"])
        assert int(counts.sum()) == size[0] * size[1]
        if counts.sum() < 1_000_000:
            mask = decode_rle(rle_from_counts(counts, size))
            assert mask.sum() == counts[1::2].sum()
            if not isinstance(rle["counts"], list):
                np.testing.assert_array_equal(decode_rle(rle), mask)


class Coco:
    """COCO-format files, read for training, for evaluation and for phrases."""

    count, large = 20_000, False

    def prepare(self, folder: Path) -> None:
        square = [2, 2, 12, 2, 12, 15, 2, 15]
        rle = encode_rle(a_mask())
        forms = [[square], [square, [1, 1, 5, 1, 5, 5]], rle, rle | {"counts": counts_from_rle(rle).tolist()}]
        content = {
            "images": [{"id": i, "file_name": f"{i}.png", "height": H, "width": W} for i in (1, 2)],
            "annotations": [
                {"id": i, "image_id": 1 + i % 2, "category_id": 1, "segmentation": form, "bbox": [2, 2, 10, 13]}
                | {"area": 130, "iscrowd": 0, "caption": "a thing"}
                for i, form in enumerate(forms)
            ],
            "categories": [{"id": 1, "name": "thing"}],
        }
        self.seed = json.dumps(content).encode()
        for i in (1, 2):
            Image.fromarray(an_image(i)).save(folder / f"{i}.png")

    def run(self, rng: random.Random, folder: Path) -> None:
        path = folder / "annotations.json"
        path.write_bytes(mutate_json(self.seed, rng) if rng.random() < 0.85 else mutate_bytes(self.seed, rng))
        reader = rng.randrange(3)
        if reader == 0:
            source = CocoSource(path, None, "x")
            _read_all(lambda i: source[i].image(), len(source))
        elif reader == 1:
            images = list(read_ground_truth(path).images.values())
            _read_all(lambda i: (images[i].objects(), images[i].image()), len(images))
        else:
            for row in read_phrases(path):
                _read_all(lambda _, row=row: row.example.image(), 1)


class Tars:
    """Tar files like SA-1B's."""

    count, large = 8_000, False

    def prepare(self, folder: Path) -> None:
        self.files: dict[str, bytes] = {}
        for i in range(2):
            buffer = io.BytesIO()
            Image.fromarray(an_image(i)).save(buffer, "JPEG")
            masks = [{"id": 1, "segmentation": encode_rle(a_mask(i)), "area": 1, "bbox": [0, 0, 1, 1]}]
            image = {"image_id": i, "width": W, "height": H, "file_name": f"sa_{i}.jpg"}
            self.files[f"./sa_{i}.jpg"] = buffer.getvalue()
            self.files[f"./sa_{i}.json"] = json.dumps({"image": image, "annotations": masks}).encode()

    def run(self, rng: random.Random, folder: Path) -> None:
        damaged = rng.choice([*self.files, "tar", "tar"])
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))) as tar:
            for name, data in self.files.items():
                if name == damaged:
                    data = mutate_json(data, rng) if name.endswith("json") else mutate_bytes(data, rng)
                member = tarfile.TarInfo(name)
                member.size = len(data)
                if damaged == "tar" and rng.random() < 0.1:
                    member.type = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE))
                    member.linkname = "/etc/passwd"
                tar.addfile(member, io.BytesIO(data))
        data = buffer.getvalue()
        (folder / "sa.tar").write_bytes(mutate_bytes(data, rng) if damaged == "tar" else data)
        source = Sa1bSource([folder / "sa.tar"])
        _read_all(lambda i: source[i].image(), len(source))


def _read_all(read: Any, count: int) -> None:
    """Reads each record, as a loader does, for which one that cannot be used is no end."""
    for i in range(count):
        with contextlib.suppress(BadRecord):
            read(i)


KINDS: dict[str, Any] = {
    "images": Images(),
    "rles": Rles(),
    "coco": Coco(),
    "tars": Tars(),
    "safetensors": Safetensors(),
    "pytorch": Pytorch(),
    "torchscript": TorchScript(),
    "pickle": Pickle(),
    "huggingface": HuggingFace(),
    "orbax": Orbax(),
    "page": Page(),
}
