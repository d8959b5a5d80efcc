"""LoRA in PEFT's format: ``adapter_config.json`` and the tensors of each layer.

Every setting is applied, known not to affect the adapters' function, or rejected by
name. Unknown settings of future versions are rejected unless they are off.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from meta_opt.error_messages import first_few
from meta_opt.image_processor import is_number
from meta_opt.models.huggingface.settings import section
from meta_opt.models.lora import LoRAConfig
from meta_opt.models.settings import check_pattern, is_count

PREFIX = "base_model.model."
"""Prefix of all tensor names."""
LEAVES = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight"}
"""Suffix of a factor's tensor name, by our name of the factor."""

_APPLIED = (
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "init_lora_weights",
)
# Settings of training, bookkeeping, or initialisations that are checked elsewhere.
_WITHOUT_EFFECT = (
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
)
_OFF: tuple[Any, ...] = (None, False, "none", {}, [])
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal", "mica")
"""Initialisations that do not modify the base kernels."""
_SUBTRACTED_STARTS = ("pissa", "olora")
"""Initialisations that subtract a deterministic function of the kernels from them."""


@dataclasses.dataclass(frozen=True)
class PeftConfig:
    """PEFT's configuration of LoRA.

    Attributes:
        rank: r, default rank.
        alpha: default alpha.
        rs_lora: whether to scale by alpha / sqrt(r) instead of alpha / r.
        rank_pattern: r by regular expression over suffixes of layer names.
        alpha_pattern: alpha by regular expression over suffixes of layer names.
        target_modules: regular expression over full layer names, or suffixes of names;
            None: the tensors determine which layers are adapted.
        exclude_modules: layers that are not adapted: a regular expression over full
            names, or suffixes of names.
        layers_to_transform: indices of adapted layers; empty for all.
        layers_pattern: names of the module lists of these layers; empty for any.
        start: ``pissa`` or ``olora`` if this initialisation modified the kernels, or
            "".
    """

    rank: int = 8
    alpha: float = 8.0
    rs_lora: bool = False
    rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = dataclasses.field(default_factory=dict)
    target_modules: str | tuple[str, ...] | None = None
    exclude_modules: str | tuple[str, ...] = ()
    layers_to_transform: tuple[int, ...] = ()
    layers_pattern: tuple[str, ...] = ()
    start: str = ""

    @property
    def scaling(self) -> float:
        """The default factor of A B."""
        return self._scaling(self.alpha, self.rank)

    def rank_of(self, name: str) -> int:
        """The rank of a layer's adapter."""
        return _by_pattern(self.rank_pattern, name, self.rank)

    def scaling_of(self, name: str) -> float:
        """The factor of a layer's A B."""
        alpha = _by_pattern(self.alpha_pattern, name, self.alpha)
        return self._scaling(alpha, self.rank_of(name))

    def _scaling(self, alpha: float, rank: int) -> float:
        return alpha / (math.sqrt(rank) if self.rs_lora else rank)

    def adapts(self, name: str) -> bool:
        """Whether `target_modules` selects a layer for an adapter."""
        assert self.target_modules is not None
        if self.exclude_modules and _matches(self.exclude_modules, name):
            return False
        if not _matches(self.target_modules, name):
            return False
        if isinstance(self.target_modules, str) or name in self.target_modules:
            return True
        return not self.layers_to_transform or self._in_layers(name)

    def _in_layers(self, name: str) -> bool:
        patterns = self.layers_pattern or (r"[^.]*",)
        for pattern in patterns:
            if found := re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", name):
                return int(found[1]) in self.layers_to_transform
        return False


def parse_config(given: Mapping[str, Any]) -> PeftConfig:
    """Parses the contents of ``adapter_config.json``.

    Raises:
        ValueError: another method than LoRA, or an unsupported setting that affects the
            adapters' function; the message names it.
    """
    kind = given.get("peft_type")
    if kind != "LORA":
        raise ValueError(f"peft_type={kind!r} is not LORA, which can be read")
    refused = [
        f"{name}={value!r}"
        for name, value in given.items()
        if name not in (*_APPLIED, *_WITHOUT_EFFECT) and value not in _OFF
    ]
    if refused:
        raise ValueError(f"it is not plain LoRA: {', '.join(refused)}")
    start = given.get("init_lora_weights", True)
    start = start.lower() if isinstance(start, str) else start
    if isinstance(start, list | dict) or start not in (
        None,
        *_PLAIN_STARTS,
        *_SUBTRACTED_STARTS,
    ):
        raise ValueError(
            f"init_lora_weights={given['init_lora_weights']!r} changed the kernels "
            "underneath in a way that the adapters do not record; let PEFT write plain "
            "LoRA, save_pretrained(..., path_initial_model_for_weight_conversion=...), "
            "or merge them there"
        )
    rank, alpha = given.get("r", 8), given.get("lora_alpha", 8)
    rank_pattern = section(given, "rank_pattern", {})
    alpha_pattern = section(given, "alpha_pattern", {})
    for name, value in {"r": rank, **rank_pattern}.items():
        if not is_count(value):
            raise ValueError(f"{name}={value!r} must be a positive integer")
    for name, value in {"lora_alpha": alpha, **alpha_pattern}.items():
        if not (is_number(value) and value > 0):
            raise ValueError(f"{name}={value!r} must be a number above 0")
    for name in (*rank_pattern, *alpha_pattern):
        check_pattern("rank_pattern or alpha_pattern", name)
    layers = given.get("layers_to_transform")
    layers = (layers,) if isinstance(layers, int) else (layers or ())
    if not isinstance(layers, list | tuple) or not all(map(is_number, layers)):
        raise ValueError(f"layers_to_transform={layers!r} must be numbers of layers")
    return PeftConfig(
        rank=rank,
        alpha=float(alpha),
        rs_lora=bool(given.get("use_rslora")),
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
        target_modules=_names(given, "target_modules"),
        exclude_modules=_names(given, "exclude_modules") or (),
        layers_to_transform=tuple(layers),
        layers_pattern=_patterns(given, "layers_pattern"),
        start=start if start in _SUBTRACTED_STARTS else "",
    )


class Factors(NamedTuple):
    """A [in, r] and B [r, out] of one layer."""

    a: np.ndarray
    b: np.ndarray


def merge_layers(
    config: PeftConfig,
    layers: Mapping[str, tuple[Sequence[str], jax.Array]],
    tensors: Mapping[str, np.ndarray],
) -> tuple[LoRAConfig, dict[str, np.ndarray]]:
    """Converts PEFT's adapters to equivalent ones of our models.

    A stack has a single rank and scale: layers of a lower rank, or without an adapter,
    are padded with zeros, and per-layer scales are folded into B.

    Args:
        config: output of `parse_config`.
        layers: by path of a kernel, its names in PEFT, one per layer of a stack, and
            the kernel, [in, out] or [L, in, out].
        tensors: tensors of the file by name.

    Returns:
        A configuration that would add the same adapters, and the adapters by path.

    Raises:
        ValueError: missing or unused tensors, or tensors of another rank.
    """
    left = dict(tensors)
    found: dict[str, list[Factors | None]] = {}
    lost: list[str] = []
    for path, (names, kernel) in layers.items():
        there = [_take(config, name, left) for name in names]
        wanted = [any(there)] * len(names)
        if config.target_modules is not None:
            wanted = [config.adapts(name) for name in names]
        pairs = zip(names, there, wanted, strict=True)
        for name, factors, is_wanted in pairs:
            if factors is None and is_wanted:
                lost.append(name)
            if factors is not None and not is_wanted:
                left[f"{PREFIX}{name}"] = factors.a
        if any(there):
            found[path] = list(_on_whole_kernels(config, names, kernel, there))
    if lost:
        raise ValueError(f"it adapts a part of the layers: it lacks {first_few(lost)}")
    if left:
        raise ValueError(
            "it adapts layers that the model has not or adapter_config.json leaves "
            f"out: {first_few(sorted(left))}"
        )
    if not found:
        raise ValueError("it has no adapters")
    rank = max(len(x.b) for factors in found.values() for x in factors if x)
    arrays: dict[str, np.ndarray] = {}
    for path, factors_of in found.items():
        stacked, parent = layers[path][1].ndim == 3, path.removesuffix("kernel")
        fan_in, fan_out = layers[path][1].shape[-2:]
        a = np.zeros((len(factors_of), fan_in, rank), np.float32)
        b = np.zeros((len(factors_of), rank, fan_out), np.float32)
        for i, x in enumerate(factors_of):
            if x is not None:
                a[i, :, : len(x.b)], b[i, : len(x.b)] = x
        arrays[f"{parent}lora_a"] = a if stacked else a[0]
        arrays[f"{parent}lora_b"] = b if stacked else b[0]
    alpha = config.alpha
    if rank != config.rank:
        alpha = config.scaling * (math.sqrt(rank) if config.rs_lora else rank)
    pattern = f"^({'|'.join(map(re.escape, found))})$"
    return LoRAConfig(pattern, (), rank, alpha, config.rs_lora), arrays


def _take(
    config: PeftConfig, name: str, tensors: dict[str, np.ndarray]
) -> Factors | None:
    """Removes a layer's factors from the tensors and returns them; None if missing."""
    keys = [f"{PREFIX}{name}.{ending}" for ending in LEAVES.values()]
    there = [key for key in keys if key in tensors]
    if not there:
        return None
    if absent := [key for key in keys if key not in tensors]:
        raise ValueError(f"it adapts a part of the layers: it lacks {absent[0]}")
    a, b = (np.asarray(tensors.pop(key), np.float32).T for key in keys)
    rank = config.rank_of(name)
    if not a.shape[-1] == len(b) == rank:
        raise ValueError(
            f"its adapter of {name} has rank {len(b)}, and adapter_config.json says "
            f"{rank} (r, rank_pattern)"
        )
    ratio = config.scaling_of(name) / config.scaling
    return Factors(a, b if ratio == 1 else b * np.float32(ratio))


def _on_whole_kernels(
    config: PeftConfig,
    names: Sequence[str],
    kernel: jax.Array,
    found: Sequence[Factors | None],
) -> Iterator[Factors | None]:
    """Converts adapters of modified kernels to adapters of the original kernels."""
    if not config.start:
        yield from found
        return
    kernels = np.asarray(kernel).reshape(-1, *kernel.shape[-2:])
    for name, whole, factors in zip(names, kernels, found, strict=True):
        if factors is None:
            yield None
            continue
        scaling = config.scaling_of(name)
        less = subtracted(config.start, whole, config.rank_of(name), scaling)
        ratio = np.float32(scaling / config.scaling)
        yield Factors(
            np.hstack([factors.a, less.a]), np.vstack([factors.b, -ratio * less.b])
        )


def subtracted(start: str, kernel: np.ndarray, rank: int, scaling: float) -> Factors:
    """What an initialisation subtracted from a kernel, in the form of an adapter.

    PiSSA (Meng et al. 2024, arXiv:2404.02948) starts from the largest singular values,
    OLoRA (Buyukakyuz 2024, arXiv:2406.01775) from the QR decomposition, and both
    subtract the adapters' initial product, so that the model's function is unchanged.
    Such adapters are only valid with the modified kernels.

    Args:
        start: ``pissa`` or ``olora``.
        kernel: original kernel, [in, out].
        rank: r.
        scaling: s, the factor of A B.

    Returns:
        A [in, r] and B [r, out] with which s A B was subtracted, float32.
    """
    kernel = kernel.astype(np.float32)
    if start == "pissa":
        u, values, v = np.linalg.svd(kernel, full_matrices=False)
        root = np.sqrt(values[:rank] / scaling)
        return Factors(u[:, :rank] * root, root[:, None] * v[:rank])
    q, r = np.linalg.qr(kernel.T)
    return Factors(r[:rank].T, q[:, :rank].T)


def _by_pattern(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default


def _matches(wanted: str | tuple[str, ...], name: str) -> bool:
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    return any(name == end or name.endswith(f".{end}") for end in wanted)


def _names(given: Mapping[str, Any], key: str) -> str | tuple[str, ...] | None:
    """A regular expression, or a list of names."""
    found = given.get(key)
    if isinstance(found, str):
        check_pattern(key, found)
    if found is None or isinstance(found, str):
        return found
    if not isinstance(found, list) or not all(isinstance(x, str) for x in found):
        raise ValueError(f"{key}={found!r} must be a string or a list of strings")
    return tuple(found)


def _patterns(given: Mapping[str, Any], key: str) -> tuple[str, ...]:
    found = _names(given, key) or ()
    found = (found,) if isinstance(found, str) else found
    for pattern in found:
        check_pattern(key, pattern)
    return found
