"""What a compiled program does per run, read from its optimised HLO text: collectives, traffic, the compiler's cycles.

Loops count as often as they turn. The text is that of `compiled.as_text()`, of one device of a mesh.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
DTYPE_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2}
DTYPE_BYTES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = ")
_CALLED = re.compile(r"(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_MOVES_NOTHING = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call"}


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    shape: str  # as it is written, with layouts; a tuple in parentheses
    opcode: str
    operands: tuple[str, ...]  # names
    rest: str  # operands and attributes, as they are written


@dataclasses.dataclass(frozen=True)
class Program:
    computations: dict[str, tuple[Instruction, ...]]
    times: dict[str, int]  # how often each runs; those inside others' fusions as often as they
    devices: int
    sources: dict[str, str]  # "file:line" by the stack frame ids of instructions


@dataclasses.dataclass(frozen=True)
class TimedInstruction:
    """An instruction with the cycles that the TPU compiler expects of it."""

    name: str
    shape: str  # of its result, without layouts
    opcode: str
    cycles: int  # of all its runs
    times: int
    op: str  # of the JAX program that it stems from, "" if the compiler does not say
    source: str  # file:line, "" if the compiler does not say


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of a device."""

    kind: str  # of COLLECTIVES
    shape: str  # of its result, without layouts
    bytes: float  # of the whole that is gathered, reduced or sent, each time
    group: int  # devices that take part
    times: int
    op: str  # of the JAX program that it stems from, "" if the compiler does not say

    @property
    def sent(self) -> float:
        """Bytes that a device sends in all, by the ring algorithms."""
        share = (self.group - 1) / self.group
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
        return factor * self.bytes * self.times


def arrays(shape: str) -> list[tuple[str, tuple[int, ...], int]]:
    """Shape text -> dtype, shape and memory space of each array; 0 is the main memory, the others are on the chip."""
    found = []
    for dtype, dims, layout in _ARRAY.findall(shape):
        if dtype in DTYPE_BYTES:
            space = re.search(r"S\((\d+)\)", layout)
            found.append((dtype, tuple(int(n) for n in dims.split(",") if n), int(space[1]) if space else 0))
    return found


def shape_bytes(shape: str, *, main_memory: bool = False) -> float:
    """Bytes of all arrays in a shape text, without the padding of tiles.

    Args:
        main_memory: leave out arrays that the compiler keeps on the chip.
    """
    return sum(
        DTYPE_BYTES[dtype] * math.prod(dims) for dtype, dims, space in arrays(shape) if not (main_memory and space)
    )


def parse(text: str) -> Program:
    """Reads the text of a program.

    Raises:
        ValueError: no entry computation in the text; a loop whose number of turns it does not tell.
    """
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", ""
    for line in text.splitlines():
        if not line.startswith(" ") and (header := _COMPUTATION.match(line)):
            current = header[2]
            computations[current] = []
            entry = current if header[1] else entry
        elif current and (name := _NAME.match(line)):
            computations[current].append(_instruction(name[1], line[name.end() :]))
    if not entry:
        raise ValueError(f"expected the text of a compiled program with an ENTRY, got {text[:80]!r}")
    frozen = {name: tuple(instructions) for name, instructions in computations.items()}

    times: dict[str, int] = defaultdict(int)

    def visit(name: str, count: int) -> None:
        times[name] += count
        for instruction in frozen[name]:
            turns = _turns(instruction, frozen) if instruction.opcode == "while" else 1
            branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
            called = _CALLED.findall(instruction.rest)
            called += [part.strip(" %") for part in branches[1].split(",")] if branches else []
            for inner in called:
                visit(inner, count * turns)

    visit(entry, 1)
    devices = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
    return Program(frozen, dict(times), int(devices[1]) if devices else 1, _sources(text))


def _sources(text: str) -> dict[str, str]:
    """Stack frame id -> "file:line" of the innermost frame of this project, of any project if there is none."""
    files = dict(re.findall(r'^(\d+) "(.*)"$', text.partition("\nFileNames\n")[2].partition("\n\n")[0], re.M))
    where = dict(re.findall(r"^(\d+) \{(file_name_id=.*)\}$", text, re.M))
    frames = dict(re.findall(r"^(\d+) \{(file_location_id=.*)\}$", text, re.M))

    def field(record: str, name: str) -> str:
        found = re.search(rf"{name}=(\d+)", record)
        return found[1] if found else "0"  # zeros are not written

    # The outermost frame has no parent: the number that stands for it there tells from which number ids are counted.
    offset = int(field(frames["1"], "parent_frame_id")) if frames else 0

    def source(frame: str) -> str:
        innermost = ""
        while frame in frames:
            location = where[field(frames[frame], "file_location_id")]
            path = files[field(location, "file_name_id")]
            innermost = innermost or f"{path}:{field(location, 'line')}"
            if "sam_jax/" in path:
                return f"{path[path.rindex('sam_jax/') :]}:{field(location, 'line')}"
            frame = str(int(field(frames[frame], "parent_frame_id")) - offset)
        return innermost

    return {frame: source(frame) for frame in frames}


def _instruction(name: str, text: str) -> Instruction:
    """`text` is what follows the equals sign."""
    end = _closing(text) if text.startswith("(") else text.index(" ")
    shape, text = text[:end], text[end:].lstrip()
    opcode, _, text = text.partition("(")
    end = _closing("(" + text) - 1
    operands = re.findall(r"%([\w.\-]+)", text[:end])
    return Instruction(name, shape, opcode, tuple(operands), text)


def _closing(text: str) -> int:
    """Index after the parenthesis that closes the first."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.end()
    return len(text)


def _turns(loop: Instruction, computations: dict[str, tuple[Instruction, ...]]) -> int:
    if known := re.search(r'known_trip_count["=:{\s]+n["=:\s]+"?(\d+)', loop.rest):
        return int(known[1])
    # A loop from `lax.scan` counts from 0 while it is less than a constant.
    condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
    assert condition
    constants = [i for i in computations[condition[1]] if i.opcode == "constant" and re.match(r"[su]32\[\]", i.shape)]
    values = {int(i.rest.partition(")")[0]) for i in constants}
    if len(values) != 1:
        raise ValueError(f"expected one bound in the condition of loop {loop.name}, found {sorted(values)}")
    return values.pop()


def collectives(program: Program) -> list[Collective]:
    """All collective operations that a run executes, the largest first.

    The TPU compiler spreads an asynchronous one over several fusions, with a copy in each; they count once. An
    all-reduce of which each device keeps a slice is a fusion called all-reduce-scatter, and counts as a reduce-scatter.
    """
    found, seen = [], set()
    fused = {
        name
        for instructions in program.computations.values()
        for i in instructions
        if i.opcode == "fusion"
        for name in _CALLED.findall(i.rest)
    }
    for computation, count in program.times.items():
        for instruction in program.computations[computation]:
            kind = instruction.opcode.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            group = _group(instruction.rest, program.devices)
            shape = _without_layouts(instruction.shape)
            channel = re.search(r"channel_id=(\d+)", instruction.rest)
            scatters = kind == "all-reduce" and computation.startswith("all-reduce-scatter")
            if computation in fused and channel and not scatters:
                if (kind, channel[1]) in seen:
                    continue
                seen.add((kind, channel[1]))
            size = shape_bytes(shape)
            if instruction.opcode.endswith("-start") and kind != "all-reduce":  # (operands, results, flags)
                results = {"all-gather": group / (group + 1), "reduce-scatter": 1 / (group + 1)}.get(kind, 0.5)
                size = shape_bytes(re.sub(r"u32\[\]", "", shape)) * results
            if kind == "reduce-scatter":
                size *= group
            name = "reduce-scatter" if scatters else kind
            found.append(Collective(name, shape, size, group, count, _op_name(instruction)))
    return sorted(found, key=lambda c: -c.bytes * c.times)


def _without_layouts(shape: str) -> str:
    return re.sub(r"\{[^}]*\}|/\*[^*]*\*/", "", shape)


def _op_name(instruction: Instruction) -> str:
    op = re.search(r'op_name="([^"]*)"', instruction.rest)
    return op[1] if op else ""


def timed_instructions(program: Program) -> list[TimedInstruction]:
    """All instructions with estimated cycles of the TPU compiler, the dearest first.

    What runs beside others, such as copies ahead of their use, counts as if it ran alone. Pallas kernels have none.
    """
    found = []
    for computation, times in program.times.items():
        for i in program.computations[computation]:
            if cycles := re.search(r'"estimated_cycles":"?(\d+)', i.rest):
                frame = re.search(r"stack_frame_id=(\d+)", i.rest)
                source = program.sources.get(frame[1], "") if frame else ""
                count = int(cycles[1]) * times
                shape = _without_layouts(i.shape)
                found.append(TimedInstruction(i.name, shape, i.opcode, count, times, _op_name(i), source))
    return sorted(found, key=lambda i: -i.cycles)


def _group(attributes: str, devices: int) -> int:
    """Devices of one group: written as lists, as `[groups,size]<=[...]`, or as axes of a mesh; {} is all devices."""
    if lists := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return len(lists[1].split(","))
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes):
        return int(iota[2])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", mesh[2]))
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", attributes):
        return len({number for number in re.findall(r"\d+", pairs[1])})
    if "replica_groups={}" in attributes:
        return devices
    raise ValueError(f"expected replica_groups in a form that is known here, got {attributes[:200]!r}")


def main_memory_bytes(program: Program, *, loops: bool = True) -> float:
    """Bytes that the instructions of a run read from and write to the main memory, arrays on the chip left out.

    An upper bound: a fusion that reads or updates a part of an array counts with the whole. Pallas kernels count as
    nothing: what they move is in their grids (`kernels.py`).

    Args:
        loops: count the body of a loop as often as it turns; else once.
    """
    inside = {
        name
        for instructions in program.computations.values()
        for i in instructions
        if i.opcode not in ("while", "conditional", "call")
        for name in _CALLED.findall(i.rest)
    }
    total = 0.0
    for computation, times in program.times.items():
        if computation in inside:
            continue
        shapes = {i.name: i.shape for i in program.computations[computation]}
        moved = sum(_moved(i, shapes) for i in program.computations[computation])
        total += moved * (times if loops else 1)
    return total


def _moved(instruction: Instruction, shapes: dict[str, str]) -> float:
    opcode = instruction.opcode
    if opcode in _MOVES_NOTHING or opcode.endswith("-done") or opcode in COLLECTIVES or _is_kernel(instruction):
        return 0.0
    operands = [shapes.get(name, "") for name in instruction.operands]
    result = shape_bytes(instruction.shape, main_memory=True)
    if opcode in ("copy-start", "slice-start"):  # (destination, source, flags) and (source, destination, flags)
        parts = arrays(instruction.shape)
        destination = parts[0] if opcode == "copy-start" else parts[1]
        size = DTYPE_BYTES[destination[0]] * math.prod(destination[1])
        return size * sum(space == 0 for _, _, space in parts[:2])
    if opcode.endswith("-start"):
        return 0.0
    if opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * result
    if opcode == "dynamic-update-slice":
        return 2 * shape_bytes(operands[1], main_memory=True)
    return result + sum(shape_bytes(shape, main_memory=True) for shape in operands)


def _is_kernel(instruction: Instruction) -> bool:
    return instruction.opcode == "custom-call" and 'custom_call_target="tpu_custom_call"' in instruction.rest
