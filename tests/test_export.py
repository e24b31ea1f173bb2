"""Exported models give the results of ours, run without this package, and take any number of prompts and points."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from jax import export as jax_export
from PIL import Image

from cases.efficientnet_lite import MODEL as LITE
from cases.models import SMALL
from cases.tiny_vit import MODEL as TINY_VIT
from sam_jax.checkpoints import save_checkpoint
from sam_jax.commands import main as cli
from sam_jax.export.onnx_graph import GraphBuilder, UnknownPrimitive, translate
from sam_jax.export.onnx_model import OPSET, _model, decoder_model, encoder_model
from sam_jax.model import Sam
from sam_jax.modeling import init_params
from sam_jax.predictor import SamPredictor
from sam_jax.prompting.prompts import Prompt

MODELS = {
    "ViT, windows and global attention": SMALL,
    "TinyViT": TINY_VIT.with_image_size(160),
    "EfficientNet-Lite, finer maps": dataclasses.replace(LITE, iou_sees_mask=True).with_image_size(192),
}
BLOCKED = """import runpy, sys
sys.modules.update(dict.fromkeys({names}))
runpy.run_path({program!r}, run_name="__main__")
"""


def shaken(config):
    """Returns random params, none of them zero."""
    rng = np.random.default_rng(0)
    params = init_params(config, jax.random.key(0))
    return jax.tree.map(lambda x: np.asarray(x) + 0.1 * np.abs(rng.normal(size=x.shape)).astype(np.float32), params)


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    config = MODELS[request.param]
    return Sam(config, shaken(config))


def session(proto):
    onnx.checker.check_model(proto, full_check=True)
    return onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])


def feed(model, embedding, size, points, labels, mask=None):
    low = model.config.low_res_size
    return {
        "image_embeddings": embedding,
        "point_coords": np.asarray(points, np.float32),
        "point_labels": np.asarray(labels, np.float32),
        "mask_input": np.zeros((len(points), 1, low, low), np.float32) if mask is None else mask,
        "has_mask_input": np.array([0 if mask is None else 1], np.float32),
        "orig_im_size": np.array(size, np.float32),
    }


def test_both_graphs_give_the_masks_of_the_predictor(model):
    rng = np.random.default_rng(0)
    side = model.config.image_size
    h, w = side * 3 // 4, side  # no resizing: what is compared is the graph
    image = rng.integers(0, 255, (h, w, 3), dtype=np.uint8)
    predictor = SamPredictor(model)
    predictor.set_image(image)
    encoder, decoder = (
        session(encoder_model(model.params, model.config)),
        session(decoder_model(model.params, model.config)),
    )
    (embedding,) = encoder.run(None, {"input_image": image.astype(np.float32)})
    own = np.asarray(predictor.get_image_embedding()).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(embedding, own, atol=1e-5 * np.abs(own).max())
    points = np.array([[[20, 10], [0, 0]], [[40, 30], [0, 0]], [[5, 41], [0, 0]]], np.float32)
    given = feed(model, embedding, (h, w), points, [[1, -1]] * 3)
    masks, iou, low = decoder.run(None, given)
    prompts = [Prompt(np.array([xy]), np.array([1])) for (xy, _) in points]
    ours = predictor.predict_prompts(prompts, multimask_output=True, return_logits=True)
    for found, expected in ((masks, ours.masks), (iou, ours.iou_predictions), (low, ours.low_res_logits)):
        np.testing.assert_allclose(found[:, 1:], np.stack(expected), atol=1e-5 * np.abs(low).max())
    # More points, a box, and the logits of the answer before.
    best = low[:1, 1:2]
    given = feed(model, embedding, (h, w), [[[20, 10], [40, 30], [3, 4], [50, 40]]], [[1, 0, 2, 3]], best)
    masks, iou, low = decoder.run(None, given)
    prompt = Prompt(np.array([[20, 10], [40, 30]]), np.array([1, 0]), np.array([3, 4, 50, 40]), best[0, 0])
    ours = predictor.predict_prompts([prompt], multimask_output=False, return_logits=True)
    np.testing.assert_allclose(masks[:, :1], ours.masks[0][None], atol=1e-5 * np.abs(low).max())
    np.testing.assert_allclose(iou[:, 0], ours.iou_predictions[0], atol=1e-5)


@pytest.mark.parametrize("count", [1, 14])
def test_masks_come_in_the_size_of_the_image_for_any_number_of_points(model, count):
    decoder = session(decoder_model(model.params, model.config))
    rng = np.random.default_rng(0)
    embedding = rng.normal(size=(1, model.config.embedding_dim, *(model.config.grid_size,) * 2)).astype(np.float32)
    points, labels = rng.uniform(0, 30, (1, count + 1, 2)), np.ones((1, count + 1))
    labels[:, -1] = -1  # no box
    for size in ((77, 150), (150, 77)):
        masks, *_ = decoder.run(None, feed(model, embedding, size, points, labels))
        assert masks.shape == (1, 4, *size)
    predictor = SamPredictor(model)
    predictor.set_embedding(jnp.asarray(embedding.transpose(0, 2, 3, 1)), (150, 77))
    scale = np.array([77, 150]) / np.floor(np.array([77, 150]) * model.config.image_size / 150 + 0.5)
    prompt = Prompt(points[0, :-1] * scale, np.ones(count, int))
    ours = predictor.predict_prompts([prompt], multimask_output=True, return_logits=True)
    np.testing.assert_allclose(masks[:, 1:], ours.masks[0][None], atol=2e-5 * np.abs(masks).max())


def test_several_images_at_a_time_and_half_precision(model):
    side = model.config.image_size
    images = np.random.default_rng(0).integers(0, 255, (3, side, side // 2, 3)).astype(np.float32)
    (many,) = session(encoder_model(model.params, model.config, batch=True)).run(None, {"input_image": images})
    single = session(encoder_model(model.params, model.config))
    for image, embedding in zip(images, many, strict=True):
        (alone,) = single.run(None, {"input_image": image})
        np.testing.assert_allclose(embedding, alone[0], atol=1e-5 * np.abs(alone).max())
    half = encoder_model(model.params, model.config, dtype=jnp.float16)
    assert half.ByteSize() < 0.7 * encoder_model(model.params, model.config).ByteSize()
    (rough,) = session(half).run(None, {"input_image": images[2]})
    assert rough.dtype == np.float32
    assert 0 < np.abs(rough - many[2:]).max() < 0.03 * np.abs(many).max()


def run_alone(program, *arguments, blocked):
    code = BLOCKED.format(names=blocked, program=str(program))
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_an_exported_folder_runs_with_onnx_runtime_alone(model, tmp_path):
    save_checkpoint(tmp_path / "model.safetensors", model.params, model.config)
    image = np.random.default_rng(0).integers(0, 255, (90, 70, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    out = tmp_path / "exported"
    command = ["export", str(tmp_path / "model.safetensors"), str(out), "--format", "onnx"]
    assert cli.main(command) == 0
    assert sorted(path.name for path in out.iterdir()) == ["decoder.onnx", "encoder.onnx", "example.py", "model.json"]
    facts = json.loads((out / "model.json").read_text())
    assert (facts["image_size"], facts["opset"]) == (model.config.image_size, OPSET)
    blocked = ["sam_jax", "jax", "flax", "torch"]
    run_alone(out / "example.py", tmp_path / "image.png", 30, 40, tmp_path / "mask.png", blocked=blocked)
    mask = np.asarray(Image.open(tmp_path / "mask.png")) > 0
    predictor = SamPredictor(model)
    predictor.set_image(image)
    masks, iou, _ = predictor.predict([[30, 40]], [1])
    assert np.mean(mask != masks[iou.argmax()]) < 0.01
    assert cli.main(command) == 2
    assert cli.main([*command, "--overwrite"]) == 0


STABLEHLO = """
import sys
from pathlib import Path
import jax, numpy as np
folder = Path(sys.argv[1])
inputs = np.load(folder / "inputs.npz")
def read(name):
    return jax.export.deserialize((folder / f"{name}.stablehlo").read_bytes())
embedding = read("encoder").call(inputs["images"], inputs["sizes"])
logits, iou = read("decoder").call(embedding[:1], *(inputs[name] for name in decoder_inputs))
np.savez(folder / "results.npz", embedding=embedding, logits=logits, iou=iou)
""".replace("decoder_inputs", '["point_coords", "point_labels", "mask_input", "has_mask_input"]')


def test_stablehlo_runs_with_jax_alone(model, tmp_path):
    save_checkpoint(tmp_path / "model.safetensors", model.params, model.config)
    out, side = tmp_path / "exported", model.config.image_size
    assert cli.main(["export", str(tmp_path / "model.safetensors"), str(out), "--format", "stablehlo"]) == 0
    image = np.random.default_rng(0).integers(0, 255, (side // 2, side, 3), dtype=np.uint8)
    images = np.stack([np.pad(image, ((0, side - side // 2), (0, 0), (0, 0)))] * 2)
    given = feed(model, None, image.shape[:2], [[[20, 10], [0, 0]]] * 3, [[1, -1]] * 3)
    arrays = {name: given[name] for name in ("point_coords", "point_labels", "mask_input", "has_mask_input")}
    np.savez(out / "inputs.npz", images=images, sizes=np.array([image.shape[:2]] * 2, np.int32), **arrays)
    (tmp_path / "program.py").write_text(STABLEHLO.replace("import jax,", "import jax, jax.export,"))
    run_alone(tmp_path / "program.py", out, blocked=["sam_jax", "flax", "torch", "onnx"])
    results = np.load(out / "results.npz")
    predictor = SamPredictor(model)
    predictor.set_image(image)
    own = np.asarray(predictor.get_image_embedding()).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(results["embedding"], np.repeat(own, 2, 0), atol=1e-5 * np.abs(own).max())
    ours = predictor.predict_prompts([Prompt(np.array([[20, 10]]), np.array([1]))], multimask_output=True)
    expected = np.repeat(ours.low_res_logits[0][None], 3, 0)
    np.testing.assert_allclose(results["logits"][:, 1:], expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "stablehlo", "--batch"], "takes any number of images as it is"),
        (["--format", "onnx", "--step", "3"], "--step is for a training run"),
        (["--format", "onnx", "--everything.points-per-side", "8"], "--everything options are for checkpoints"),
        (["--batch"], "--batch goes with --format onnx"),
    ],
)
def test_options_that_do_not_go_together_are_told(tmp_path, capsys, arguments, message):
    save_checkpoint(tmp_path / "model.safetensors", shaken(SMALL), SMALL)
    assert cli.main(["export", str(tmp_path / "model.safetensors"), str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


A = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
OPERATIONS = {
    "broadcasting": lambda x: x[:, None] + x[:, :, None] * A[0, 0, 0] - jnp.arange(5.0)[:, None],
    "products over several axes": lambda x: jnp.einsum("bnd,knd->bk", x, A),
    "products in batches": lambda x: jnp.einsum("bnd,bmd->bnm", x, x + 1),
    "a product whose batch is not first": lambda x: jnp.einsum("bnd,nde->nbe", x, A[0, :, :, None] * A[1, :, None, :]),
    "rows of a table": lambda x: jnp.asarray(A[0])[jnp.clip(x[..., 0].astype(int), -2, 2)],
    "parts": lambda x: jnp.concatenate([x[:, 1:4, :4], x[:, :3, :3]], -1)[..., -2:],
    "one of an axis": lambda x: jnp.stack([x[:, 2], x[:, 0]], 1)[:, :, 3],
    "padding": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 3)), constant_values=0.5),
    "choices": lambda x: jnp.where((x > 0)[..., :1] & (x != 1)[..., 1:2], jnp.sin(x), -jnp.inf),
    "reductions": lambda x: jax.nn.softmax(x, 1).sum((0, 2)) + x.max() + jax.nn.relu6(3 * x).mean(-1).sum(0),
    "functions": lambda x: jax.lax.erf(x) * jax.lax.rsqrt(1 + x * x) - jax.nn.sigmoid(x) ** 3 + jnp.square(jnp.tanh(x)),
    "a joined axis": lambda x: x.reshape(-1, 6).T,
    "two unknown lengths": lambda x: (x[:, :, None] + x[:, None]).reshape(x.shape[0], -1, 3, 2).swapaxes(0, 1),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_those_of_jax(name):
    function = OPERATIONS[name]
    (b,) = jax_export.symbolic_shape("b")
    builder = GraphBuilder(["b"])
    (result,) = translate(builder, function, {"x": jax.ShapeDtypeStruct((b, 5, 6), jnp.float32)})
    proto = _model(builder, "test", {"x": (1, ["b", 5, 6])}, {"y": (result, [None] * len(result.shape))})
    runner = session(proto)
    for count in (1, 3):
        x = np.random.default_rng(count).normal(size=(count, 5, 6)).astype(np.float32)
        np.testing.assert_allclose(runner.run(None, {"x": x})[0], function(jnp.asarray(x)), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(("stride", "groups", "padding"), [(1, 1, "SAME"), (2, 6, "SAME"), (2, 2, ((1, 0), (2, 1)))])
def test_convolutions_are_those_of_jax(stride, groups, padding):
    rng = np.random.default_rng(0)
    kernel, x = rng.normal(size=(3, 3, 6 // groups, 12)), rng.normal(size=(2, 7, 9, 6))

    def convolve(x):
        return jax.lax.conv_general_dilated(
            x,
            jnp.asarray(kernel, jnp.float32),
            (stride, stride),
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    builder = GraphBuilder([])
    (result,) = translate(builder, convolve, {"x": jax.ShapeDtypeStruct((2, 7, 9, 6), jnp.float32)})
    runner = session(_model(builder, "test", {"x": (1, [2, 7, 9, 6])}, {"y": (result, [None] * 4)}))
    x = x.astype(np.float32)
    np.testing.assert_allclose(runner.run(None, {"x": x})[0], convolve(x), atol=2e-5)


def test_what_has_no_translation_is_named():
    with pytest.raises(UnknownPrimitive, match="sort"):
        translate(GraphBuilder([]), jnp.sort, {"x": jax.ShapeDtypeStruct((3,), jnp.float32)})
