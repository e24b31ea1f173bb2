"""Dataset versions: the annotations up to a point in time, frozen in folders that `sam-jax train` reads as SA-1B.

    datasets/0001/version.json        what the version contains, and what it was made from
    datasets/0001/SHA256SUMS          checksums of all files, for `sha256sum -c`
    datasets/0001/0000/sa_12.jpg      the unchanged image, beside sa_12.json with its masks
    held_out/0001/...                 the same for the held-out images, on which models are evaluated

A version never changes. Images are copied into the project once, later versions link to the copies.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from sam_jax.data.examples import Example
from sam_jax.data.sa1b import find_sa1b, pairs_of_tar, warn_if_unfinished
from sam_jax.engine.records import KEPT, MaskRecord, Split, Stage, StoredImage, to_record
from sam_jax.engine.statements import now
from sam_jax.engine.store import Store
from sam_jax.errors import BadRecord, MissingFile, UserError
from sam_jax.everything.formats.sa1b import sa1b_annotation
from sam_jax.files import make_folder, parse_json, read_bytes, read_json, read_json_lines, read_text, remove, write
from sam_jax.progress import ProgressBar

FOLDERS: dict[Split, str] = {"train": "datasets", "held_out": "held_out"}
IMAGES_PER_FOLDER = 1000
AUTOMATIC = "automatic"  # folder of the images that were annotated by the model alone


@dataclasses.dataclass(frozen=True)
class DatasetVersion:
    """The contents of `version.json`."""

    number: int
    split: Split
    at: str  # UTC
    stage: Stage  # of the project when the version was frozen
    pictures: int
    masks: int
    origins: dict[str, int]  # manual, prefilled, automatic -> masks
    models: dict[str, int]  # model that drew the masks -> masks
    automatic: list[str]  # folders of automatic masks that were included
    sha256: str  # of SHA256SUMS, which covers all files


def version_folder(store: Store, split: Split, number: int) -> Path:
    """Returns the folder of a dataset version, whether it exists or not."""
    return store.folder / FOLDERS[split] / f"{number:04d}"


def list_versions(store: Store, split: Split = "train") -> list[DatasetVersion]:
    """Returns all frozen versions of a split, oldest first.

    Raises:
        UserError: a version.json was written by another program, or by a newer sam_jax.
    """
    files = sorted((store.folder / FOLDERS[split]).glob("[0-9]*/version.json"))
    try:
        return [DatasetVersion(**read_json(file)) for file in files]
    except TypeError as error:
        raise UserError(f"expected files of this sam_jax in {store.folder / FOLDERS[split]}: {error}") from error


def freeze(store: Store, split: Split = "train", automatic: Sequence[Path] = ()) -> DatasetVersion:
    """Freezes the accepted and edited masks of all finished images of a split, with a progress bar.

    A version appears only once it is complete. If nothing has changed since the last version, no new one is written.

    Args:
        split: train, or held_out for the images on which models are evaluated.
        automatic: folders or tars in SA-1B's layout, as `sam-jax engine run` writes them, whose masks are included in
            the training split. Images that people finished, or that are held out, are skipped.

    Returns:
        The new version, or the last one if nothing has changed.

    Raises:
        UserError: there is no finished image with a mask, or automatic masks are given for the held-out split.
        MissingFile: an annotated image no longer exists.
    """
    if split == "held_out" and automatic:
        raise UserError("expected people's masks alone to judge models on, got automatic ones")
    parent = store.folder / FOLDERS[split]
    make_folder(parent)
    with FileLock(parent / ".lock"):
        versions = list_versions(store, split)
        last = versions[-1] if versions else None
        with _building(parent / ".new") as folder:
            version = _Writer(folder, None if last is None else version_folder(store, split, last.number))
            _write_images(store, split, version)
            for path in automatic:
                _write_automatic(store, path, version)
            if not version.pictures:
                raise UserError(
                    f"expected finished images with masks in the {split} part of {store.folder}, found none; "
                    "annotate some first (sam-jax annotate)"
                )
            digest = version.finish()
            if last is not None and last.sha256 == digest:
                return last
            frozen = DatasetVersion(
                number=last.number + 1 if last else 1,
                split=split,
                at=now(),
                stage=store.stage,
                pictures=version.pictures,
                masks=version.origins.total(),
                origins=dict(version.origins),
                models=dict(version.models),
                automatic=[str(path) for path in automatic],
                sha256=digest,
            )
            write(folder / "version.json", json.dumps(dataclasses.asdict(frozen), indent=1))
            folder.rename(version_folder(store, split, frozen.number))
    return frozen


@contextlib.contextmanager
def _building(folder: Path) -> Iterator[Path]:
    """Yields a new temporary folder, which is deleted at the end, as are leftovers of a killed run."""
    remove(folder)
    make_folder(folder)
    try:
        yield folder
    finally:
        remove(folder)


class _Writer:
    """Writes a version's files and counts its images and masks.

    Args:
        last: folder of the previous version; images that have not changed are hard links to it.

    Attributes:
        seen: SHA-256 of images that are included already, or must not be included.
    """

    def __init__(self, folder: Path, last: Path | None) -> None:
        self.folder, self.pictures, self.seen = folder, 0, set[str]()
        self.origins: Counter[str] = Counter()
        self.models: Counter[str] = Counter()
        self._last, self._sums = last, list[str]()
        sums = read_text(last / "SHA256SUMS").splitlines() if last else []
        self._before = {name: digest for digest, name in (line.split("  ", 1) for line in sums)}

    def add(self, name: str, stored: bytes, image: dict[str, Any], annotations: list[dict[str, Any]]) -> None:
        """Writes an image and its annotations, unless the image was seen before or has no masks."""
        digest = hashlib.sha256(stored).hexdigest()
        if digest in self.seen or not annotations:
            return
        self.seen.add(digest)
        self.pictures += 1
        self.origins.update(annotation["origin"] for annotation in annotations)
        self.models.update(annotation["model"] for annotation in annotations)
        path = self.folder / name
        make_folder(path.parent)
        if self._last is None or self._before.get(name) != digest or not _link(self._last / name, path):
            _write(path, stored)
        self._sums.append(f"{digest}  {name}")
        content = {"image": image | {"file_name": path.name}, "annotations": annotations}
        text = json.dumps(content).encode()
        _write(path.with_suffix(".json"), text)
        self._sums.append(f"{hashlib.sha256(text).hexdigest()}  {Path(name).with_suffix('.json').as_posix()}")

    def finish(self) -> str:
        """Writes SHA256SUMS and returns its own SHA-256."""
        text = "".join(f"{line}\n" for line in self._sums).encode()
        _write(self.folder / "SHA256SUMS", text)
        return hashlib.sha256(text).hexdigest()


def _write(path: Path, content: bytes) -> None:
    write(path, content)
    path.chmod(0o444)


def _link(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:  # a file system without links, or a version that was deleted
        return False
    return True


def _write_images(store: Store, split: Split, version: _Writer) -> None:
    if split == "train":  # an image that is in both splits, under two names, must not be trained on
        held_out = [stored for stored in store.images() if stored.split == "held_out"]
        version.seen = {hashlib.sha256(_read(stored)).hexdigest() for stored in held_out}
    done = [stored for stored in store.images("done") if stored.split == split]
    for stored in ProgressBar(done, "freezing", unit="image", delay=1):
        masks = [mask for mask in store.masks(stored.id) if mask.state in KEPT]
        name = f"{stored.id // IMAGES_PER_FOLDER:04d}/sa_{stored.id}{stored.path.suffix.lower()}"
        image = {"image_id": stored.id, "width": stored.width, "height": stored.height, "source": stored.name}
        if masks:
            version.add(name, _read(stored), image, [to_annotation(i, mask) for i, mask in enumerate(masks)])


def _read(stored: StoredImage) -> bytes:
    if not stored.path.is_file():
        raise MissingFile(f"expected an image of the project at {stored.path}, found none; put it back")
    return read_bytes(stored.path)


def to_annotation(number: int, mask: MaskRecord) -> dict[str, Any]:
    """Returns a mask as an SA-1B annotation that also says who or what drew it."""
    origin = {field: getattr(mask, field) for field in ("rank", "origin", "state", "model")}
    return sa1b_annotation(number, to_record(mask)) | {"mask_id": mask.id} | origin


def read_automatic(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yields each image of SA-1B's layout as its encoded bytes and its parsed JSON.

    Args:
        path: a tar, a folder of tars, or a folder of image and JSON pairs.

    Raises:
        MissingFile: nothing exists at `path`.
        UserError: there are no images in SA-1B's layout, or some can't be read.
    """
    if not path.exists():
        raise MissingFile(f"expected automatic masks at {path}, found nothing")
    warn_if_unfinished(path)
    tars, pairs = find_sa1b(path)
    if not tars and not pairs:
        raise UserError(f"expected images with a JSON of masks beside each, or tars of them, in {path}; found none")
    for stored, annotation in pairs:
        yield read_bytes(stored), read_json(annotation)
    problems: list[BadRecord] = []
    for tar in tars:
        for pair in pairs_of_tar(tar, problems):
            parts = [
                Example(tar, (0, 0), (), "", span=span, member=pair.name) for span in (pair.image, pair.annotation)
            ]
            yield parts[0].read(), parse_json(parts[1].read(), parts[1].where)
    if problems:
        raise UserError(f"{len(problems)} images in {path} can't be used, the first: {problems[0]}")


def _write_automatic(store: Store, path: Path, version: _Writer) -> None:
    """Adds automatic masks, except those of images that are held out or finished.

    Such images are recognised by their bytes; or, since a JPEG may have been encoded anew, by the list that
    `sam-jax engine run` writes beside its tars.
    """
    taken = {str(p.path) for p in store.images() if p.split == "held_out"} | {str(p.path) for p in store.images("done")}
    listed = path / "pictures.jsonl"
    rows = read_json_lines(listed) if listed.is_file() else []
    leave_out = {row["id"] for row in rows if str(Path(row["url"]).resolve()) in taken}
    for stored, content in ProgressBar(read_automatic(path), "freezing automatic masks", unit="image", delay=1):
        try:
            image = {key: content["image"][key] for key in ("image_id", "width", "height")}
            source = content["image"]["file_name"]
            annotations = [
                annotation | {"origin": "automatic", "state": "accepted", "model": annotation.get("model", "")}
                for annotation in content["annotations"]
            ]
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"expected JSON of SA-1B's layout in {path}: {type(error).__name__} {error}") from error
        if image["image_id"] not in leave_out:
            name = f"{AUTOMATIC}/{hashlib.sha256(stored).hexdigest()[:20]}{Path(source).suffix.lower()}"
            version.add(name, stored, image | {"source": source}, annotations)
