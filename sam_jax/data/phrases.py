"""Reads masks with what people call them: referring expressions, captions or category names of COCO-format files."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

from sam_jax.data.coco import (
    NAME,
    find_coco_files,
    image_name,
    locate_image,
    read_coco_file,
    sound_masks,
    tell_problems,
)
from sam_jax.data.examples import Example
from sam_jax.data.segmentations import read_mask
from sam_jax.errors import BadRecord, UserError

# Fields of an annotation that hold texts: one, a list of them, or a list of objects with one of `TEXT_KEYS` each.
PHRASE_FIELDS = ("sentences", "expressions", "referring_expressions", "captions", "caption", "phrase", "text")
FIELDS = {
    "images": ("id", NAME, "height", "width"),
    "annotations": ("image_id",),
    "categories": ("id", "name"),
}
TEXT_KEYS = ("sent", "raw", "text", "caption")


@dataclasses.dataclass(frozen=True)
class PhrasedExample:
    """An image, and a text for each of its masks."""

    example: Example
    texts: tuple[str, ...]


def read_phrases(path: Path, images: Path | None = None, *, min_area: int = 1) -> list[PhrasedExample]:
    """Reads images with a text for each of their masks from a COCO-format file.

    Masks with referring expressions or captions come once for each. In a file without any, masks come with the name of
    their category where they are its only mask in the image: of three cats none is "cat".

    Args:
        path: the file, or a folder with one that `find_coco_files` finds; of its splits the validation one is taken.
        images: folder of the images, where they are not near the file.
        min_area: area of the smallest masks that are taken, pixels; smaller ones still count for their category.

    Raises:
        MissingFile: there is no such file or folder.
        UserError: the file is not COCO-format JSON, or holds no texts.
    """
    if path.is_dir():
        parts = find_coco_files(path)
        files = parts["validation"] or parts["train"]
        if len(files) != 1:
            raise UserError(f"expected one COCO-format file in {path}, found {[str(file) for file in files]}; name it")
        (path,) = files
    content = read_coco_file(path, FIELDS, optional=("categories",))
    folder, annotations = content.image_folder(images), content.annotations_by_image()
    names = {category["id"]: str(category["name"]) for category in content.categories}
    referring = any(_phrases(annotation) for annotation in content.annotations)
    rows: list[PhrasedExample] = []
    problems: list[BadRecord] = []
    for image in content.images:
        size, where = (int(image["height"]), int(image["width"])), f"{path}: {image_name(image)}"
        counts = Counter(annotation.get("category_id") for annotation in annotations[image["id"]])
        masks, texts = [], []
        sound, bad = sound_masks((a for a in annotations[image["id"]] if not a.get("iscrowd")), size, where)
        problems += bad
        for annotation in sound:
            if referring:
                found = _phrases(annotation)
            else:
                category = annotation.get("category_id")
                found = [names[category]] if category in names and counts[category] == 1 else []
            if not found:
                continue
            rle, area = read_mask(annotation.get("segmentation"), size, where)
            if area >= min_area:
                masks += [rle] * len(found)
                texts += found
        if masks:
            example = Example(locate_image(folder, image_name(image)), size, tuple(masks), path.stem)
            rows.append(PhrasedExample(example, tuple(texts)))
    tell_problems(problems, path)
    if not rows:
        raise UserError(
            f"found no texts in {path}: expected annotations with {', '.join(PHRASE_FIELDS)}, or categories with names"
        )
    return rows


def _phrases(annotation: dict) -> list[str]:
    for field in PHRASE_FIELDS:
        value = annotation.get(field)
        found = []
        for item in value if isinstance(value, list) else [value]:
            text = next((item[key] for key in TEXT_KEYS if key in item), None) if isinstance(item, dict) else item
            if isinstance(text, str) and text.strip():
                found.append(text.strip())
        if found:
            return found
    return []
