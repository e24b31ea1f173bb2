"""`sam-jax annotate`: the page on which people annotate images with the model's help."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from sam_jax.bounds import CheckedFields, Port, PositiveFactor, Rate
from sam_jax.errors import MissingPackage, UserError

STAGES: dict[str, Literal["assisted-manual", "semi-automatic"]] = {
    "assisted": "assisted-manual",
    "semi": "semi-automatic",
}


@dataclasses.dataclass(frozen=True)
class Annotate(CheckedFields):
    """Opens a page to annotate images with the model's help: click, drag boxes, brush, name, save.

    Every mask is on disk when the page says so; the same command goes on. Several people may annotate at once, each
    with own images. Example: sam-jax annotate photos --model vit_b --project fruits
    """

    folder: tyro.conf.Positional[Path]
    """Folder of images, with all below it."""
    model: str | None = None
    """Name (small, vit_b, vit_l, vit_h), path of a checkpoint in any known format, or OWNER/NAME on the Hugging Face
    Hub. Without it the project's own, which sam-jax engine promote chooses; small in a new project."""
    project: Path = Path("project")
    """Folder of the project, made if need be. The images stay where they are."""
    stage: Annotated[Literal["assisted", "semi"] | None, tyro.conf.arg(metavar="assisted|semi")] = None
    """assisted: start from clicks; semi: complete what the model proposes. Without it as the project says."""
    held_out: Rate = 0.0
    """Fraction of the images that models are evaluated on and never trained on."""
    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of the keys 1 to 9 and of the categories of exports; the page can change them.
    Without it as the project says."""
    host: str = "127.0.0.1"
    """Address to listen on. Other machines can reach any but 127.0.0.1 and localhost: a token is asked for then."""
    port: Port = 8009
    """Port to listen on; 0 takes one that is free."""
    token: str | None = None
    """Token that a visitor must have, 16 to 256 letters and digits; also from SAM_JAX_TOKEN. Where one is needed and
    none is given, it is drawn at random."""
    label_studio: Annotated[str | None, tyro.conf.arg(metavar="URL")] = None
    """Address of a Label Studio whose images are fetched into the project when somebody clicks on them, such as
    http://localhost:8080; its token from LABEL_STUDIO_API_KEY. The model is its ML backend at /label-studio, with
    or without this. The folder may be empty then."""
    max_megapixels: PositiveFactor = 50.0
    """Size of the largest images that are taken, million pixels."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the arithmetic."""

    def run(self) -> None:
        """Serves the page until it is interrupted."""
        try:
            from sam_jax.app.server import create_app
            from sam_jax.web.serving import access_of, serve_app
        except ImportError as error:
            raise MissingPackage(f"the page needs a web server: pip install 'sam_jax[app]' ({error})") from error
        from sam_jax.app.images import scan
        from sam_jax.app.label_studio_files import LabelStudio
        from sam_jax.checkpoints.hub import load_model
        from sam_jax.engine.models import model_in_use
        from sam_jax.engine.store import Store

        if not 0 < self.max_megapixels <= 1000:
            raise UserError(f"expected --max-megapixels above 0 and up to 1000, got {self.max_megapixels:g}")
        access = access_of(self.host, self.token)
        source = None
        if self.label_studio is not None:
            source = LabelStudio(self.label_studio, os.environ.get("LABEL_STUDIO_API_KEY", ""))
        found = scan(self.folder, self.project, may_be_empty=source is not None)
        for name in found.refused:
            print(f"sam-jax: left out, it leads out of the folder or is no text: {name}", file=sys.stderr)
        store = Store(self.project)
        name, version = model_in_use(store, self.model)
        model = load_model(name, dtype=self.dtype)
        new = store.add_images(self.folder, found.names, self.held_out)
        if self.stage is not None:
            store.set_stage(STAGES[self.stage])
        if self.classes:
            store.set_classes(self.classes)
        max_pixels = round(self.max_megapixels * 1_000_000)
        app = create_app(store, model, access, model_version=version, max_pixels=max_pixels, label_studio=source)
        serve_app(app, access, self.port, f"{len(found.names)} images, {new} of them new, in {self.project}.")
