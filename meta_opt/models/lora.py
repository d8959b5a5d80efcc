"""Low-rank adapters (LoRA) on linear layers, selected by a regex over paths.

Hu et al. 2021 (arXiv:2106.09685): a kernel W [in, out] acts as W + s A B with A [in,
r], B [r, out], s = alpha / r; rsLoRA (Kalajdzievski 2023, arXiv:2312.03732) takes s =
alpha / sqrt(r). B is initialised to zero, so that the model is initially unchanged.
Kernels of a scanned stack, [L, in, out], get [L, in, r] and [L, r, out].

The names of existing parameters do not change; an adapted layer has two more leaves,
``lora_a`` and ``lora_b``, of the type `LoRAParam`. To train only these:

    graphdef, adapters, frozen = nnx.split(model, LoRAParam, ...)
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx import LoRAParam

from meta_opt.features.tensors import GROUPS, modality_group
from meta_opt.models.int8 import restore_base
from meta_opt.models.layers import Linear
from meta_opt.models.settings import check_counts
from meta_opt.types import near_match

__all__ = [
    "LoRAConfig",
    "LoRALinear",
    "LoRAParam",
    "LoRASummary",
    "add_lora",
    "merge_lora",
    "unmerge_lora",
]

KeyPath: TypeAlias = tuple[Any, ...]

_PLAIN = (nnx.Linear, Linear)

_OPTIONS = (
    "in_features",
    "out_features",
    "use_bias",
    "dtype",
    "param_dtype",
    "precision",
    "dot_general",
    "promote_dtype",
    "preferred_element_type",
)


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Selection, rank and scale of adapters.

    Attributes:
        pattern: regex, searched in '/'-joined paths of kernels such as
            ``vision/layers/attention/query/kernel``.
        groups: modality groups to adapt, such as ``("vision",)``, see
            `meta_opt.features.tensors.modality_group`; empty for all.
        rank: r, rank of the adapters.
        alpha: scale of the adapters, see `scaling`.
        rs_lora: whether to scale by 1 / sqrt(r) instead of 1 / r.
    """

    pattern: str = r"attention/(query|value)/kernel$"
    groups: tuple[str, ...] = ()
    rank: int = 8
    alpha: float = 16.0
    rs_lora: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for a rank below 1 and unknown groups."""
        if self.rank < 1:
            raise ValueError(f"rank={self.rank} of LoRA must be at least 1")
        check_counts(self, "rank")
        for group in self.groups:
            if group not in GROUPS:
                raise ValueError(
                    f"unknown modality group {group!r}{near_match(group, GROUPS)}; "
                    f"available: {', '.join(GROUPS)}"
                )

    def matches(self, path: str) -> bool:
        """Whether the kernel at ``path`` gets an adapter."""
        if self.groups and modality_group(path) not in self.groups:
            return False
        return re.search(self.pattern, path) is not None

    @property
    def scaling(self) -> float:
        """The factor s of A B."""
        return self.alpha / (math.sqrt(self.rank) if self.rs_lora else self.rank)


@dataclasses.dataclass(frozen=True)
class LoRASummary:
    """Statistics of `add_lora`.

    Attributes:
        shapes: shape of each adapted kernel by path.
        trainable: number of parameters of the adapters.
        total: number of parameters of the model, including adapters.
    """

    shapes: dict[str, tuple[int, ...]]
    trainable: int
    total: int

    def __str__(self) -> str:
        lines = [f"  {path} {list(shape)}" for path, shape in self.shapes.items()]
        head = (
            f"LoRA on {len(self.shapes)} kernels: {self.trainable:,} of "
            f"{self.total:,} parameters train ({self.trainable / self.total:.2%})"
        )
        return "\n".join([head, *lines])


class LoRALinear(Linear):
    """A linear layer that shares the parameters of ``linear`` and adds s x A B."""

    def __init__(
        self, linear: nnx.Linear, rank: int, scaling: float, *, rngs: nnx.Rngs
    ) -> None:
        shared: Any = linear
        # Create the layer abstractly, since its parameters are replaced by shared ones.
        super().__init__(
            **_options(linear),
            kernel_init=lambda *_: shared.kernel[...],
            bias_init=lambda *_: shared.bias[...],
            rngs=rngs,
        )
        self.kernel, self.bias = linear.kernel, linear.bias
        if hasattr(linear, "kernel_scale"):
            self.kernel_scale = linear.kernel_scale
        *stack, fan_in, fan_out = linear.kernel.shape
        init = nnx.initializers.normal(fan_in**-0.5)
        # Adapters are trained: below float32 small updates would be lost.
        dtype = jnp.promote_types(linear.param_dtype, jnp.float32)
        self.lora_a = LoRAParam(init(rngs.params(), (*stack, fan_in, rank), dtype))
        self.lora_b = LoRAParam(jnp.zeros((*stack, rank, fan_out), dtype))
        self.scaling = scaling

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        """Maps [..., in] to [..., out]."""
        y = super().__call__(inputs, out_sharding)
        x, a, b = self.promote_dtype(
            (inputs, self.lora_a[...], self.lora_b[...]), dtype=self.dtype
        )
        product = functools.partial(
            self.dot_general, dimension_numbers=(((x.ndim - 1,), (0,)), ((), ()))
        )
        return y + product(product(x, a), b) * self.scaling

    def delta(self) -> jax.Array:
        """The change of the kernel, s A B: [in, out] or [L, in, out]."""
        return self.scaling * (self.lora_a[...] @ self.lora_b[...])

    def merged(self) -> Linear:
        """The plain linear layer with kernel W + s A B, of its ``param_dtype``."""
        linear = nnx.eval_shape(lambda: Linear(**_options(self), rngs=nnx.Rngs(0)))
        kernel = self.full_kernel() + self.delta()
        linear.kernel = nnx.Param(kernel.astype(self.param_dtype))
        linear.bias = self.bias
        return linear


def add_lora(
    model: nnx.Module, config: LoRAConfig | None = None, *, rngs: nnx.Rngs
) -> LoRASummary:
    """Adds adapters to the linear layers of ``model`` that the pattern matches.

    The model is changed in place; its outputs are the same until adapters are trained.

    Args:
        model: any module with `nnx.Linear` layers, stacked ones included.
        config: pattern and rank.
        rngs: random streams; ``params`` initialises the A matrices.

    Returns:
        Adapted kernels and parameter counts, to print.

    Raises:
        ValueError: if nothing matches; the message lists the candidates.
    """
    config = config or LoRAConfig()
    candidates = {_kernel_path(p): p for p, _ in _linears(model, *_PLAIN)}
    chosen = {k: p for k, p in candidates.items() if config.matches(k)}
    if not chosen:
        of = f" of {', '.join(config.groups)}" if config.groups else ""
        raise ValueError(
            f"the LoRA pattern {config.pattern!r} matches no kernel{of}"
            f"{near_match(config.pattern, candidates)} (candidates: "
            f"{', '.join(candidates) or 'none'})"
        )
    shapes = {}
    for name, path in chosen.items():
        linear = _child(model, path)
        shapes[name] = linear.kernel.shape
        _replace(
            model, path, LoRALinear(linear, config.rank, config.scaling, rngs=rngs)
        )
    return LoRASummary(shapes, _count(model, LoRAParam), _count(model, nnx.Param))


def merge_lora(model: nnx.Module) -> nnx.State:
    """Merges the adapters into the kernels and removes them, in place.

    All int8 kernels, adapted or not, are dequantised.

    Args:
        model: a module with adapters.

    Returns:
        The adapters, for `unmerge_lora`.

    Raises:
        ValueError: if there are no adapters.
    """
    adapters = nnx.state(model, LoRAParam)
    paths = [path for path, _ in _linears(model, LoRALinear)]
    if not paths:
        raise ValueError("the model has no LoRA adapters to merge")
    for path in paths:
        _replace(model, path, _child(model, path).merged())
    restore_base(model)
    return adapters


def unmerge_lora(model: nnx.Module, adapters: nnx.State, config: LoRAConfig) -> None:
    """Undoes `merge_lora` in place, up to rounding.

    Args:
        model: the merged module.
        adapters: the result of `merge_lora`.
        config: the configuration that the adapters were added with.
    """
    flat = nnx.to_flat_state(adapters)
    for path in dict.fromkeys(path[:-1] for path, _ in flat):
        linear = _child(model, path)
        _replace(
            model,
            path,
            LoRALinear(linear, config.rank, config.scaling, rngs=nnx.Rngs(0)),
        )
    nnx.update(model, adapters)
    for _, layer in _linears(model, LoRALinear):
        layer.kernel[...] = layer.kernel[...] - layer.delta()


def _options(linear: nnx.Linear) -> dict[str, Any]:
    return {name: getattr(linear, name) for name in _OPTIONS}


def _linears(
    model: nnx.Module, *kinds: type[nnx.Linear]
) -> Iterator[tuple[KeyPath, Any]]:
    """Layers of exactly these types with their paths, sorted by path."""
    found = {p: m for p, m in nnx.iter_modules(model) if type(m) in kinds}
    yield from sorted(found.items(), key=lambda item: _kernel_path(item[0]))


def _kernel_path(path: KeyPath) -> str:
    return "/".join(map(str, (*path, "kernel")))


def _child(module: Any, path: KeyPath) -> Any:
    for key in path:
        module = module[key] if isinstance(key, int) else getattr(module, key)
    return module


def _replace(model: nnx.Module, path: KeyPath, new: nnx.Module) -> None:
    parent, key = _child(model, path[:-1]), path[-1]
    if isinstance(key, int):
        parent[key] = new
    else:
        setattr(parent, key, new)


def _count(model: nnx.Module, kind: type[nnx.Param]) -> int:
    leaves = jax.tree.leaves(nnx.state(model, kind))
    return sum(math.prod(leaf.shape) for leaf in leaves)
