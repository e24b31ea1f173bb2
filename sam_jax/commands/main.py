"""The `sam-jax` command: segment, detect, search, annotate, prepare data, convert or export checkpoints, rate masks."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from PIL import Image

from sam_jax.commands.annotate import Annotate, annotate
from sam_jax.commands.engine import Engine, engine
from sam_jax.commands.output_format import OutputFormatName
from sam_jax.commands.rate import Rate, rate
from sam_jax.data.images import read_image
from sam_jax.data.prepare import Prepare, prepare
from sam_jax.errors import UserError
from sam_jax.everything.options import DEFAULT, GeneratorOptions
from sam_jax.files import replacing
from sam_jax.ops.draw import draw_masks
from sam_jax.ops.rle import coco_bbox, decode_rle, encode_rle
from sam_jax.prompting.prompts import Prompt


@dataclasses.dataclass(frozen=True)
class Segment:
    """Cuts an object out of an image.

    Writes into the output folder, named after the image: an overlay of the best mask, every mask as a PNG, and a JSON
    with COCO run lengths, boxes, areas and predicted IoUs. Example: sam-jax segment cat.jpg --point 320,210

    A model that was trained for text prompts takes a text too: sam-jax segment car.jpg --text "a wheel" --model MODEL
    """

    image: tyro.conf.Positional[Path]
    """JPEG, PNG or any other image."""
    point: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="X,Y")] = ()
    """x,y of a pixel in the object; may be given many times."""
    negative_point: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="X,Y")] = ()
    """x,y of a pixel outside the object; may be given many times."""
    box: Annotated[str | None, tyro.conf.arg(metavar="X0,Y0,X1,Y1")] = None
    """x0,y0,x1,y1 of a box around the object."""
    text: str | None = None
    """What to look for, such as "a wheel", alone or with points and box."""
    model: str = "tiny"
    """Name (tiny, vit_b, vit_l, vit_h) or path of a checkpoint in any known format."""
    clip: str | None = None
    """Name or path of the CLIP for the text; without it the one that the model names."""
    out: Path = Path("masks")
    """Folder for the results."""
    single: bool = False
    """One mask in place of three; better for prompts that leave no doubt."""


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


@dataclasses.dataclass(frozen=True)
class Detect:
    """Finds objects with a ViTDet detector and writes them as one COCO result file.

    An entry has image_id, category_id, bbox (x, y, width, height), score and segmentation (run lengths).
    Example: sam-jax detect annotations/instances_val2017.json --model vitdet.safetensors --out boxes.json
    """

    inputs: tyro.conf.Positional[tuple[Path, ...]]
    """A COCO-format JSON file, or images and folders, whose entries then have the file's name too."""
    model: Path
    """Detector: ours (.safetensors), or detectron2's ViTDet (.pkl, .pth)."""
    out: Path = Path("detections.json")
    """Result file; replaced when all is done."""
    images: Path | None = None
    """Folder of a JSON file's images, where they are not near it."""
    min_score: float | None = None
    """Objects with a score above this; without it as the detector was published (0.05, LVIS 0.02)."""
    batch: int = 1
    """Images computed together."""
    boxes_only: bool = False
    """Leave segmentations out."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the arithmetic."""


@dataclasses.dataclass(frozen=True)
class Search:
    """Finds objects by text: ranks all masks of an image by what CLIP makes of them. Takes any model.

    Writes into the output folder, named after the image: an overlay of each text's best mask, and a JSON with the
    best masks for each text. Example: sam-jax search street.jpg --text "a wheel" --text "a red car"
    """

    image: tyro.conf.Positional[Path]
    """JPEG, PNG or any other image."""
    text: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="TEXT")] = ()
    """What to look for; may be given many times."""
    model: str = "tiny"
    """Name (tiny, vit_b, vit_l, vit_h) or path of a checkpoint in any known format."""
    clip: str = "clip_l14_336"
    """Name (clip_b32, clip_b16, clip_l14, clip_l14_336) or path of a CLIP checkpoint."""
    out: Path = Path("found")
    """Folder for the results."""
    top: int = 5
    """Most masks for each text."""


@dataclasses.dataclass(frozen=True)
class Convert:
    """Converts a checkpoint between the official .pth, Hugging Face and this project's safetensors.

    The source's format is seen from its content, the target's from its name: .pth official, .safetensors ours, a
    folder Hugging Face. A .pkl is one of detectron2's ViTDet detectors, which becomes .safetensors.
    """

    source: tyro.conf.Positional[Path]
    """Checkpoint to read."""
    target: tyro.conf.Positional[Path]
    """Checkpoint to write."""
    ritm: bool = False
    """The source is a checkpoint of RITM, the interactive baseline; the target *.safetensors."""
    overwrite: bool = False
    """Replace the target if it exists."""


@dataclasses.dataclass(frozen=True)
class Export:
    """Writes the model of a training run's checkpoint in any format.

    The name of the target tells the format: .pth official, .safetensors ours, a folder Hugging Face.
    Example: sam-jax export runs/finetune sam.pth --step 2000
    """

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    target: tyro.conf.Positional[Path]
    """Checkpoint to write."""
    step: int | None = None
    """Of the checkpoint; without it the last."""
    overwrite: bool = False
    """Replace the target if it exists."""


@dataclasses.dataclass(frozen=True)
class Demo:
    """Cuts objects out of a photograph that comes with the package, with the embedded model."""

    out: Path = Path("demo_output")
    """Folder for the results."""
    model: str = "tiny"
    """Name or path of a checkpoint."""


# What the demonstration asks for, in pixels of assets/demo.jpg.
DEMO_PROMPTS = {
    "apple": Prompt(
        points=np.array([[238, 262], [238, 330]]), labels=np.array([1, 1]), box=np.array([150, 182, 330, 374])
    ),
    "left bananas": Prompt(box=np.array([68, 12, 226, 374])),
    "right banana": Prompt(points=np.array([[385, 220], [330, 130]]), labels=np.array([1, 0])),
}


def segment(options: Segment) -> None:
    from sam_jax.checkpoints.hub import load_clip, load_model
    from sam_jax.predictor import SamPredictor

    image = read_image(options.image)
    positive = [_numbers(text, 2, "--point") for text in options.point]
    negative = [_numbers(text, 2, "--negative-point") for text in options.negative_point]
    points, labels = positive + negative, [1] * len(positive) + [0] * len(negative)
    box = None if options.box is None else np.array(_numbers(options.box, 4, "--box"))
    if not points and box is None and options.text is None:
        raise UserError("expected a prompt: --point x,y, --box x0,y0,x1,y1, --text, or several of them")
    prompt = Prompt(np.array(points) if points else None, np.array(labels) if points else None, box, text=options.text)
    prompt.check(image.shape[:2])
    model, clip = load_model(options.model), None
    if options.text is not None and model.config.text_dim:  # without a text prompt the predictor says so
        clip = load_clip(options.clip or model.config.text_encoder)
    predictor = SamPredictor(model, clip)
    predictor.set_image(image)
    result = predictor.predict_prompts([prompt], multimask_output=not options.single)
    order = np.argsort(-result.iou_predictions[0], kind="stable")
    masks, scores = result.masks[0][order], result.iou_predictions[0][order]
    stem = options.image.stem
    files = {
        f"{stem}_overlay.png": draw_masks(image, masks[:1], points, labels, [] if box is None else [tuple(box)]),
        **{f"{stem}_mask_{i}.png": mask.astype(np.uint8) * 255 for i, mask in enumerate(masks)},
        f"{stem}.json": {
            "picture": options.image.name,
            "model": options.model,
            "prompt": {"points": points, "labels": labels, "box": None if box is None else box.tolist()}
            | ({} if options.text is None else {"text": options.text}),
            "masks": _records(masks, scores),
        },
    }
    _write_files(options.out, files)


def everything(options: Everything) -> int:
    from sam_jax.data.images import find_images
    from sam_jax.everything.folders import segment_images

    settings = options.generator.settings()
    image_files = find_images(options.inputs, options.out)
    generator = options.generator.load()
    report = segment_images(generator, image_files, options.out, options.format, settings)
    already = f", {report.skipped} were there" if report.skipped else ""
    print(f"{report.masks} masks of {report.finished} images{already}, in {options.out}")
    if report.finished and not report.masks:
        print("no mask passed the filters; --pred-iou-thresh and --stability-score-thresh let more through")
    for path, reason in report.failures.items():
        print(f"sam-jax: not segmented: {reason if str(path) in reason else f'{path}: {reason}'}", file=sys.stderr)
    return 1 if report.failures else 0


def detect(options: Detect) -> int:
    import jax.numpy as jnp

    from sam_jax.checkpoints.detector import load_detector
    from sam_jax.detection.run import detect_images, find_targets

    if options.batch < 1:
        raise UserError(f"expected --batch of at least 1, got {options.batch}")
    targets = find_targets(options.inputs, options.images, options.out)
    params, config = load_detector(options.model)
    if options.min_score is not None:
        config = dataclasses.replace(config, score_threshold=options.min_score)
    report = detect_images(
        params,
        config,
        targets,
        options.out,
        batch_size=options.batch,
        masks=not options.boxes_only,
        dtype=jnp.dtype(options.dtype),
    )
    print(f"{report.objects} objects on {report.images} images, in {options.out}")
    for path, reason in report.failures.items():
        print(f"sam-jax: not read: {reason if str(path) in reason else f'{path}: {reason}'}", file=sys.stderr)
    return 1 if report.failures else 0


def search(options: Search) -> None:
    from sam_jax.checkpoints.hub import load_clip, load_model
    from sam_jax.everything.generator import MaskGeneratorConfig, SamAutomaticMaskGenerator
    from sam_jax.everything.text_search import search as find

    if not options.text:
        raise UserError('expected what to look for: --text "a wheel"; it may be given many times')
    image = read_image(options.image)
    generator = SamAutomaticMaskGenerator(load_model(options.model), MaskGeneratorConfig(output_mode="coco_rle"))
    found = find(generator, load_clip(options.clip), image, options.text, options.top)
    answers = [
        {
            "text": text,
            "masks": [
                answer.record | {"similarity": round(answer.similarity, 4), "margin": round(answer.margin, 4)}
                for answer in row
            ],
        }
        for text, row in zip(options.text, found, strict=True)
    ]
    stem = options.image.stem
    overlays = {
        f"{stem}_{i}.png": draw_masks(image, [decode_rle(row[0].record["segmentation"])])
        for i, row in enumerate(found)
        if row
    }
    content = {"picture": options.image.name, "model": options.model, "clip": options.clip, "found": answers}
    _write_files(options.out, overlays | {f"{stem}.json": content})


def demo(options: Demo) -> None:
    from sam_jax.checkpoints.hub import load_model
    from sam_jax.predictor import SamPredictor

    with resources.as_file(resources.files("sam_jax") / "assets" / "demo.jpg") as path:
        image = read_image(path)
    predictor = SamPredictor(load_model(options.model))
    predictor.set_image(image)
    result = predictor.predict_prompts(list(DEMO_PROMPTS.values()))
    best = result.iou_predictions.argmax(-1)
    masks = [result.masks[q, m] for q, m in enumerate(best)]
    scores = [float(result.iou_predictions[q, m]) for q, m in enumerate(best)]
    asked = image
    for prompt in DEMO_PROMPTS.values():
        points = [] if prompt.points is None else [tuple(xy) for xy in prompt.points]
        boxes = [] if prompt.box is None else [tuple(prompt.box)]
        asked = draw_masks(asked, [], points, [] if prompt.labels is None else list(prompt.labels), boxes)
    drawn = draw_masks(image, masks)
    cut_out = np.where(np.any(masks, 0)[..., None], image, 255).astype(np.uint8)
    files = {
        "demo.png": np.concatenate([asked, drawn, cut_out], 1),
        "demo.json": {
            "picture": "demo.jpg",
            "model": options.model,
            "masks": [{"name": name} | r for name, r in zip(DEMO_PROMPTS, _records(masks, scores), strict=True)],
        },
    }
    _write_files(options.out, files)


def convert(options: Convert) -> None:
    from sam_jax.checkpoints import convert_file
    from sam_jax.checkpoints.detector import convert_detector
    from sam_jax.checkpoints.ritm import convert_ritm

    pickled = options.source.suffix == ".pkl"
    write = convert_ritm if options.ritm else convert_detector if pickled else convert_file
    write(options.source, options.target, overwrite=options.overwrite)
    print(f"wrote {options.target}")


def export(options: Export) -> None:
    from sam_jax.checkpoints import check_destination, save_any
    from sam_jax.training.export import load_run

    check_destination(options.target, overwrite=options.overwrite)
    save_any(options.target, *load_run(options.run, options.step), overwrite=options.overwrite)
    print(f"wrote {options.target}")


def _numbers(text: str, count: int, option: str) -> Any:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != count:
        raise UserError(f"{option} expects {count} numbers joined by commas, got {text!r}")
    return values


def _records(masks: Sequence[np.ndarray], scores: Sequence[float]) -> list[dict]:
    records = []
    for mask, score in zip(masks, scores, strict=True):
        rle = encode_rle(mask)
        record = {"segmentation": rle, "bbox": coco_bbox(rle), "area": int(mask.sum())}
        records.append(record | {"predicted_iou": round(float(score), 4)})
    return records


def _write_files(folder: Path, files: Mapping[str, Any]) -> None:
    """Writes PNG images and JSON, each under a temporary name first, and prints where."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        with replacing(folder / name) as temporary:
            if isinstance(content, dict):
                temporary.write_text(json.dumps(content))
            else:
                Image.fromarray(content).save(temporary, "PNG")
        print(folder / name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Mistakes of the user end with a message and exit code 2, not with a traceback.

    1: some images could not be read or segmented; 130: interrupted.
    """
    options: Segment | Everything | Detect | Search | Annotate | Prepare | Convert | Export | Engine | Rate | Demo = (
        tyro.cli(
            Annotated[Segment, tyro.conf.subcommand("segment")]
            | Annotated[Everything, tyro.conf.subcommand("everything")]
            | Annotated[Detect, tyro.conf.subcommand("detect")]
            | Annotated[Search, tyro.conf.subcommand("search")]
            | Annotated[Annotate, tyro.conf.subcommand("annotate")]
            | Annotated[Prepare, tyro.conf.subcommand("prepare")]
            | Annotated[Convert, tyro.conf.subcommand("convert")]
            | Annotated[Export, tyro.conf.subcommand("export")]
            | Annotated[Engine, tyro.conf.subcommand("engine")]
            | Annotated[Rate, tyro.conf.subcommand("rate")]
            | Annotated[Demo, tyro.conf.subcommand("demo")],
            prog="sam-jax",
            args=arguments,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    )
    try:
        match options:
            case Segment():
                segment(options)
            case Everything():
                return everything(options)
            case Detect():
                return detect(options)
            case Search():
                search(options)
            case Annotate():
                annotate(options)
            case Prepare():
                prepared = prepare(options)
                left_out = "".join(f", {count} left out ({reason})" for reason, count in prepared.bad.items())
                print(f"{prepared.images} images with {prepared.masks} masks{left_out}, in {prepared.path}")
            case Convert():
                convert(options)
            case Export():
                export(options)
            case Engine():
                return engine(options)
            case Rate():
                rate(options)
            case Demo():
                demo(options)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"sam-jax: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sam-jax: interrupted; what was finished is kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
