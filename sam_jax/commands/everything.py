"""`sam-jax everything`: all masks of images and folders."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro

from sam_jax.commands.output_format import OutputFormatName
from sam_jax.commands.results import explain_empty, print_failures
from sam_jax.everything.options import DEFAULT, GeneratorOptions


@dataclasses.dataclass(frozen=True)
class Everything:
    """Finds all masks of images or of folders of images.

    Stop it at any time: the same command goes on. An image that can't be read is reported at the end.
    Example: sam-jax everything photos --out masks --format overlay
    """

    inputs: tyro.conf.Positional[tuple[Path, ...]]
    """Images, and folders that are searched with all below them."""
    out: Path = Path("everything")
    """Folder for the results, one per image, with the names and subfolders of the images."""
    format: OutputFormatName = "sa1b"
    generator: tyro.conf.OmitArgPrefixes[GeneratorOptions] = DEFAULT

    def run(self) -> int:
        """Writes all masks; returns 1 if some images can't be segmented."""
        from sam_jax.data.images import find_images
        from sam_jax.everything.folders import segment_images

        settings = self.generator.settings()
        image_files = find_images(self.inputs, self.out)
        generator = self.generator.load()
        report = segment_images(generator, image_files, self.out, self.format, settings)
        already = f", {report.skipped} were there" if report.skipped else ""
        print(f"{report.masks} masks of {report.finished} images{already}, in {self.out}")
        if report.empty:
            print(explain_empty(report.empty, report.dropped.describe(generator.config)))
        print_failures("not segmented", report.failures)
        return 1 if report.failures else 0
