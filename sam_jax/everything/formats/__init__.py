"""Lists the formats in which everything mode, the annotation page and the data engine write masks.

A format is one file here that defines `FORMAT`, and a place in the line below.
"""

from sam_jax.everything.formats import coco, geojson, labelme, overlay, png, sa1b, yolo
from sam_jax.everything.formats.common import OBJECT, AnnotatedImage, OutputFormat

FORMATS: dict[str, OutputFormat] = {
    form.FORMAT.name: form.FORMAT for form in (coco, sa1b, png, overlay, yolo, labelme, geojson)
}

__all__ = ["FORMATS", "OBJECT", "AnnotatedImage", "OutputFormat"]
