"""Everything mode over folders: pictures in, annotation files out, resumable.

Pictures are read ahead and results written behind in threads, while the devices compute. Every result is written under
a temporary name and renamed: what is there is whole, and a run that was stopped goes on where it was.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from sam_jax.automatic_mask_generator import Record, SamAutomaticMaskGenerator
from sam_jax.ops.draw import draw_everything
from sam_jax.ops.rle import decode_rle, rle_box
from sam_jax.ops.transforms import read_image

SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".jp2", ".png", ".ppm", ".tif", ".tiff", ".webp"))
THREADS = 2  # that read, and as many that write
Item = TypeVar("Item")
Content = TypeVar("Content")


class Picture(NamedTuple):
    path: Path
    name: PurePosixPath  # under which its results go: relative to the folder that was given

    @property
    def image_id(self) -> int:
        """The number of an SA-1B picture (sa_123.jpg); of others 53 bits of a hash of the name."""
        number = re.fullmatch(r"sa_(\d+)", self.name.stem)
        if number:
            return int(number[1])
        return int.from_bytes(hashlib.blake2b(str(self.name).encode(), digest_size=8).digest()) >> 11


def find_pictures(inputs: Iterable[Path], out: Path) -> list[Picture]:
    """Files as they are given, and all pictures below the folders; those below `out` are results.

    Raises:
        FileNotFoundError: an input that is not there.
        ValueError: no picture at all, or two whose results would have the same name.
    """
    found: dict[PurePosixPath, Picture] = {}
    results = out.resolve()
    for given in inputs:
        if given.is_dir():
            files = sorted(path for path in given.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
            new = [Picture(path, PurePosixPath(path.relative_to(given).as_posix())) for path in files]
        elif given.exists():
            new = [Picture(given, PurePosixPath(given.name))]
        else:
            raise FileNotFoundError(f"no picture or folder at {given}")
        for picture in new:
            if results in picture.path.resolve().parents:
                continue
            other = found.setdefault(picture.name.with_suffix(""), picture)
            if other.path != picture.path:
                raise ValueError(
                    f"the results of {other.path} and {picture.path} would have the same name; "
                    "rename one, or run them into different output folders"
                )
    if not found:
        raise ValueError(f"no pictures in {', '.join(map(str, inputs))}; looked for {', '.join(sorted(SUFFIXES))}")
    return list(found.values())


# Formats. A result is one file or folder per picture; it is written to the path that is given.


def write_sa1b(path: Path, picture: Picture, image: np.ndarray, records: Sequence[Record]) -> None:
    """JSON as in the SA-1B dataset; annotation ids count within the picture."""
    path.write_text(json.dumps(sa1b_content(str(picture.name), picture.image_id, image.shape[:2], records)))


def sa1b_content(
    name: str, image_id: int, size: tuple[int, int], records: Sequence[Record], first_id: int = 0
) -> dict[str, Any]:
    """What the JSON of a picture of SA-1B holds.

    Args:
        size: (h, w) of the picture.
        first_id: of its annotations; the others have the numbers after it.
    """
    annotations = [
        record | {"id": first_id + i, "bbox": _floats(record["bbox"]), "crop_box": _floats(record["crop_box"])}
        for i, record in enumerate(records)
    ]
    return {"image": _image_entry(name, size) | {"image_id": image_id}, "annotations": annotations}


def write_coco(path: Path, picture: Picture, image: np.ndarray, records: Sequence[Record]) -> None:
    """One picture's part of the COCO file; ids come with `merge_coco`. Boxes are COCO's: one pixel has width 1."""
    annotations = [
        record | {"bbox": rle_box(record["segmentation"]), "category_id": 1, "iscrowd": 0} for record in records
    ]
    path.write_text(json.dumps({"image": _image_entry(str(picture.name), image.shape[:2]), "annotations": annotations}))


def write_png(path: Path, picture: Picture, image: np.ndarray, records: Sequence[Record]) -> None:
    """A folder with a black and white PNG per mask and metadata.csv, as the official command writes."""
    path.mkdir()
    with (path / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(
            [
                *("id", "area", "bbox_x0", "bbox_y0", "bbox_w", "bbox_h", "point_input_x", "point_input_y"),
                *("predicted_iou", "stability_score", "crop_box_x0", "crop_box_y0", "crop_box_w", "crop_box_h"),
            ]
        )
        for i, record in enumerate(records):
            scores = (record["predicted_iou"], record["stability_score"])
            table.writerow(
                [i, record["area"], *record["bbox"], *record["point_coords"][0], *scores, *record["crop_box"]]
            )
            mask = decode_rle(record["segmentation"])
            Image.fromarray(mask.astype(np.uint8) * 255).save(path / f"{i}.png")


def write_overlay(path: Path, picture: Picture, image: np.ndarray, records: Sequence[Record]) -> None:
    """The picture with its masks in colours."""
    Image.fromarray(draw_everything(image, [record["segmentation"] for record in records])).save(path, "PNG")


def merge_coco(out: Path, pictures: Sequence[Picture]) -> Path:
    """The parts of finished pictures -> `out/instances.json`, one picture after the other."""
    path, temporary = out / "instances.json", out / ".instances.json.tmp"
    images, next_id = [], 1
    with temporary.open("w") as file:
        file.write('{"info": {"description": "masks of sam-jax everything"}, "licenses": [], ')
        file.write('"categories": [{"id": 1, "name": "object"}], "annotations": [')
        for image_id, picture in enumerate(pictures, start=1):
            part = FORMATS["coco"].target(out, picture)
            if part.exists():
                content = json.loads(part.read_text())
                images.append({"id": image_id} | content["image"])
                for annotation in content["annotations"]:
                    file.write(",\n" if next_id > 1 else "\n")
                    file.write(json.dumps({"id": next_id, "image_id": image_id} | annotation))
                    next_id += 1
        file.write(f'],\n"images": {json.dumps(images)}}}\n')
    temporary.replace(path)
    return path


class Format(NamedTuple):
    folder: str  # in the output folder
    suffix: str  # of the file or folder
    write: Callable[[Path, Picture, np.ndarray, Sequence[Record]], None]

    def target(self, out: Path, picture: Picture) -> Path:
        return out / self.folder / picture.name.with_suffix(self.suffix)

    def save(self, out: Path, picture: Picture, image: np.ndarray, records: Sequence[Record]) -> None:
        target = self.target(out, picture)
        # The same name each time: what a killed run left is overwritten by the next.
        temporary = target.with_name(f".{target.name}.tmp")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove(temporary)
            self.write(temporary, picture, image, records)
            temporary.replace(target)
        except OSError as error:
            _remove(temporary)
            raise OSError(
                f"could not write {target}: {error.strerror or error}; finished pictures are kept, "
                "the same command goes on with the rest"
            ) from error


FORMATS: Mapping[str, Format] = {
    "sa1b": Format("", ".json", write_sa1b),
    "coco": Format("parts", ".json", write_coco),
    "png": Format("", ".masks", write_png),
    "overlay": Format("", ".png", write_overlay),
}


@dataclasses.dataclass
class Report:
    """What a run did."""

    finished: int = 0  # pictures
    skipped: int = 0  # pictures that were there
    masks: int = 0
    failures: dict[Path, str] = dataclasses.field(default_factory=dict)  # pictures that can't be segmented, and why


def segment_pictures(
    generator: SamAutomaticMaskGenerator,
    pictures: Sequence[Picture],
    out: Path,
    format: str,
    settings: Mapping[str, Any],
) -> Report:
    """Writes the masks of every picture that has no result yet, with a progress bar.

    Args:
        generator: its `output_mode` is coco_rle.
        out: folder for the results; made if it is not there.
        format: one of `FORMATS`.
        settings: what the results depend on, as JSON takes it; kept in `out/everything.settings.json`.

    Raises:
        ValueError: `out` holds results of other settings.
        OSError: a result can't be written. What was finished is kept.
    """
    form = FORMATS[format]
    _claim(out, dict(settings) | {"format": format})
    todo = [picture for picture in pictures if not form.target(out, picture).exists()]
    report = Report(skipped=len(pictures) - len(todo))
    writing: deque[Future[None]] = deque()

    def read(picture: Picture) -> np.ndarray:
        return generator.check_image(read_image(picture.path))

    def fail(picture: Picture, reason: str) -> None:
        report.failures[picture.path] = reason

    def finish(most: int) -> None:
        """Waits until no more than `most` results are still to be written; a failed one raises."""
        while len(writing) > most or (writing and writing[0].done()):
            writing.popleft().result()
            report.finished += 1
        bar.update(report.skipped + report.finished + len(report.failures) - bar.n)

    with (
        tqdm(total=len(pictures), initial=report.skipped, unit="picture", smoothing=0.1) as bar,
        ThreadPoolExecutor(THREADS) as readers,
        ThreadPoolExecutor(THREADS) as writers,
    ):
        try:
            for batch in read_batches(readers, todo, read, generator.batch_size, fail):
                results = generator.generate_batch([image for _, image in batch])
                for (picture, image), records in zip(batch, results, strict=True):
                    writing.append(writers.submit(form.save, out, picture, image, records))
                    report.masks += len(records)
                bar.set_postfix(masks=report.masks, refresh=False)
                finish(2 * generator.batch_size)
            finish(0)
        finally:
            readers.shutdown(wait=False, cancel_futures=True)
    if format == "coco":
        merge_coco(out, pictures)
    return report


def read_batches(
    readers: ThreadPoolExecutor,
    items: Iterable[Item],
    read: Callable[[Item], Content],
    batch_size: int,
    failed: Callable[[Item, str], None],
) -> Iterator[list[tuple[Item, Content]]]:
    """What can be read, `batch_size` at a time and read ahead; of the rest the reason goes to `failed`."""
    remaining = iter(items)
    reading: deque[tuple[Item, Future[Content]]] = deque()
    batch = []
    while True:
        while len(reading) < batch_size + THREADS and (item := next(remaining, None)) is not None:
            reading.append((item, readers.submit(read, item)))
        if not reading:
            break
        item, future = reading.popleft()
        try:
            batch.append((item, future.result()))
        except (OSError, ValueError, TypeError) as error:
            failed(item, str(error))
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Keeps the settings in the output folder, or compares them with those that are there."""
    path, temporary = out / "everything.settings.json", out / ".everything.settings.json.tmp"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            temporary.write_text(json.dumps(settings, indent=1))
            temporary.replace(path)
        text = path.read_text()
    except OSError as error:
        raise OSError(f"the output folder {out} can't be written: {error.strerror or error}") from error
    check_settings(text, settings, path)


def check_settings(text: str, settings: Mapping[str, Any], path: object) -> None:
    """Compares the settings of an earlier run, from the file at `path`, with those of this one.

    Raises:
        ValueError: they are others, or no settings.
    """
    try:
        before = dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise ValueError(f"expected the settings of an earlier run in {path}, got {text[:80]!r}") from error
    after = json.loads(json.dumps(settings))
    changed = sorted(name for name in before | after if before.get(name) != after.get(name))
    if changed:
        changes = ", ".join(f"{name} {before.get(name)!r} -> {after.get(name)!r}" for name in changed)
        folder = PurePosixPath(str(path)).parent
        raise ValueError(f"{folder} holds results of other settings ({changes}); choose another output folder")


def _image_entry(name: str, size: tuple[int, int]) -> dict[str, Any]:
    return {"file_name": name, "height": size[0], "width": size[1]}


def _floats(numbers: Sequence[float]) -> list[float]:
    return [float(number) for number in numbers]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
