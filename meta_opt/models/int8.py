"""Quantisation of a frozen base model to int8, for adapter training.

Each kernel is rounded to int8 with one scale per output (and layer), the largest
absolute value divided by 127, as in LLM.int8() without outlier handling (Dettmers et
al. 2022, arXiv:2208.07339). Training adapters over a quantised base follows QLoRA
(Dettmers et al. 2023, arXiv:2305.14314), which uses four bits.
"""

import dataclasses
import re

import jax.numpy as jnp
from flax import nnx

from meta_opt.models.layers import Linear


@dataclasses.dataclass(frozen=True)
class Int8Summary:
    """Statistics of `quantise_base`.

    Attributes:
        kernels: number of kernels, counting a stack once.
        bytes_before: size of these kernels before quantisation.
        bytes_after: size of the int8 kernels and their scales.
    """

    kernels: int
    bytes_before: int
    bytes_after: int

    def __str__(self) -> str:
        return (
            f"int8 base: {self.kernels} kernels take {self.bytes_after:,} bytes "
            f"instead of {self.bytes_before:,}"
        )


def quantise_base(model: nnx.Module, pattern: str = r"") -> Int8Summary:
    """Rounds the kernels of `layers.Linear` and LoRA layers to int8, in place.

    Quantised kernels must not be trained; adapters, biases, norms and embeddings are
    unchanged. `restore_base` and `meta_opt.models.lora.merge_lora` dequantise the
    kernels.

    Args:
        model: a model with or without adapters.
        pattern: regex, searched in '/'-joined paths of kernels.

    Returns:
        Statistics of the saved memory, to print.

    Raises:
        ValueError: if nothing matches.
    """
    before = after = count = 0
    for path, layer in nnx.iter_modules(model):
        name = "/".join(map(str, (*path, "kernel")))
        if not isinstance(layer, Linear) or not re.search(pattern, name):
            continue
        if hasattr(layer, "kernel_scale"):
            continue
        kernel = layer.kernel[...]
        values = kernel.astype(jnp.float32)
        scale = jnp.max(jnp.abs(values), axis=-2) / 127
        rounded = jnp.round(values / jnp.maximum(scale, 1e-30)[..., None, :])
        layer.kernel = nnx.Param(rounded.astype(jnp.int8))
        layer.kernel_scale = nnx.Param(scale)
        before += kernel.nbytes
        after += kernel.size + scale.nbytes
        count += 1
    if not count:
        raise ValueError(f"the int8 pattern {pattern!r} matches no kernel")
    return Int8Summary(count, before, after)


def restore_base(model: nnx.Module) -> None:
    """Dequantises the int8 kernels of a model, in place; outputs are unchanged."""
    for _, layer in nnx.iter_modules(model):
        if isinstance(layer, Linear):
            layer.restore_kernel()
