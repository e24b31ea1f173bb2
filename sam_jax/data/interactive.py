"""Reads folders of interactive segmentation: one object on each image, as GrabCut, Berkeley and DAVIS have there.

Reference: Sofiiuk et al. 2021 (RITM), whose data these folders are.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from sam_jax.data.examples import Example
from sam_jax.data.images import is_image_name
from sam_jax.errors import BadRecord, MissingFile, decoding
from sam_jax.ops.rle import encode_rle

FOLDERS = (("data_GT", "boundary_GT"), ("images", "masks"), ("img", "gt"))  # GrabCut, Berkeley, DAVIS
VOID = 128


class InteractiveSource:
    """Gives images, each with a mask of its name.

    Args:
        graded: True: the value 128 of masks is void, which no metric counts, and what is above it is the object;
            False: all above 0 is.

    Raises:
        MissingFile: neither of the known pairs of folders is there, or no image with a mask.
    """

    def __init__(self, root: Path, dataset: str, *, graded: bool = True) -> None:
        self.dataset, self.graded = dataset, graded
        pair = next((pair for pair in FOLDERS if all((root / name).is_dir() for name in pair)), None)
        if pair is None:
            known = ", ".join(f"{images}/ with {masks}/" for images, masks in FOLDERS)
            raise MissingFile(f"expected images and masks in {root}, as {known}; found neither")
        masks = {path.stem: path for path in sorted((root / pair[1]).iterdir()) if path.is_file()}
        image_paths = sorted(path for path in (root / pair[0]).iterdir() if is_image_name(path))
        self._files = [(path, masks.get(path.stem)) for path in image_paths]
        if not any(mask for _, mask in self._files):
            raise MissingFile(f"no image of {root / pair[0]} has a mask of its name in {root / pair[1]}")

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        path, file = self._files[index]
        if file is None:
            raise BadRecord("no mask", path)
        with decoding(file, "mask"), Image.open(file) as image:
            colours = np.asarray(image.convert("RGB"))
        values = colours.max(-1)
        mask = values > (VOID if self.graded else 0)
        void = encode_rle(values == VOID) if self.graded else None
        return Example(path, values.shape, (encode_rle(mask),), self.dataset, void)
