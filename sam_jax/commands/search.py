"""`sam-jax search`: masks ranked by a text."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from sam_jax.bounds import CheckedFields, Count
from sam_jax.commands.results import write_files
from sam_jax.data.images import read_image
from sam_jax.errors import UserError
from sam_jax.everything.options import DEFAULT, GeneratorOptions
from sam_jax.ops.draw import draw_masks
from sam_jax.ops.rle import decode_rle


@dataclasses.dataclass(frozen=True)
class Search(CheckedFields):
    """Finds objects by text: ranks all masks of an image by CLIP's similarity to the text. Takes any model.

    Writes into the output folder, named after the image: an overlay of each text's best mask, and a JSON with the
    best masks for each text. Example: sam-jax search street.jpg --text "a wheel" --text "a red car"
    """

    image: tyro.conf.Positional[Path]
    """JPEG, PNG or any other image."""
    text: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="TEXT")] = ()
    """What to look for; may be given many times."""
    clip: str = "clip_l14_336"
    """Name (clip_b32, clip_b16, clip_l14, clip_l14_336) or path of a CLIP checkpoint."""
    out: Path = Path("found")
    """Folder for the results."""
    top: Count = 5
    """Most masks for each text."""
    generator: tyro.conf.OmitArgPrefixes[GeneratorOptions] = DEFAULT

    def run(self) -> None:
        """Writes the best masks for each text into the output folder, and says so if there is no mask at all."""
        from sam_jax.checkpoints.hub import load_clip
        from sam_jax.everything.text_search import search as find

        if not self.text:
            raise UserError('expected what to look for: --text "a wheel"; it may be given many times')
        image = read_image(self.image)
        found = find(self.generator.load(), load_clip(self.clip), image, self.text, self.top)
        answers = [
            {
                "text": text,
                "masks": [
                    answer.record | {"similarity": round(answer.similarity, 4), "margin": round(answer.margin, 4)}
                    for answer in row
                ],
            }
            for text, row in zip(self.text, found, strict=True)
        ]
        stem = self.image.stem
        overlays = {
            f"{stem}_{i}.png": draw_masks(image, [decode_rle(row[0].record["segmentation"])])
            for i, row in enumerate(found)
            if row
        }
        content = {"picture": self.image.name, "model": self.generator.model, "clip": self.clip, "found": answers}
        write_files(self.out, overlays | {f"{stem}.json": content})
        if not any(found):  # the generator has told what its filters dropped
            print(f"nothing is found for any text: {self.image.name} is without masks")
