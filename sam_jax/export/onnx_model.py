"""A Segment Anything model as two ONNX graphs, with the names and meanings of the official export.

The encoder takes an image and gives its embedding; the decoder takes that and prompts, and gives masks in the size of
the image. Sizes of images, numbers of prompts and of points are free.

Reference: `segment_anything/utils/onnx.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jax.typing import DTypeLike

from sam_jax.config import SamConfig
from sam_jax.export.functions import decode_embedding, decoder_inputs, most_points
from sam_jax.export.onnx_graph import GraphBuilder, Tensor, translate
from sam_jax.modeling import encode_image
from sam_jax.types import Params

if TYPE_CHECKING:
    import onnx

OPSET = 18  # ReduceMax takes its axes as an input since then
IR_VERSION = 8  # of ONNX 1.13: ONNX Runtime 1.14 and later read these files


def encoder_model(
    params: Params, config: SamConfig, *, dtype: DTypeLike = jnp.float32, batch: bool = False
) -> onnx.ModelProto:
    """Returns the image encoder as an ONNX model.

    Its input `input_image` (height, width, 3) is RGB from 0 to 255, float32, scaled so that its longer side is the
    model's image size at most; normalisation and padding are in the graph. Its output `image_embeddings` is
    (1, channels, rows, columns).

    Args:
        dtype: of weights and products; norms and softmaxes are float32.
        batch: the input is `input_image` (batch, height, width, 3), and so many embeddings come.
    """
    from onnx import TensorProto

    (symbol,) = jax_export.symbolic_shape("batch")
    builder, side = GraphBuilder(["batch"]), config.image_size
    name = "input_image" if batch else builder.add("Unsqueeze", ["input_image", builder.numbers(0)])
    mean, std = (
        builder.constant(np.array(x, np.float32)) for x in (config.encoder.pixel_mean, config.encoder.pixel_std)
    )
    normal = builder.add("Div", [builder.add("Sub", [name, mean]), std])
    size = builder.add("Slice", [builder.add("Shape", [name]), builder.numbers(1), builder.numbers(3)])
    missing = builder.add("Sub", [builder.numbers(side, side), size])
    pads = builder.add("Concat", [builder.numbers(0, 0, 0, 0, 0), missing, builder.numbers(0)], axis=0)
    builder.add("Pad", [normal, pads])
    frame = builder.nodes[-1].output[0]
    spec = {frame: jax.ShapeDtypeStruct((symbol, side, side, 3), jnp.float32)}

    def encode(images: jax.Array) -> jax.Array:
        return encode_image(params, images, config, dtype=dtype).astype(jnp.float32).transpose(0, 3, 1, 2)

    (embedding,) = translate(builder, encode, spec)
    shape = ["batch", "height", "width", 3] if batch else ["height", "width", 3]
    return _model(
        builder,
        "image_encoder",
        {"input_image": (TensorProto.FLOAT, shape)},
        {"image_embeddings": (embedding, ["batch" if batch else 1, *_embedding_shape(config)])},
    )


def decoder_model(params: Params, config: SamConfig, *, dtype: DTypeLike = jnp.float32) -> onnx.ModelProto:
    """Returns the prompt encoder and the mask decoder as an ONNX model, with the official inputs and outputs.

    Inputs, all float32: `image_embeddings` (1, channels, rows, columns); for each of `prompts` prompts `point_coords`
    (prompts, points, 2), (x, y) in pixels of the scaled image, and `point_labels` (prompts, points), 1 foreground,
    0 background, 2 and 3 the corners of a box, -1 no point (a prompt without a box has one at its end); `mask_input`
    (prompts, 1, l, l), logits of an earlier answer, which counts where `has_mask_input` (1) is 1; `orig_im_size`
    (2), height and width of the image.

    Outputs: `masks` (prompts, 4, height, width), logits; `iou_predictions` (prompts, 4); `low_res_masks` (prompts, 4,
    l, l). The first of the four is the answer to a prompt that leaves no doubt, the others are for those that do.
    Any number of points is right; the graph is made for few (`most_points`).
    """
    from onnx import TensorProto

    prompts, points = jax_export.symbolic_shape("prompts, points", constraints=[f"points <= {most_points(config)}"])
    builder, low = GraphBuilder(["prompts", "points"]), config.low_res_size
    specs = decoder_inputs(config, prompts, points)

    def decode(*inputs: Any) -> tuple[jax.Array, jax.Array]:
        return decode_embedding(params, config, *inputs, dtype=dtype)

    logits, iou = translate(builder, decode, specs)
    masks = _in_original_size(builder, builder.whole(logits), config.image_size)
    inputs: dict[str, Any] = {
        name: (TensorProto.FLOAT, [n if isinstance(n, int) else str(n) for n in spec.shape])
        for name, spec in specs.items()
    }
    inputs["orig_im_size"] = (TensorProto.FLOAT, [2])
    outputs = {
        "masks": (Tensor((), np.dtype(np.float32), (), masks), ["prompts", config.num_mask_tokens, "height", "width"]),
        "iou_predictions": (iou, ["prompts", config.num_mask_tokens]),
        "low_res_masks": (logits, ["prompts", config.num_mask_tokens, low, low]),
    }
    return _model(builder, "mask_decoder", inputs, outputs)


def _embedding_shape(config: SamConfig) -> tuple[int, int, int]:
    return config.embedding_dim, config.grid_size, config.grid_size


def _in_original_size(builder: GraphBuilder, logits: str, side: int) -> str:
    """Adds the official post-processing: enlarge to the input frame, cut off its padding, resize to the image."""
    from onnx import TensorProto

    def resize(name: str, size: str) -> str:
        count = builder.add("Slice", [builder.add("Shape", [name]), builder.numbers(0), builder.numbers(2)])
        sizes = builder.add("Concat", [count, size], axis=0)
        return builder.add("Resize", [name, "", "", sizes], mode="linear", coordinate_transformation_mode="half_pixel")

    half, length = (builder.constant(np.array(value, np.float32)) for value in (0.5, side))
    size = builder.add("Cast", ["orig_im_size"], to=TensorProto.INT64)
    longest = builder.add("ReduceMax", ["orig_im_size"], keepdims=1)
    scale = builder.add("Div", [length, longest])
    scaled = builder.add("Floor", [builder.add("Add", [builder.add("Mul", ["orig_im_size", scale]), half])])
    valid = builder.add("Cast", [scaled], to=TensorProto.INT64)
    frame = resize(logits, builder.numbers(side, side))
    inside = builder.add("Slice", [frame, builder.numbers(0, 0), valid, builder.numbers(2, 3)])
    return resize(inside, size)


def _model(
    builder: GraphBuilder, name: str, inputs: dict[str, tuple[int, list]], outputs: dict[str, tuple[Tensor, list]]
) -> onnx.ModelProto:
    from onnx import TensorProto, helper, numpy_helper

    for output, (tensor, _) in outputs.items():
        builder.nodes.append(helper.make_node("Identity", [builder.whole(tensor)], [output], name=output))
    graph = helper.make_graph(
        builder.nodes,
        name,
        [helper.make_tensor_value_info(key, kind, shape) for key, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(key, TensorProto.FLOAT, shape) for key, (_, shape) in outputs.items()],
        [numpy_helper.from_array(value, key) for key, value in builder.weights.items()],
    )
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="sam_jax")
