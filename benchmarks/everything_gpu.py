"""Times everything mode on a GPU against Hugging Face's `pipeline("mask-generation")`, and tells where the time goes.

    python benchmarks/everything_gpu.py --images FOLDER --models vit_b vit_l vit_h --out everything.json
    python benchmarks/everything_gpu.py --images FOLDER --count 2 --image-size 256 --points-per-side 8 \\
        --images-per-device 2 --matmul 512 --dtype float32 --rounds 1                     # a trial on a CPU

Needs torch, torchvision and transformers for the other side; no network. Both sides get a process of their own and take
turns on the same image files, with the same weights (`object_weights.py`: random, arranged so that a realistic
number of masks passes the published thresholds), in the same dtype, a grid of 32 x 32 points, no crops. What each finds
is printed: near numbers of masks are near amounts of work. Images of few sizes compile few programs.

sam_jax runs as `sam-jax everything` does: files read ahead, several images at a time, an SA-1B file written for each.
Theirs takes the same files one by one, as it must, with the number of points at a time that is fastest on the first
images; it writes nothing. Speeds are medians of the rounds; a round before them, which compiles, does not count.

The parts come from passes in which every program is waited for, without files: they add up to more than the pipelined
time. Decoding and filters are one program; a pass that no mask gets through tells them apart. The share of the card is
arithmetic per second against that of a large bfloat16 product in the same process: FLOPs as XLA's cost analysis counts
them in the encoder's and the decoder's program, a loop's once (the filters').
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from workers import Worker, serve

from sam_jax.config import SIZES, SamConfig
from sam_jax.data.images import ImageFile, find_images
from sam_jax.everything.formats import FORMATS
from sam_jax.files import write_atomically
from sam_jax.ops.grids import point_grid

SIDES = ("sam_jax", "huggingface")


class Clock:
    """Seconds of functions that are waited for, by part."""

    def __init__(self, wait: Callable[[Any], Any]) -> None:
        self.wait = wait  # for a result
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self.calls: dict[str, int] = collections.defaultdict(int)
        self.first: dict[str, Any] = {}  # arguments of the first call

    @contextlib.contextmanager
    def watch(self, owner: Any, **parts: str) -> Iterator[None]:
        """While it lasts, `owner`'s functions are timed: name of the function = name of the part."""
        before = {name: getattr(owner, name) for name in parts}
        for name, part in parts.items():
            setattr(owner, name, self.timed(before[name], part))
        try:
            yield
        finally:
            for name, function in before.items():
                setattr(owner, name, function)

    def timed(self, function: Callable, part: str) -> Callable:
        def call(*arguments: Any, **keywords: Any) -> Any:
            self.wait(None)
            start = time.perf_counter()
            result = function(*arguments, **keywords)
            self.wait(result)
            self.seconds[part] += time.perf_counter() - start
            self.calls[part] += 1
            self.first.setdefault(part, arguments)
            return result

        return call


def model_config(options: argparse.Namespace, model: str) -> SamConfig:
    return SIZES[model].with_image_size(options.image_size)


def find_image_files(options: argparse.Namespace) -> list[ImageFile]:
    """Some of the folder's, from all over it."""
    found = find_images([options.images], Path(os.devnull))
    return [found[i] for i in np.linspace(0, len(found) - 1, min(options.count, len(found))).astype(int)]


def ours(options: argparse.Namespace) -> Callable[[str], Any]:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch has a process on the same card
    import jax
    import jax.numpy as jnp
    from object_weights import Readout, object_params, put_readout

    from sam_jax import Sam, SamAutomaticMaskGenerator
    from sam_jax.data.images import read_image
    from sam_jax.everything.folders import segment_images
    from sam_jax.ops.rle import counts_from_rle, rle_area

    image_files = find_image_files(options)
    generators: dict[str, SamAutomaticMaskGenerator] = {}

    def load(request: dict[str, Any]) -> Any:
        generators.clear()  # and with them the last model's memory
        config = model_config(options, request["model"])
        params = object_params(config)
        put_readout(params, Readout(**request["readout"]))
        model = Sam(config, params, jnp.dtype(options.dtype))
        for name, thresholds in (
            ("usual", {}),
            ("nothing", {"pred_iou_thresh": 1.0}),  # which no mask passes
            ("all that pass", {"box_nms_thresh": 1.0}),
        ):
            generators[name] = SamAutomaticMaskGenerator(
                model,
                points_per_side=options.points_per_side,
                images_per_device=options.images_per_device,
                output_mode="coco_rle",
                **thresholds,
            )
        return jax.devices()[0].device_kind

    def run(request: dict[str, Any]) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            report = segment_images(generators["usual"], image_files, Path(folder), "sa1b", {})
            seconds = time.perf_counter() - start
            assert report.finished == len(image_files), report.failures
            files = [FORMATS["sa1b"].target(Path(folder), image_file.name) for image_file in image_files]
            found = [json.loads(file.read_text())["annotations"] for file in files]
        masks = [record["segmentation"] for records in found for record in records]
        return {
            "seconds": seconds,
            "masks": [len(records) for records in found],
            "areas": [rle_area(mask) / np.prod(mask["size"]) for mask in masks],
            "runs": [len(counts_from_rle(mask)) for mask in masks],
        }

    def parts(request: dict[str, Any]) -> Any:
        images = [read_image(image_file.path) for image_file in image_files]
        clocks: dict[str, Clock] = {}
        for name in 2 * ("usual", "nothing"):
            clock, generator = Clock(jax.block_until_ready), generators[name]
            with clock.watch(
                generator, _encode="encode", _segment="decode", _take="run lengths", _collect="run lengths"
            ):
                clock.timed(generator.generate_batch, "all")(images)
            clocks[name] = min(clock, clocks.get(name, clock), key=lambda clock: clock.seconds["decode"])
        clock = clocks["usual"]
        seconds = {part: value / len(images) for part, value in clock.seconds.items()}
        decode = min(clocks["nothing"].seconds["decode"] / len(images), seconds["decode"])
        seconds |= {"decode": decode, "filters": seconds["decode"] - decode}
        programs = {"encode": generators["usual"]._encode, "decode": generators["usual"]._segment}
        flops = {
            part: program.lower(*clock.first[part]).cost_analysis()["flops"] * clock.calls[part] / len(images)
            for part, program in programs.items()
        }
        passed = sum(map(len, generators["all that pass"].generate_batch(images)))
        return {"seconds": seconds, "flops": flops, "passed": passed / len(images)}

    def matmul(request: dict[str, Any]) -> Any:
        """FLOP/s, the best of some."""
        side, times = options.matmul, []
        a, b = (jax.random.normal(key, (side, side), jnp.bfloat16) for key in jax.random.split(jax.random.key(0)))
        product = jax.jit(jnp.matmul)
        for _ in range(10):
            start = time.perf_counter()
            jax.block_until_ready([product(a, b) for _ in range(10)])
            times.append((time.perf_counter() - start) / 10)
        return 2 * side**3 / min(times)

    tasks = {"load": load, "run": run, "parts": parts, "matmul": matmul}
    return lambda task: tasks[json.loads(task)["what"]](json.loads(task))


def huggingface(options: argparse.Namespace) -> Callable[[str], Any]:
    import jax
    import torch
    import transformers
    from object_weights import fit_readout, object_params, put_readout
    from PIL import Image
    from transformers.models.sam import image_processing_sam as processing

    from sam_jax.checkpoints import state_from_params
    from sam_jax.checkpoints.huggingface import config_to_huggingface, preprocessor_to_huggingface

    jax.config.update("jax_platforms", "cpu")  # which only computes shapes here: the card is torch's
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    image_files = find_image_files(options)
    loaded: dict[str, Any] = {}

    class Processor(processing.SamImageProcessor):
        passed = 0  # masks that came as far as the non-maximum suppression

        def post_process_for_mask_generation(self, all_masks: Any, all_scores: Any, *rest: Any) -> Any:
            Processor.passed += len(all_masks)
            # torchvision's suppression wants scores of the boxes' dtype, which is float32
            return super().post_process_for_mask_generation(all_masks, all_scores.float(), *rest)

    def fit(config: SamConfig, model: Any, processor: Any) -> Any:
        """The readout, from the first image and 8 x 8 clicks."""
        inputs = processor(images=Image.open(image_files[0].path).convert("RGB"), return_tensors="pt")
        size = inputs["reshaped_input_sizes"][0]
        points = point_grid(8) * size.numpy()[::-1]
        seen: list[Any] = []
        hook = model.mask_decoder.upscale_conv2.register_forward_hook(lambda *call: seen.append(call[-1]))
        with torch.inference_mode():
            output = model(
                inputs["pixel_values"].to(device, model.dtype),
                input_points=torch.tensor(points[None, :, None], dtype=torch.float32, device=device),
            )
            features = torch.nn.functional.gelu(seen[0][:, :, ::4, ::4].float()).permute(0, 2, 3, 1).cpu().numpy()
        hook.remove()
        stride = config.encoder.stride
        h, w = -(-size.numpy() // stride)
        return fit_readout(features[:, :h, :w], output.iou_scores[0].float().cpu().numpy(), points / stride)

    def load(request: dict[str, Any]) -> Any:
        loaded.clear()
        if device == "cuda":
            torch.cuda.empty_cache()
        config = model_config(options, request["model"])
        with torch.device(device):
            model = transformers.SamModel(transformers.SamConfig(**config_to_huggingface(config)))
        model.to(device, getattr(torch, options.dtype)).eval()
        processor = Processor(**preprocessor_to_huggingface(config))

        def fill() -> None:
            state = state_from_params(params, config, "huggingface")
            model.load_state_dict({name: torch.tensor(value) for name, value in state.items()}, strict=True)

        params = object_params(config)
        fill()
        readout = fit(config, model, processor)
        put_readout(params, readout)
        fill()
        loaded["pipe"] = transformers.pipeline("mask-generation", model=model, image_processor=processor, device=device)
        return dataclasses.asdict(readout)

    def generate(image: Any, points_per_batch: int) -> Any:
        return loaded["pipe"](
            image, points_per_batch=points_per_batch, points_per_crop=options.points_per_side, output_rle_mask=True
        )

    def tune(request: dict[str, Any]) -> Any:
        """Seconds per image for some numbers of points at a time; of those that can't be run, why."""
        tried: dict[int, float | str] = {}
        for points in options.their_points:
            try:
                for _ in range(2):  # the first warms up
                    start = time.perf_counter()
                    for image_file in image_files[:2]:
                        generate(str(image_file.path), points)
                    tried[points] = (time.perf_counter() - start) / len(image_files[:2])
            except RuntimeError as error:  # memory, or more elements than a kernel can count
                tried[points] = str(error).splitlines()[0][:100]
        works = [points for points, seconds in tried.items() if not isinstance(seconds, str)]
        if not works:
            raise RuntimeError(f"their pipeline runs with none of {tried}")
        loaded["points"] = min(works, key=lambda points: tried[points])
        return {"tried": tried, "best": loaded["points"]}

    def run(request: dict[str, Any]) -> Any:
        start = time.perf_counter()
        found = [generate(str(image_file.path), loaded["points"])["rle_mask"] for image_file in image_files]
        seconds = time.perf_counter() - start
        masks = [mask for masks in found for mask in masks]
        return {
            "seconds": seconds,
            "masks": [len(masks) for masks in found],
            "areas": [sum(mask["counts"][1::2]) / np.prod(mask["size"]) for mask in masks],
            "runs": [len(mask["counts"]) for mask in masks],
        }

    def parts(request: dict[str, Any]) -> Any:
        images = [Image.open(image_file.path).convert("RGB") for image_file in image_files]
        pipe = loaded["pipe"]
        clock = Clock(lambda _: torch.cuda.synchronize() if device == "cuda" else None)
        Processor.passed = 0
        with (
            clock.watch(pipe.model, get_image_embeddings="encode", forward="decode"),
            clock.watch(pipe.image_processor, post_process_masks="filters", filter_masks="filters"),
            clock.watch(processing, _mask_to_rle="run lengths"),
        ):
            clock.timed(lambda: [generate(image, loaded["points"]) for image in images], "all")()
        clock.seconds["filters"] -= clock.seconds["run lengths"]  # which is called by it
        seconds = {part: value / len(images) for part, value in clock.seconds.items()}
        return {"seconds": seconds, "passed": Processor.passed / len(images)}

    tasks = {"load": load, "tune": tune, "run": run, "parts": parts}
    return lambda task: tasks[json.loads(task)["what"]](json.loads(task))


def measure(model: str, workers: dict[str, Worker], rounds: int) -> dict[str, Any]:
    def ask(side: str, what: str, **request: Any) -> Any:
        start = time.perf_counter()
        answer = workers[side].ask(json.dumps({"what": what} | request))
        print(f"{model}: {side} {what}, {time.perf_counter() - start:.1f} s", file=sys.stderr)
        return answer

    readout = ask("huggingface", "load", model=model)
    result: dict[str, Any] = {"device": ask("sam_jax", "load", model=model, readout=readout)}
    result["tuned"] = ask("huggingface", "tune")
    first = ask("sam_jax", "run")
    runs: dict[str, list[Any]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side in SIDES:
            runs[side].append(ask(side, "run"))
    result |= {"first_seconds": first["seconds"], "runs": runs}
    result["parts"] = {side: ask(side, "parts") for side in SIDES}
    result["matmul"] = ask("sam_jax", "matmul")
    return result


def show(model: str, result: dict[str, Any], options: argparse.Namespace) -> None:
    runs, parts, rate = result["runs"], result["parts"], result["matmul"]
    images = len(runs["sam_jax"][0]["masks"])
    speeds = {side: images / statistics.median(run["seconds"] for run in runs[side]) for side in SIDES}
    print(
        f"\n{model}, {options.dtype}, {images} images, {options.points_per_side}^2 points, {result['device']}; "
        f"sam_jax {options.images_per_device} images at a time, its first round {result['first_seconds']:.1f} s; "
        f"Hugging Face {result['tuned']['best']} points at a time, seconds an image {result['tuned']['tried']}\n"
    )
    print("| | sam_jax | | Hugging Face | |\n|---|---|---|---|---|")
    ratio = speeds["sam_jax"] / speeds["huggingface"]
    print(f"| images/s | {speeds['sam_jax']:.3g} | **{ratio:.2f}** | {speeds['huggingface']:.3g} | |")
    last = {side: runs[side][-1] for side in SIDES}
    for name, values in (
        (
            f"masks per image that pass the thresholds, of {3 * options.points_per_side**2}",
            [parts[side]["passed"] for side in SIDES],
        ),
        ("that are kept", [np.mean(last[side]["masks"]) for side in SIDES]),
        ("run lengths per mask kept", [np.mean(last[side]["runs"]) for side in SIDES]),
        ("area per mask kept, % of the image", [100 * np.mean(last[side]["areas"]) for side in SIDES]),
    ):
        print(f"| {name} | {values[0]:.3g} | | {values[1]:.3g} | |")
    seconds = {side: dict(parts[side]["seconds"]) for side in SIDES}
    for own in seconds.values():
        own["rest"] = own["all"] - sum(value for part, value in own.items() if part != "all")
    for part, name in (
        ("encode", "encode"),
        ("decode", "decode"),
        ("filters", "filters: size of the image, thresholds, boxes"),
        ("run lengths", "masks to the host, run lengths"),
        ("rest", "rest: scaling, suppression, records"),
        ("all", "all of these, waiting for each"),
    ):
        cells = [f"{1000 * own[part]:.1f} ms | {own[part] / own['all']:.0%}" for own in seconds.values()]
        print(f"| {name} | {' | '.join(cells)} |")
    flops = parts["sam_jax"]["flops"]
    for part, own in flops.items():
        achieved = own / seconds["sam_jax"][part]
        print(f"| {part}: TFLOP/s, share of the card | {achieved / 1e12:.3g} | {achieved / rate:.1%} | | |")
    achieved = sum(flops.values()) * speeds["sam_jax"]
    print(f"| whole run: TFLOP/s, share of the card | {achieved / 1e12:.3g} | {achieved / rate:.1%} | | |")
    print(f"\nThe card: {rate / 1e12:.3g} TFLOP/s in bfloat16 products of {options.matmul}^3.", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder, searched with all below it")
    parser.add_argument("--models", nargs="+", default=["vit_b", "vit_h"], choices=["vit_b", "vit_l", "vit_h"])
    parser.add_argument("--count", type=int, default=16, help="images; a multiple of those at a time")
    parser.add_argument("--images-per-device", type=int, default=8, help="images at a time, ours")
    parser.add_argument(
        "--their-points", type=int, nargs="+", default=[64, 256], help="points at a time to choose from"
    )
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--image-size", type=int, default=1024, help="of the models' input")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--rounds", type=int, default=2, help="measurements of each")
    parser.add_argument("--matmul", type=int, default=8192, help="side of the product that the card is measured with")
    parser.add_argument("--out", type=Path, help="write all measurements as JSON")
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve({"sam_jax": ours, "huggingface": huggingface}[options.serve](options))
        return 0

    workers = {side: Worker(side, [sys.executable, __file__, *sys.argv[1:], "--serve", side]) for side in SIDES}
    results = {}
    for model in options.models:
        results[model] = measure(model, workers, options.rounds)
        show(model, results[model], options)
        if options.out:  # after each: what was measured is kept
            write_atomically(options.out, json.dumps({"options": vars(options), "models": results}, default=str))
    for worker in workers.values():
        worker.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
