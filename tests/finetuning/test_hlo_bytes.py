"""Bytes moved, of programs compiled here and of a TPU's text."""

import jax
import jax.numpy as jnp
import pytest

from meta_opt.finetuning.hlo_bytes import bytes_moved

SIDE = 512
X = jax.ShapeDtypeStruct((SIDE, SIDE), jnp.float32)


def moved(function, *args, **options):
    compiled = jax.jit(function, **options).lower(*args).compile()
    return bytes_moved(compiled.as_text()) / SIDE**2


def test_a_fused_chain_reads_each_operand_once():
    assert moved(lambda a, b: jnp.tanh(a * b) + a, X, X) == 12


def test_types_count_by_their_bytes():
    half = jax.ShapeDtypeStruct((SIDE, SIDE), jnp.bfloat16)
    assert moved(lambda a, b: (a + b).astype(jnp.bfloat16), X, half) == 8


@pytest.mark.skipif(
    jax.__version_info__ < (0, 9), reason="before, a sum is not a fusion on CPUs"
)
def test_a_reduction_counts_by_its_bytes():
    assert moved(lambda a: jnp.sum(a, axis=0), X) == pytest.approx(4 + 4 / SIDE)


def test_what_moves_data_to_a_fusion_does_not_count_and_a_kernel_does():
    text = """
%body (x: f32[8]) -> f32[8] {
  %y = f32[8] fusion(%x), kind=kLoop
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %c = (f32[8]{0:S(1)}, f32[8]{0}) copy-start(%a)
  %d = f32[8]{0} custom-call(%a), custom_call_target="ConcatBitcast"
  %k = (f32[8]{0}, bf16[2,2]{1,0}) custom-call(%a), custom_call_target="tpu_custom_call"
  %g = f32[8]{0} custom-call(%a), custom_call_target="__gpu$xla.gpu.triton"
  ROOT %z = f32[8]{0} get-tuple-element(%k), index=0
}
"""
    assert bytes_moved(text) == (32 + 32 + 8) + (32 + 32)
    with pytest.raises(ValueError, match="no program entry"):
        bytes_moved("")
