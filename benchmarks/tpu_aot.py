"""Compiles the training step of the shipped recipes for TPU pods, on a machine without one, and says what it takes.

    python benchmarks/tpu_aot.py --out FOLDER [--recipes vit_h] [--topologies v5e:16x16 v4:4x4x8 v5p:4x8x8]

The TPU compiler (`libtpu`, part of `jax[tpu]`) compiles for topologies that are not there. Compiled is what training
runs: `train_step` of configs/vit_*.py, all rounds of prompts, over the mesh of `sam_jax.parallel.wrap`, one image per
chip unless said otherwise. Per chip, from the compiler: bytes of arguments and of peak memory; collectives, with loops
counted as often as they turn; traffic with the main memory, an upper bound (`hlo.main_memory_bytes`). FLOPs are those
of the matrix products in the traced step, what is computed a second time to save memory included: the compiler's own
count takes the body of a loop once.

The time of a step goes from the slowest of arithmetic, memory and network at their peak rates, if the rest hides behind
it, to their sum, if nothing overlaps. Beside it stands what the compiler expects of every instruction, in cycles
(`cycles.py`), by part of the model and for the dearest. These are predictions: no TPU has run this.

A ViT-H takes five to ten minutes and 8 GB on two cores. With --out, each configuration is a JSON file there, and what
is there is not compiled again.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import math
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # for configs
os.environ["JAX_PLATFORMS"] = "cpu"  # shapes alone are computed with
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU machine to ask

import cycles
import hlo
import jax
from kernels import pallas_kernels, product_flops

from sam_jax.config import TrainConfig
from sam_jax.progress import ProgressBar
from sam_jax.training.ahead import CHIPS, COMPILER_OPTIONS, GiB, topology_devices, trace_step
from sam_jax.training.flops import PEAK_FLOPS, step_flops


@dataclasses.dataclass(frozen=True)
class Rates:
    """Peak rates from docs.cloud.google.com/tpu/docs/{v4,v5e,v5p}; the links of v4 from Jouppi et al. 2023.

    The clock follows from the peak rate of products and the number of units of 128 x 128 (8, 4 and 8 a chip).
    """

    kind: str  # as JAX names it
    memory_rate: float  # bytes/s
    link_rate: float  # bytes/s of one link, one way: half the chip's published both-way rate over its number of links
    clock: float  # cycles/s

    @property
    def ring_rate(self) -> float:
        """Bytes/s that a chip sends in a ring along one axis of the torus, both ways at once."""
        return 2 * self.link_rate


RATES = {
    "v4": Rates("TPU v4", 1200e9, 50e9, 1.05e9),
    "v5e": Rates("TPU v5 lite", 819e9, 400e9 / 2 / 4, 1.5e9),
    "v5p": Rates("TPU v5p", 2765e9, 1200e9 / 2 / 6, 1.75e9),
}


def measure(config: TrainConfig, topology: str, effort: float, hlo_file: Path | None = None) -> dict[str, Any]:
    """Compiles a recipe's step for a topology: numbers per chip.

    Args:
        effort: that the compiler makes for a fast and small program, -1 to 1; 0 is its default.
        hlo_file: where the program is written as text.
    """
    devices = topology_devices(topology)
    kind, count = topology.partition(":")[0], len(devices)
    chip, chip_memory = RATES[kind], CHIPS[kind].memory
    traced, state, batch = trace_step(config, devices)
    flops = product_flops(traced.jaxpr.jaxpr) / count
    start = time.perf_counter()
    efforts = {"exec_time_optimization_effort": effort, "memory_fitting_effort": effort}
    compiled = traced.lower().compile(compiler_options=COMPILER_OPTIONS | efforts)
    seconds = time.perf_counter() - start
    text = compiled.as_text()
    if hlo_file:
        hlo_file.write_text(text)
    program = hlo.parse(text)
    found = hlo.collectives(program)
    memory = compiled.memory_analysis()
    kernels = pallas_kernels(traced.jaxpr.jaxpr)  # one that a mesh cuts stands in a `shard_map`, with a device's shapes
    moved = hlo.main_memory_bytes(program) + sum(kernel.times * kernel.bytes for kernel in kernels)
    rates = {"clock": chip.clock, "peak_flops": PEAK_FLOPS[chip.kind], "memory_rate": chip.memory_rate}
    blocks = getattr(config.model.encoder, "global_attention_blocks", ())
    arguments = memory.argument_size_in_bytes
    times = {
        "compute": flops / PEAK_FLOPS[chip.kind],
        "memory": moved / chip.memory_rate,
        "network": sum(c.sent for c in found) / chip.ring_rate,
    }
    return {
        "model": config.model.name,
        "topology": topology,
        "chips": count,
        "fsdp": config.parallel.fsdp,
        "batch_size": config.data.batch_size,
        "masks": config.data.masks_per_image,
        "loss_size": config.loss.size,
        "effort": effort,
        "state_bytes_total": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)),
        "batch_bytes_total": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(batch)),
        "argument_bytes": arguments,
        "temporary_bytes": memory.temp_size_in_bytes,
        "program_bytes": memory.generated_code_size_in_bytes,
        # New outputs lie in the memory of the arguments that the step frees.
        "peak_bytes": arguments + memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "chip_bytes": chip_memory,
        "flops": flops,
        "peak_flops": PEAK_FLOPS[chip.kind],
        "model_flops": step_flops(config, encoder="trained") / count,
        "compiler_flops_loops_once": compiled.cost_analysis().get("flops"),
        "memory_traffic_bytes": moved,
        "memory_traffic_bytes_loops_once": hlo.main_memory_bytes(program, loops=False),
        "compiler_bytes_accessed_loops_once": compiled.cost_analysis().get("bytes accessed"),
        "collectives": summary(found),
        "largest": [dataclasses.asdict(c) for c in found[:20]],
        "not_of_params": [dataclasses.asdict(c) for c in not_of_params(found, state.params, config.parallel.fsdp)],
        "cycles": cycles.cycles(program, kernels, **rates, global_blocks=blocks),
        "seconds": times | {"bound": max(times.values()), "sum": sum(times.values())},
        "compile_seconds": seconds,
    }


def summary(found: list[hlo.Collective]) -> dict[str, dict[str, float]]:
    """Per kind: how often it runs, bytes that it moves, bytes that a chip sends."""
    by_kind: dict[str, Counter] = {kind: Counter() for kind in hlo.COLLECTIVES}
    for c in found:
        by_kind[c.kind].update({"count": c.times, "bytes": c.times * c.bytes, "sent": c.sent})
    return {kind: dict(counts) for kind, counts in by_kind.items() if counts}


def not_of_params(found: list[hlo.Collective], params: Any, fsdp: int, least: int = 2**16) -> list[hlo.Collective]:
    """Collectives that carry an array of `least` bytes or more with another number of elements than a param has.

    That is, neither a param nor its gradient nor a slice of them. Such would be activations.
    """
    sizes = {leaf.size for leaf in jax.tree.leaves(params)}
    sizes |= {size // fsdp for size in sizes}

    def carries(c: hlo.Collective) -> bool:
        of_arrays = [(hlo.DTYPE_BYTES[dtype], math.prod(shape)) for dtype, shape, _ in hlo.arrays(c.shape)]
        return any(count * each >= least and count not in sizes for each, count in of_arrays)

    return [c for c in found if carries(c)]


def report(results: list[dict[str, Any]]) -> str:
    """Markdown: a table of all, then the collectives of each."""
    columns = (
        "recipe",
        "topology",
        "chips (fsdp)",
        "pictures",
        "loss side",
        "arguments",
        "peak",
        "of",
        "program",
        "TFLOP",
        "HBM GB",
        "sent GB",
        "compute ms",
        "HBM ms",
        "network ms",
        "step ms",
        "M cycles",
        "in kernels",
        "compiler's ms",
        "MFU %",
    )
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for r in results:
        seconds = r["seconds"]
        cells = [
            r["model"],
            r["topology"],
            f"{r['chips']} ({r['fsdp']})",
            r["batch_size"],
            r["loss_size"],
            *(f"{r[name] / GiB:.2f}" for name in ("argument_bytes", "peak_bytes")),
            f"{r['chip_bytes'] / GiB:.0f} GiB",
            f"{r['program_bytes'] / GiB:.2f}",
            f"{r['flops'] / 1e12:.1f}",
            f"{r['memory_traffic_bytes'] / 1e9:.0f}",
            f"{sum(c['sent'] for c in r['collectives'].values()) / 1e9:.2f}",
            *(f"{seconds[name] * 1e3:.0f}" for name in ("compute", "memory", "network")),
            f"{seconds['bound'] * 1e3:.0f} to {seconds['sum'] * 1e3:.0f}",
            *(f"{r['cycles'][name] / 1e6:,.0f}" for name in ("compiler", "kernels")),
            f"{r['cycles']['seconds'] * 1e3:.0f}",
            f"{100 * r['model_flops'] / (r['cycles']['seconds'] * r['peak_flops']):.1f}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    for r in results:
        lines += ["", f"{r['model']} on {r['topology']}, fsdp {r['fsdp']}, collectives of a step:", ""]
        lines += [
            f"- {kind}: {c['count']:,} times, {c['bytes'] / 1e9:.3f} GB" for kind, c in sorted(r["collectives"].items())
        ]
        lines += [
            f"  - {c['kind']} of {c['shape'][:60]}, {c['bytes'] / 1e6:.1f} MB x {c['times']}, {c['group']} chips: "
            f"{c['op'][-70:]}"
            for c in r["largest"][:5]
        ]
        other = sum(c["bytes"] * c["times"] for c in r["not_of_params"])
        lines.append(f"- of these neither params nor gradients: {other / 1e6:.1f} MB")
        lines += ["", *cycles.report(r["cycles"])]
    return "\n".join(lines)


def load_recipe(name: str, count: int, options: argparse.Namespace) -> TrainConfig:
    """A shipped recipe on `count` chips."""
    config = importlib.import_module(f"configs.{name}").get_config()
    fsdp = options.fsdp or math.gcd(count, config.parallel.fsdp)
    if count % fsdp:
        raise ValueError(f"expected --fsdp to divide the {count} chips, got {fsdp}")
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, batch_size=count * options.images),
        loss=dataclasses.replace(config.loss, size=options.side),
        parallel=dataclasses.replace(config.parallel, fsdp=fsdp),
        dtype="bfloat16",
        remat=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["vit_h"], help="of configs/: vit_b, vit_l, vit_h")
    parser.add_argument("--topologies", nargs="+", default=["v5e:16x16"], help="CHIP:SHAPE; chips: " + ", ".join(RATES))
    parser.add_argument(
        "--fsdp", type=int, default=0, help="chips that share a state; 0: as the recipe; 1: a copy each"
    )
    parser.add_argument("--images", type=int, default=1, help="per chip")
    parser.add_argument("--side", type=int, default=1024, help="at which the loss is taken, pixels")
    parser.add_argument("--effort", type=float, default=-1.0, help="of the compiler, -1 to 1; 0 takes 3 times as long")
    parser.add_argument("--out", type=Path, help="folder of one JSON file per configuration")
    parser.add_argument("--hlo", action="store_true", help="also write the programs, as text, to --out")
    options = parser.parse_args()
    if options.hlo and not options.out:
        parser.error("--hlo needs --out")
    results = []
    configurations = [(recipe, topology) for recipe in options.recipes for topology in options.topologies]
    try:
        for recipe, topology in ProgressBar(configurations, desc="compiling", unit="program"):
            config = load_recipe(recipe, len(topology_devices(topology)), options)
            name = f"{recipe}_{topology.replace(':', '_')}_fsdp{config.parallel.fsdp}_{options.images}_{options.side}"
            name += f"_effort{options.effort:g}" if options.effort != -1 else ""
            record = options.out / f"{name}.json" if options.out else None
            if record and record.exists():
                results.append(json.loads(record.read_text()))
                continue
            if record:
                record.parent.mkdir(parents=True, exist_ok=True)
            program = record.with_suffix(".hlo") if record and options.hlo else None
            results.append(measure(config, topology, options.effort, program))
            if record:
                temporary = record.with_suffix(".tmp")
                temporary.write_text(json.dumps(results[-1], indent=1))
                temporary.replace(record)
    except (RuntimeError, ValueError) as error:  # of the compiler too: a program that does not fit says so
        sys.exit(f"{type(error).__name__}: {error}")
    print(report(results))


if __name__ == "__main__":
    main()
