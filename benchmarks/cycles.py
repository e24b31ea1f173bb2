"""How long a compiled TPU program takes by its compiler: estimated cycles, and what Pallas kernels add to them.

The compiler writes the cycles that it expects beside every instruction but Pallas kernels. Of these counts what takes
longer: their products, at half the peak, or their blocks' way from and to the main memory (`kernels.Kernel.seconds`).
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import hlo
from kernels import Kernel


def part_of(op: str, global_blocks: tuple[int, ...]) -> str:
    """Returns the part of the training step that an operation of the JAX program belongs to.

    Args:
        op: its name, with the modules that it is in; "" if the compiler made it up.
        global_blocks: of the image encoder, those that attend to the whole image.
    """
    if "MaskDecoder" in op:
        return "decoder"
    if "PromptEncoder" in op:
        return "prompts"
    if block := re.search(r"/blocks_(\d+)/", op):
        return "encoder, global blocks" if int(block[1]) in global_blocks else "encoder, windowed blocks"
    if re.search(r"patch_embed|pos_embed|\bNeck\b|/neck", op):
        return "encoder, rest"
    if not op:
        return "unnamed"
    return "loss and clicks" if "jvp(" in op else "optimizer and rest"


def cycles(
    program: hlo.Program,
    kernels: list[Kernel],
    *,
    clock: float,
    peak_flops: float,
    memory_rate: float,
    global_blocks: tuple[int, ...] = (),
    dearest: int = 20,
) -> dict[str, Any]:
    """Returns the cycles of a run, in all, by part of the model, and of the dearest instructions.

    Args:
        clock: cycles a second.
        peak_flops, memory_rate: of the chip, a second.
    """
    timed = hlo.timed_instructions(program)
    parts: Counter[str] = Counter()
    for i in timed:
        parts[part_of(i.op, global_blocks)] += i.cycles
    of_kernels = [
        {
            "name": kernel.name,
            "times": kernel.times,
            "flops": kernel.flops,
            "bytes": kernel.bytes,
            "cycles": kernel.times * kernel.seconds(peak_flops, memory_rate) * clock,
        }
        for kernel in kernels
    ]
    compiler, own = sum(i.cycles for i in timed), sum(float(kernel["cycles"]) for kernel in of_kernels)
    return {
        "compiler": compiler,
        "kernels": own,
        "seconds": (compiler + own) / clock,
        "parts": dict(parts.most_common()),
        "dearest": [vars(i) for i in timed[:dearest]],
        "of_kernels": of_kernels,
    }


def report(found: dict[str, Any]) -> list[str]:
    """Markdown: the parts, the dearest instructions and the kernels of what `cycles` found."""
    lines = [
        f"{found['compiler'] / 1e6:,.1f} M cycles by the compiler, {found['kernels'] / 1e6:,.1f} M in Pallas kernels: "
        f"{found['seconds'] * 1e3:,.1f} ms",
        "",
    ]
    lines += [f"- {part}: {count / 1e6:,.1f} M" for part, count in found["parts"].items()]
    lines += ["", "| M cycles | times | instruction | operation | source |", "|---" * 5 + "|"]
    lines += [
        f"| {i['cycles'] / 1e6:.2f} | {i['times']} | {i['opcode']} {i['name']} {i['shape'][:60]} | {i['op'][-80:]} "
        f"| {i['source']} |"
        for i in found["dearest"]
    ]
    if found["of_kernels"]:
        lines += ["", "| Pallas kernel | times | GFLOP | MB | M cycles |", "|---" * 5 + "|"]
        lines += [
            f"| {k['name']} | {k['times']} | {k['flops'] / 1e9:.2f} | {k['bytes'] / 1e6:.1f} "
            f"| {k['cycles'] / 1e6:.2f} |"
            for k in found["of_kernels"]
        ]
    return lines
