"""Reads COCO-format files: their JSON, masks and image folders, and training examples from them.

Reference: Lin et al. 2014 (COCO); LVIS (Gupta et al. 2019) has the same layout, but for the names of its images.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sam_jax.data.bad_records import count_reasons
from sam_jax.data.examples import Example
from sam_jax.data.images import MAX_PIXELS
from sam_jax.data.segmentations import check_mask, is_image_size, read_mask
from sam_jax.errors import BadRecord, MissingFile, UserError
from sam_jax.files import read_json

logger = logging.getLogger(__name__)

Entry = dict[str, Any]
"""One of `images`, `annotations` or `categories`."""

# Files of the COCO release that hold no instances.
OTHER_KINDS = ("captions", "person_keypoints", "image_info", "panoptic", "stuff")
NAME = "name of the file"  # of an image: `file_name`, or LVIS's `coco_url`
INSTANCES: dict[str, tuple[str, ...]] = {"images": ("id", NAME), "annotations": ("image_id",)}  # what masks take
# Checked where they are; null is as if they were not.
OPTIONAL = ("category_id", "area", "iscrowd", "neg_category_ids", "not_exhaustive_category_ids")
LOOKED_AT = 8  # images whose files tell the folder


@dataclasses.dataclass(frozen=True)
class CocoFile:
    """The entries of a COCO-format file that can be used; kinds that `read_coco_file` was not asked for are empty."""

    path: Path
    images: list[Entry]
    annotations: list[Entry]
    categories: list[Entry]
    problems: tuple[BadRecord, ...] = ()  # entries that are left out

    def annotations_by_image(self) -> dict[Any, list[Entry]]:
        """Returns the annotations of every image by its id, in the file's order."""
        found: dict[Any, list[Entry]] = {image["id"]: [] for image in self.images}
        for annotation in self.annotations:
            found[annotation["image_id"]].append(annotation)
        return found

    def image_folder(self, given: Path | None, *, required: bool = True) -> Path:
        """Returns the folder of the images; see `find_image_folder`."""
        names = [image_name(image) for image in self.images[:LOOKED_AT]]
        return find_image_folder(self.path, names, given, required=required)


def read_coco_file(
    path: Path,
    fields: Mapping[str, Collection[str]] = INSTANCES,
    *,
    optional: Collection[str] = (),
) -> CocoFile:
    """Reads a COCO-format file and checks it; all parts of the package read such files here.

    Entries that cannot be used, and annotations of an image or a category that is not in the file, are left out, and
    how many for which reason is logged.

    Args:
        fields: the kinds of entries to read, and the fields that each of a kind must have; see `VALUES`. NAME stands
            for `file_name` or LVIS's `coco_url`. An `id` must be another one for each.
        optional: kinds that the file need not have.

    Raises:
        MissingFile: there is no such file.
        UserError: it is no such file, or it has an id twice.
    """
    if not path.is_file():
        raise MissingFile(f"expected a file of annotations at {path.resolve()}, found none")
    content = read_json(path)
    problems: list[BadRecord] = []
    kinds = [kind for kind in fields if kind not in optional or (isinstance(content, dict) and kind in content)]
    for kind in kinds:
        if not isinstance(content, dict) or not isinstance(content.get(kind), list):
            raise UserError(f"expected COCO-format JSON with a list {kind!r} in {path}")
        sound = []
        for number, entry in enumerate(content[kind]):
            try:
                _check_entry(entry, fields[kind], f"{kind}, number {number}, in {path}")
                sound.append(entry)
            except UserError as error:
                problems.append(BadRecord(f"entry of {kind} cannot be used", path, error))
        content[kind] = sound
        if "id" in fields[kind]:
            refuse_repeated_ids((entry["id"] for entry in sound), kind, path)
    for kind, field, name in (("images", "image_id", "image"), ("categories", "category_id", "category")):
        if kind in kinds and field in fields.get("annotations", ()):
            known = {entry["id"] for entry in content[kind]}
            problems += [
                BadRecord(f"annotation of no {name} of the file", path, f"{field} {annotation[field]!r}"[:80])
                for annotation in content["annotations"]
                if annotation[field] not in known
            ]
            content["annotations"] = [a for a in content["annotations"] if a[field] in known]
    images, annotations, categories = (
        content[kind] if kind in kinds else [] for kind in ("images", "annotations", "categories")
    )
    tell_problems(problems, path)
    return CocoFile(path, images, annotations, categories, tuple(problems))


def tell_problems(problems: Sequence[BadRecord], path: Path) -> None:
    """Logs how many entries are left out for which reason, with the first of each."""
    for line in count_reasons(problems):
        logger.warning("left out of %s: %s", path, line)


def refuse_repeated_ids(ids: Iterable[int | str], kind: str, path: Path) -> None:
    """Refuses a file that has ids more than once.

    Raises:
        UserError: names some of them.
    """
    if twice := [id_ for id_, count in Counter(ids).items() if count > 1]:
        raise UserError(
            f"expected different ids of {kind} in {path}, got {len(twice)} more than once, "
            f"such as {', '.join(map(repr, twice[:5]))}"
        )


def sound_masks(annotations: Iterable[Entry], size: tuple[Any, Any], where: str) -> tuple[list[Entry], list[BadRecord]]:
    """Returns the annotations of an image whose masks can be read, and what is wrong with each of the others."""
    sound, problems = [], []
    for annotation in annotations:
        try:
            check_mask(annotation.get("segmentation"), size, f"{where}, annotation {str(annotation.get('id'))[:20]}")
            sound.append(annotation)
        except BadRecord as error:
            problems.append(error)
    return sound, problems


def is_key(value: Any) -> bool:
    """Says whether a value can be an id."""
    return isinstance(value, int | str) and not isinstance(value, bool)


def is_box(value: Any) -> bool:
    """Says whether a value is four numbers, as `bbox` has them."""
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _are_keys(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_key, value))


def _is_length(value: Any) -> bool:
    return is_image_size(value, 1)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_PIXELS


def _is_file_name(value: Any) -> bool:
    """Says whether a file system could have a file of that name: NUL, lone surrogates and long names raise there."""
    if not isinstance(value, str) or not value.strip("/\\ ") or "\0" in value:
        return False
    return all(len(part.encode("utf-8", "surrogatepass")) <= 255 for part in value.split("/")) and not any(
        "\ud800" <= letter <= "\udfff" for letter in value
    )


VALUES: dict[str, tuple[str, Callable[[Any], bool]]] = {  # what a field must be, wherever it is needed
    "id": ("a number or a text", is_key),
    "image_id": ("a number or a text", is_key),
    "category_id": ("a number or a text", is_key),
    "file_name": ("a text that names a file", _is_file_name),
    "coco_url": ("a text that names a file", _is_file_name),
    "height": ("a whole number of pixels", _is_length),
    "width": ("a whole number of pixels", _is_length),
    "area": ("a number of pixels", _is_number),
    "neg_category_ids": ("a list of ids", _are_keys),
    "not_exhaustive_category_ids": ("a list of ids", _are_keys),
    "iscrowd": ("0 or 1", lambda value: isinstance(value, int) and value in (0, 1)),
}


def _check_entry(entry: Any, needed: Collection[str], where: str) -> None:
    if not isinstance(entry, dict):
        raise UserError(f"expected COCO-format JSON: an object for {where}, got {str(entry)[:60]}")
    for field in (*needed, *(field for field in OPTIONAL if entry.get(field) is not None)):
        if field == NAME:
            field = "coco_url" if "coco_url" in entry and "file_name" not in entry else "file_name"
        expected, fits = VALUES.get(field, ("", lambda value: True))
        if field not in entry:
            raise UserError(f"expected COCO-format JSON: {field} for {where}, which has only {', '.join(entry)}")
        if not fits(entry[field]):
            raise UserError(f"expected {field} of {where} to be {expected}, got {str(entry[field])[:60]}")


def image_name(image: Entry) -> str:
    """Returns the path of an image below the folder of images; LVIS v1 has only a `coco_url`, .../val2017/0139.jpg."""
    return image["file_name"] if "file_name" in image else "/".join(image["coco_url"].split("/")[-2:])


def locate_image(folder: Path, name: str) -> Path:
    """Returns where an image lies in a folder: under its whole name, with the separators of Windows too, or, where a
    file has it, the last part.
    """
    names = (name, slashed := name.replace("\\", "/"), slashed.rpartition("/")[2])
    return next((folder / known for known in names if (folder / known).is_file()), folder / slashed)


class CocoSource:
    """Gives the annotated images of one file, in its order. `iscrowd` annotations are left out.

    They are kept as JSON text per image: half a million polygons as Python numbers would take gigabytes.

    Args:
        image_folder: folder to which the names of images are relative; None: see `find_image_folder`.
        keep_image: says which entries of `images` to take.
        min_area: area of the smallest masks that are taken, pixels.
        file_name: returns an image's path in the folder, given its entry of `images`.

    Attributes:
        problems: entries of the file, and objects of images that have others, that are left out.

    Raises:
        MissingFile, UserError: see `read_coco_file` and `find_image_folder`.
    """

    def __init__(
        self,
        annotation_file: Path,
        image_folder: Path | None,
        dataset: str,
        *,
        keep_image: Callable[[Entry], bool] = lambda image: True,
        min_area: int = 1,
        file_name: Callable[[Entry], str] = image_name,
    ) -> None:
        self.file, self.dataset, self.min_area = annotation_file, dataset, min_area
        content = read_coco_file(annotation_file)
        annotations = content.annotations_by_image()
        records, bad_objects = [], []
        for image in filter(keep_image, content.images):
            size: tuple[Any, Any] = image.get("height"), image.get("width")
            objects = [a for a in annotations[image["id"]] if not a.get("iscrowd")]
            sound = objects
            if is_image_size(*size):  # else the image is a bad record, when it is asked for
                sound, problems = sound_masks(objects, size, f"{annotation_file}: {image_name(image)}")
                bad_objects += problems
            if objects:  # of which all may be bad: then the first is what is wrong with the image
                masks = [a.get("segmentation") for a in sound or objects[:1]]
                records.append((file_name(image), *size, masks))
        tell_problems(bad_objects, annotation_file)
        self.problems = [*content.problems, *bad_objects]
        self._records = [json.dumps(record) for record in records]
        names = [record[0] for record in records[:LOOKED_AT]]
        self.folder = find_image_folder(annotation_file, names, image_folder)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        file_name, height, width, segmentations = json.loads(self._records[index])
        path = locate_image(self.folder, file_name)
        if not is_image_size(height, width):
            detail = f"{file_name}: height {str(height)[:20]}, width {str(width)[:20]}"
            raise BadRecord("image without a size", self.file, f"{detail}; at most {MAX_PIXELS} pixels in all")
        height, width = int(height), int(width)
        where = f"{self.file}: {file_name}"
        masks = [read_mask(segmentation, (height, width), where) for segmentation in segmentations]
        kept = tuple(rle for rle, area in masks if area >= self.min_area)
        if not kept:
            raise BadRecord("no masks", path)
        return Example(path, (height, width), kept, self.dataset)


def read_coco(
    annotation_file: Path,
    image_folder: Path | None,
    dataset: str,
    *,
    keep_image: Callable[[Entry], bool] = lambda image: True,
    min_area: int = 1,
) -> list[Example]:
    """Returns all examples of a `CocoSource`, but for images that are left without a mask.

    Raises:
        MissingFile, UserError: no such file; not COCO-format JSON; masks that cannot be read.
    """
    source = CocoSource(annotation_file, image_folder, dataset, keep_image=keep_image, min_area=min_area)
    examples = []
    for i in range(len(source)):
        try:
            examples.append(source[i])
        except BadRecord as error:
            if error.reason != "no masks":
                raise
    return examples


def find_coco_files(folder: Path) -> dict[str, list[Path]]:
    """Finds the instance files of a COCO-style folder: {"train": [...], "validation": [...]}, by their names.

    Looked for: annotations.json, instances*.json, annotations/instances*.json or else all of annotations/*.json, and
    _annotations.coco.json here; then _annotations.coco.json or annotations.json one folder down, whose name says which
    part (train/, valid/). Test parts are left out.
    """
    found: list[Path] = []
    for patterns in (
        ("annotations.json", "instances*.json", "annotations/instances*.json"),
        ("annotations/*.json",),
        ("_annotations.coco.json", "*/_annotations.coco.json"),
        ("train*/annotations.json", "val*/annotations.json"),
    ):
        found = sorted(path for pattern in patterns for path in folder.glob(pattern))
        found = [path for path in found if not path.name.startswith(OTHER_KINDS)]
        if found:
            break
    parts: dict[str, list[Path]] = {"train": [], "validation": []}
    for path in found:
        named_alike = path.name in ("_annotations.coco.json", "annotations.json")
        label = path.parent.name if named_alike and path.parent != folder else path.stem
        words = re.split(r"[^a-z]+", label.lower())
        if any(word.startswith("val") for word in words):
            parts["validation"].append(path)
        elif "test" not in words:
            parts["train"].append(path)
    return parts


def find_image_folder(
    annotation_file: Path, names: Sequence[str], given: Path | None, *, required: bool = True
) -> Path:
    """Finds the folder that holds most of the named images: `given`, or one of the usual ones near the file.

    Raises:
        MissingFile: none of them is there, and they are `required`.
    """
    here = annotation_file.parent
    part = annotation_file.stem.rpartition("_")[2]  # instances_train2017 -> train2017
    near = [root / name for root in (here, here.parent) for name in ("", "images", part, f"images/{part}")]
    folders = near if given is None else [given]
    there = [sum(locate_image(folder, name).is_file() for name in names) for folder in folders]
    if required and names and not any(there):
        looked = ", ".join(str(folder) for folder in folders)
        raise MissingFile(
            f"the images of {annotation_file} ({names[0]}, ...) are not in {looked}; "
            "say where they are with --data.images (sam-jax prepare: --images)"
        )
    return folders[there.index(max(there))]
