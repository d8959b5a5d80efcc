"""A frozen base in int8: a byte a parameter, under adapters that train.

Each kernel is rounded to int8 with one scale for each of its outputs (and layer), the
largest absolute value over 127, as in LLM.int8() without its outliers (Dettmers et al.
2022, arXiv:2208.07339); training adapters over a quantised base is QLoRA's idea
(Dettmers et al. 2023, arXiv:2305.14314), which has four bits.
"""

import dataclasses
import re

import jax.numpy as jnp
from flax import nnx

from meta_opt.models.layers import Linear


@dataclasses.dataclass(frozen=True)
class Int8Summary:
    """What `quantise_base` rounded.

    Attributes:
        kernels: how many, a stack counted once.
        bytes_before: of these kernels.
        bytes_after: of the int8 kernels and their scales.
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

    What is rounded must not be trained; adapters, biases, norms and embeddings stay as
    they are. `restore_base` and `meta_opt.models.lora.merge_lora` make floats of it
    again, those that the int8 kernels stand for.

    Args:
        model: with adapters or without.
        pattern: regex, searched in '/'-joined paths of kernels.

    Returns:
        What it saves, to print.

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
    """Makes floats of the int8 kernels of a model, in place; the outputs stay."""
    for _, layer in nnx.iter_modules(model):
        if isinstance(layer, Linear):
            layer.restore_kernel()
