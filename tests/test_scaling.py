"""What the program text of a compiled step says of its collectives and traffic. No TPU compiler is needed."""

import math

import jax
import jax.numpy as jnp
import pytest
from cycles import cycles, part_of, report
from hlo import collectives, main_memory_bytes, parse, shape_bytes, timed_instructions
from jax.experimental import pallas as pl
from jax.sharding import NamedSharding, PartitionSpec
from kernels import pallas_kernels, product_flops

from sam_jax.parallel.mesh import make_mesh

# As the TPU compiler writes it, shortened: a loop of 10 turns, an asynchronous gather with its copy in a second fusion,
# a fused reduce-scatter, arrays on the chip (S(1)).
RECORDED = """HloModule jit_step, is_scheduled=true, num_partitions=8

FileNames
1 "/usr/lib/jax/lax.py"
2 "/home/me/sam_jax/modeling/common.py"

FunctionNames
1 "step"

FileLocations
1 {file_name_id=2 function_name_id=1 line=36 end_line=36 column=4 end_column=97}
2 {file_name_id=1 function_name_id=1 line=25 end_line=25 column=10 end_column=92}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}


%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%async_collective_fusion.1 (p0: bf16[256,512]) -> (bf16[256,512], bf16[256,2048], u32[]) {
  %p0 = bf16[256,512]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.1 = bf16[256,2048]{1,0:T(8,128)(2,1)} all-gather(%p0), channel_id=7, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={1}, metadata={op_name="jit(step)/mlp/lin1"}
  ROOT %start = (bf16[256,512]{1,0}, bf16[256,2048]{1,0}, u32[]{:S(2)}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.2 (p0: bf16[256,512]) -> bf16[256,2048] {
  %p0 = bf16[256,512]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[256,2048]{1,0:T(8,128)(2,1)S(1)} all-gather(%p0), channel_id=7, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={1}, metadata={op_name="jit(step)/mlp/lin1"}
}

%all-reduce-scatter.3 (p0: bf16[256,256]) -> bf16[256,64] {
  %p0 = bf16[256,256]{0,1:T(8,128)(2,1)} parameter(0)
  %all-reduce.1 = bf16[256,256]{0,1:T(8,128)(2,1)} all-reduce(%p0), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %slice = bf16[256,64]{0,1:T(8,128)(2,1)} slice(%all-reduce.1), slice={[0:256], [0:64]}
}

%body (state: (s32[], f32[64,128])) -> (s32[], f32[64,128]) {
  %state = (s32[]{:T(128)}, f32[64,128]{1,0:T(8,128)}) parameter(0)
  %turn = s32[]{:T(128)} get-tuple-element(%state), index=0
  %x = f32[64,128]{1,0:T(8,128)} get-tuple-element(%state), index=1
  %all-reduce.2 = f32[64,128]{1,0:T(8,128)} all-reduce(%x), channel_id=9, replica_groups=[1,8]<=[8], to_apply=%add, metadata={op_name="jit(step)/while/body/decoder"}
  %y = f32[64,128]{1,0:T(8,128)S(1)} copy(%all-reduce.2), metadata={op_name="jit(step)/jvp(MaskDecoder)/copy" stack_frame_id=2}, backend_config={"window_config":{"estimated_cycles":"70"}}
  ROOT %next = (s32[]{:T(128)}, f32[64,128]{1,0:T(8,128)}) tuple(%turn, %y)
}

%condition (state.1: (s32[], f32[64,128])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, f32[64,128]{1,0:T(8,128)}) parameter(0)
  %bound = s32[]{:T(128)} constant(10)
  %turn.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%turn.1, %bound), direction=LT
}

ENTRY %main (q0: bf16[256,512], q1: bf16[256,256], q2: f32[64,128]) -> f32[64,128] {
  %q0 = bf16[256,512]{1,0:T(8,128)(2,1)} parameter(0)
  %q1 = bf16[256,256]{0,1:T(8,128)(2,1)} parameter(1)
  %q2 = f32[64,128]{1,0:T(8,128)} parameter(2)
  %fusion.1 = (bf16[256,512]{1,0}, bf16[256,2048]{1,0}, u32[]{:S(2)}) fusion(%q0), kind=kCustom, calls=%async_collective_fusion.1
  %fusion.2 = bf16[256,2048]{1,0:T(8,128)(2,1)S(1)} fusion(%q0), kind=kCustom, calls=%async_collective_fusion.2
  %fusion.3 = bf16[256,64]{0,1:T(8,128)(2,1)} fusion(%q1), kind=kCustom, calls=%all-reduce-scatter.3, backend_config={"window_config":{"estimated_cycles":"300"}}
  %kernel = f32[64,128]{1,0:T(8,128)} custom-call(%q2), custom_call_target="tpu_custom_call"
  %permute = (f32[4,8]{1,0}, f32[4,8]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%q2), channel_id=3, source_target_pairs={{0,1},{1,0}}
  %zero = s32[]{:T(128)} constant(0)
  %tuple.1 = (s32[]{:T(128)}, f32[64,128]{1,0:T(8,128)}) tuple(%zero, %q2)
  %loop = (s32[]{:T(128)}, f32[64,128]{1,0:T(8,128)}) while(%tuple.1), condition=%condition, body=%body
  ROOT %result = f32[64,128]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def test_collectives_of_a_recorded_tpu_program():
    found = [(c.kind, c.bytes, c.group, c.times, c.op) for c in collectives(parse(RECORDED))]
    assert found == [
        ("all-gather", 2 * 256 * 2048, 4, 1, "jit(step)/mlp/lin1"),
        ("all-reduce", 4 * 64 * 128, 8, 10, "jit(step)/while/body/decoder"),
        ("reduce-scatter", 2 * 256 * 256, 4, 1, ""),
        ("collective-permute", 4 * 4 * 8, 2, 1, ""),
    ]


def test_a_ring_sends_what_each_device_lacks():
    sent = {c.kind: c.sent for c in collectives(parse(RECORDED))}
    assert sent["all-gather"] == 3 / 4 * 2 * 256 * 2048
    assert sent["all-reduce"] == 10 * 2 * 7 / 8 * 4 * 64 * 128


def test_what_stays_on_the_chip_is_no_traffic_with_the_main_memory():
    program = parse(RECORDED)
    entry = 2 * (256 * 512 * 2 + 256 * 2048) + 2 * 256 * 512 + 2 * (256 * 256 + 256 * 64)  # fusions 1, 2 and 3
    copy = 4 * 64 * 128  # read from the main memory, written to the chip's
    compare = 0  # scalars, counted below
    scalars = 10 * (4 + 4 + 1)
    assert main_memory_bytes(program) == entry + 10 * copy + compare + scalars
    assert main_memory_bytes(program, loops=False) == entry + copy + 9


def test_bytes_of_shapes():
    assert shape_bytes("(f32[2,3]{1,0:T(8,128)}, /*index=1*/pred[5]{0}, u32[]{:S(2)})") == 24 + 5 + 4
    assert shape_bytes("bf16[8,16]{1,0:T(8,128)(2,1)S(1)}", main_memory=True) == 0


def test_collectives_of_a_program_compiled_here():
    mesh = make_mesh(2, 4)
    cut, images = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((None, "fsdp"), (("data", "fsdp"),)))

    def loss(kernel, x):
        def turn(x, _):
            return jnp.tanh(x @ kernel), None

        return jax.lax.scan(turn, x, length=5)[0].sum()

    step = jax.jit(jax.grad(loss), in_shardings=(cut, images), out_shardings=cut)
    shapes = jax.ShapeDtypeStruct((64, 64), jnp.float32), jax.ShapeDtypeStruct((8192, 64), jnp.float32)
    found = collectives(parse(step.lower(*shapes).compile().as_text()))
    gathers = [c for c in found if c.kind == "all-gather"]
    assert any(c.bytes == 4 * 64 * 64 and c.group == 4 for c in gathers)
    # In each turn the gradient is summed over all devices: at once, or along one axis and then the other.
    sums = [c for c in found if c.kind in ("all-reduce", "reduce-scatter")]
    assert {c.times for c in sums} == {5}
    assert math.prod(c.group for c in sums) == 8
    assert max(c.bytes for c in sums) == 4 * 64 * 64


def test_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        parse("nothing")


def test_what_is_neither_param_nor_gradient_is_found():
    import tpu_aot

    found = collectives(parse(RECORDED))
    params = {
        "lin1": jax.ShapeDtypeStruct((256, 2048), jnp.float32),
        "proj": jax.ShapeDtypeStruct((256, 256), jnp.float32),
    }
    others = tpu_aot.not_of_params(found, params, fsdp=4, least=2**10)
    assert [c.kind for c in others] == ["all-reduce"]
    assert tpu_aot.not_of_params(found, params | {"bias": jax.ShapeDtypeStruct((64, 128), jnp.float32)}, fsdp=4) == []


def test_products_in_loops_count_as_often_as_they_turn():
    def function(x, w):
        return jax.lax.scan(lambda x, _: (jax.checkpoint(jnp.matmul)(x, w), None), x, length=3)[0].sum()

    shapes = jax.ShapeDtypeStruct((2, 8), jnp.float32), jax.ShapeDtypeStruct((8, 8), jnp.float32)
    forward = jax.make_jaxpr(function)(*shapes).jaxpr
    assert product_flops(forward) == 3 * 2 * 2 * 8 * 8


def kernel_of_blocks(x, w):
    """A product in blocks of 8 x 128, as a Pallas kernel."""

    def kernel(x_ref, w_ref, out_ref):
        out_ref[...] = x_ref[...] @ w_ref[...]

    return pl.pallas_call(
        kernel,
        grid=(4, 2),
        in_specs=[pl.BlockSpec((8, 16), lambda i, j: (i, 0)), pl.BlockSpec((16, 128), lambda i, j: (0, j))],
        out_specs=pl.BlockSpec((8, 128), lambda i, j: (i, j)),
        out_shape=jax.ShapeDtypeStruct((32, 256), jnp.float32),
        name="blocks",
    )(x, w)


def test_cycles_of_a_recorded_tpu_program():
    timed = [(i.name, i.cycles, i.times, i.op, i.source) for i in timed_instructions(parse(RECORDED))]
    assert timed == [
        ("y", 700, 10, "jit(step)/jvp(MaskDecoder)/copy", "sam_jax/modeling/common.py:36"),
        ("fusion.3", 300, 1, "", ""),
    ]


def test_kernels_count_by_their_blocks_and_products():
    def function(x, w):
        return jax.lax.scan(lambda total, _: (total + kernel_of_blocks(x, w).sum(), None), 0.0, length=3)[0]

    shapes = jax.ShapeDtypeStruct((32, 16), jnp.float32), jax.ShapeDtypeStruct((16, 256), jnp.float32)
    jaxpr = jax.make_jaxpr(function)(*shapes).jaxpr
    (kernel,) = pallas_kernels(jaxpr)
    assert (kernel.name, kernel.times, kernel.flops) == ("blocks", 3, 2 * 32 * 16 * 256)
    # The rows' block stays while the columns change; the other two change at each of the 8 steps.
    assert kernel.bytes == 4 * (4 * 8 * 16 + 8 * 16 * 128 + 8 * 8 * 128)
    assert product_flops(jaxpr) == 3 * kernel.flops
    assert kernel.seconds(peak_flops=1e12, memory_rate=1e6) == kernel.bytes / 1e6
    assert kernel.seconds(peak_flops=1e6, memory_rate=1e12) == 2 * kernel.flops / 1e6

    found = cycles(parse(RECORDED), [kernel], clock=10.0, peak_flops=1e12, memory_rate=1e6)
    assert found["compiler"] == 1000
    assert found["kernels"] == pytest.approx(3 * kernel.bytes / 1e6 * 10)
    assert found["parts"] == {"decoder": 700, "unnamed": 300}
    assert "| blocks | 3 |" in "\n".join(report(found))


def test_of_branches_by_platform_that_of_a_tpu_counts():
    def function(x, w):
        return jax.lax.platform_dependent(x, w, cpu=jnp.matmul, tpu=kernel_of_blocks, default=jnp.matmul)

    shapes = jax.ShapeDtypeStruct((32, 16), jnp.float32), jax.ShapeDtypeStruct((16, 256), jnp.float32)
    assert len(pallas_kernels(jax.make_jaxpr(function)(*shapes).jaxpr)) == 1


@pytest.mark.parametrize(
    ("op", "part"),
    [
        ("jit(step)/transpose(jvp(checkpoint))/rematted_computation/MaskDecoder/transformer/mul", "decoder"),
        ("jit(step)/jvp(PromptEncoder)/PromptEncoder.embed_masks/add", "prompts"),
        ("jit(step)/jvp(ViT)/blocks_2/attn/qkv/dot_general", "encoder, global blocks"),
        ("jit(step)/jvp(ViT)/blocks_3/attn/qkv/dot_general", "encoder, windowed blocks"),
        ("jit(step)/jvp(Neck)/neck_0/dot_general", "encoder, rest"),
        ("jit(step)/transpose(jvp())/while/body/mul", "loss and clicks"),
        ("jit(step)/mul", "optimizer and rest"),
        ("", "unnamed"),
    ],
)
def test_parts_of_the_step_are_told_by_the_names_of_operations(op, part):
    assert part_of(op, (2, 5)) == part
