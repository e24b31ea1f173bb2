"""Compiles one round of the mask decoder for a TPU, on a machine without one, and says what its compiler expects.

    python benchmarks/tpu_round.py [--topology v5e:2x2] [--prompts 64] [--side 256] [--forward]

A round is what training of configs/vit_b.py does with the prompts of an image, in bfloat16: their encoding, with all
points and a mask each, the decoder, and the loss at `--side`. Unless `--forward` is given, gradients by the params and
the image's embedding follow, for which the backward pass computes all of it again, as the recipe does. One device runs
it.

Time is in estimated cycles, by the rules of `cycles.py`. It takes a minute or two.
"""

from __future__ import annotations

import argparse
import functools
import time
from pathlib import Path

import tpu_aot  # first: it sets JAX up for compiling without devices

# isort: split
import cycles
import hlo
import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from jaxtyping import Array, Float, Int
from kernels import pallas_kernels, product_flops

from sam_jax.config import TrainConfig
from sam_jax.modeling import decode_masks, encode_prompts, init_params
from sam_jax.training.flops import PEAK_FLOPS
from sam_jax.training.losses import segmentation_loss
from sam_jax.training.step import resize_logits
from sam_jax.types import Params, Prompts


def round_loss(
    params: Params,
    embeddings: Float[Array, "1 h w E"],
    points: Float[Array, "1 Q N 2"],
    labels: Int[Array, "1 Q N"],
    mask_logits: Float[Array, "1 Q l l"],
    target_masks: Float[Array, "1 Q S S"],
    pixels: Float[Array, "1 S S"],
    *,
    config: TrainConfig,
) -> Float[Array, ""]:
    """Returns the loss of a later round of training, summed over its prompts."""
    dtype = jnp.dtype(config.dtype)
    encoded = encode_prompts(params, Prompts(points, labels, mask_logits), config.model, dtype=dtype)
    predicted = decode_masks(params, embeddings, encoded, config.model, multimask_output=False, dtype=dtype)
    logits = resize_logits(predicted.low_res_logits, pixels.shape[-1])
    return segmentation_loss(logits, predicted.iou_predictions, target_masks, pixels, config.loss)[0].sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:2x2", help="CHIP:SHAPE, of which one device is taken")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--side", type=int, default=256, help="at which the loss is taken, pixels")
    parser.add_argument("--forward", action="store_true", help="the loss alone, without gradients")
    parser.add_argument("--effort", type=float, default=-1.0, help="of the compiler, -1 to 1")
    parser.add_argument("--dearest", type=int, default=20, help="instructions that are listed")
    parser.add_argument("--hlo", type=Path, help="file that the program is written to, as text")
    options = parser.parse_args()

    chip = tpu_aot.RATES[options.topology.partition(":")[0]]
    device = SingleDeviceSharding(tpu_aot.topology_devices(options.topology)[0])
    config = tpu_aot.load_recipe("vit_b", 1, argparse.Namespace(fsdp=1, images=1, side=options.side))
    model, Q, N, side = config.model, options.prompts, 2 + config.prompts.point_rounds, options.side
    params = jax.eval_shape(functools.partial(init_params, model), jax.eval_shape(lambda: jax.random.key(0)))
    params = {name: params[name] for name in ("prompt_encoder", "mask_decoder")}
    shape = jax.ShapeDtypeStruct
    arguments = (
        params,
        shape((1, model.grid_size, model.grid_size, model.embedding_dim), jnp.bfloat16),
        shape((1, Q, N, 2), jnp.float32),
        shape((1, Q, N), jnp.int32),
        shape((1, Q, model.low_res_size, model.low_res_size), jnp.float32),
        shape((1, Q, side, side), jnp.float32),
        shape((1, side, side), jnp.float32),
    )
    loss = functools.partial(round_loss, config=config)
    function = loss if options.forward else jax.grad(jax.checkpoint(loss), argnums=(0, 1))
    traced = jax.jit(function, in_shardings=device, out_shardings=device).trace(*arguments)
    start = time.perf_counter()
    efforts = dict.fromkeys(("exec_time_optimization_effort", "memory_fitting_effort"), options.effort)
    compiled = traced.lower(lowering_platforms=("tpu",)).compile(compiler_options=efforts)
    text = compiled.as_text()
    if options.hlo:
        options.hlo.write_text(text)
    program, kernels = hlo.parse(text), pallas_kernels(traced.jaxpr.jaxpr)
    rates = {"clock": chip.clock, "peak_flops": PEAK_FLOPS[chip.kind], "memory_rate": chip.memory_rate}
    moved = hlo.main_memory_bytes(program) + sum(kernel.times * kernel.bytes for kernel in kernels)
    print(
        f"{options.topology.partition(':')[0]}: {product_flops(traced.jaxpr.jaxpr) / 1e12:.2f} TFLOP, "
        f"{moved / 1e9:.2f} GB of traffic, {compiled.memory_analysis().temp_size_in_bytes / 1e6:,.0f} MB of "
        f"temporaries; compiled in {time.perf_counter() - start:.0f} s"
    )
    print("\n".join(cycles.report(cycles.cycles(program, kernels, **rates, dearest=options.dearest))))


if __name__ == "__main__":
    main()
