"""The workload interface: a model with its loss, data and evaluation."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from meta_opt.data.token_counts import TokenCounter
from meta_opt.parallel.sharding import FSDP_RULES, Rule
from meta_opt.types import PyTree
from meta_opt.workloads.export import ExportConfig

LossFn: TypeAlias = Callable[
    [PyTree, PyTree, PyTree, jax.Array], tuple[jax.Array, dict[str, jax.Array]]
]
"""``(params, frozen, batch, rng) -> (loss [], metrics)``, the loss a mean over B."""


LossesFn: TypeAlias = Callable[
    [PyTree, PyTree, PyTree, jax.Array], tuple[jax.Array, dict[str, jax.Array]]
]
"""``(params, frozen, batch, rng) -> (losses [T], metrics)``, each a mean over B."""


class Losses(NamedTuple):
    """Several losses of one model, for a run that combines them.

    Attributes:
        names: names of the T losses.
        primary: name of the primary loss, that of the task itself.
        fn: computes the losses; see `LossesFn`.
    """

    names: tuple[str, ...]
    primary: str
    fn: LossesFn


class Unimodal(NamedTuple):
    """Predictions from each modality alone, for a run that balances modalities.

    Attributes:
        names: names of the M modalities.
        encoders: for each modality a regular expression that matches the '/'-joined
            paths of its own parameters, those that act before fusion.
        fn: ``(params, frozen, batch, rng) -> (loss [], (strengths [M], examples [M],
            metrics))``: the workload's own loss,
            `meta_opt.losses.balancing.modality_strengths` of the batch, and the number
            of examples with each modality (float32). Strengths are not differentiated.
    """

    names: tuple[str, ...]
    encoders: tuple[str, ...]
    fn: Callable[
        [PyTree, PyTree, PyTree, jax.Array],
        tuple[jax.Array, tuple[jax.Array, jax.Array, dict[str, jax.Array]]],
    ]


class Batches(Protocol):
    """An endless iterator of batches (pytrees of [B, ...]) that can be resumed."""

    def __next__(self) -> PyTree:
        """Returns the next batch; each process gets its own ``local_rows``."""

    def get_state(self) -> Any:
        """Returns the state as a JSON value."""

    def set_state(self, state: Any) -> None:
        """Restores a state that ``get_state`` returned."""


class MakeBatches(Protocol):
    """Creates iterators over the training data, from its beginning."""

    def __call__(
        self, batch_size: int, seed: int = 0, rows: np.ndarray | None = None
    ) -> Batches:
        """Returns an iterator over batches.

        Args:
            batch_size: B, over all processes.
            seed: random seed of the order and of augmentation.
            rows: int indices of the rows of each batch that this process reads
                (`meta_opt.parallel.mesh.local_rows`); None for all.
        """


Evaluate: TypeAlias = Callable[[PyTree, PyTree, str], Mapping[str, float]]
"""``(params, frozen, split) -> metrics``; the split is ``validation`` or ``test``."""

Write: TypeAlias = Callable[[PyTree, PyTree], None]
"""``(params, frozen) -> None``; exports the trained model."""


@dataclasses.dataclass(frozen=True)
class Workload:
    """A model, split into trained and frozen parts, its loss, data and evaluation.

    Attributes:
        params: pytree of arrays, the initial values of the trained part.
        loss_fn: training loss, see `LossFn`.
        train_batches: see `MakeBatches`; for arrays in memory
            ``functools.partial(array_batches, arrays)``.
        frozen: pytree of arrays, the part of the model that is not trained.
        evaluate: evaluation, see `Evaluate`; None for a run without evaluation.
        rules: sharding rules of ``params`` and ``frozen``.
        write: exports the model, see `Write`; None for no export.
        losses: the separate losses of a model with several; ``loss_fn`` is then the
            primary one.
        meta_batches: as ``train_batches``, with data held out of training and of all
            evaluation, for meta-steps (`meta_opt.finetuning.meta_step`).
        unimodal: see `Unimodal`; None without classes, or with a single modality.
        groups: (regular expression, modality group) pairs over the paths of ``params``,
            for optimizers that take them (`meta_opt.optimizers.learned`); each must
            match a path.
        describe: facts about the data for the run's result, JSON values by name.
        name: name of the workload, for error messages.
        per_example: whether the loss of a batch is a mean of terms that each depend on
            a single example, which private runs require
            (`meta_opt.finetuning.privacy`).
        tokens: counter of the text tokens that ``train_batches``, ``meta_batches`` and
            ``evaluate`` read and write, which stays at 0 without texts; None if they
            are not counted.
        reseeded: returns the workload with a model initialised from another seed; None
            if the initialisation does not depend on a seed.

    Example:
        >>> import functools, jax.numpy as jnp
        >>> from meta_opt.data.array_batches import array_batches
        >>> data = {"x": np.ones((8, 2), np.float32), "y": np.ones(8, np.float32)}
        >>> def loss_fn(params, frozen, batch, rng):
        ...     return jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2), {}
        >>> workload = Workload(
        ...     params={"w": jnp.zeros(2)},
        ...     loss_fn=loss_fn,
        ...     train_batches=functools.partial(array_batches, data),
        ... )
        >>> float(loss_fn(workload.params, (), data, None)[0])
        1.0
    """

    params: PyTree
    loss_fn: LossFn
    train_batches: MakeBatches
    frozen: PyTree = ()
    evaluate: Evaluate | None = None
    rules: Sequence[Rule] = FSDP_RULES
    write: Write | None = None
    losses: Losses | None = None
    meta_batches: MakeBatches | None = None
    unimodal: Unimodal | None = None
    groups: tuple[tuple[str, str], ...] = ()
    describe: Callable[[], dict[str, Any]] = dict
    name: str = ""
    per_example: bool = False
    tokens: TokenCounter | None = None
    reseeded: Callable[[int], "Workload"] | None = None


class WorkloadConfig(Protocol):
    """Configuration that a workload is built from."""

    def build(
        self, seed: int = 0, mesh: Mesh | None = None, export: ExportConfig = ...
    ) -> Workload:
        """Builds the workload.

        Args:
            seed: random seed of initialised parameters.
            mesh: mesh whose shards large weights are read into; None for the default
                device.
            export: path and format of the exported model.

        Raises:
            ValueError: settings, data or weights do not fit together.
        """


class SplitModule(NamedTuple):
    """A module split into structure, trained and frozen arrays.

    Attributes:
        graphdef: structure of the module.
        params: nested dict of the trained arrays.
        frozen: nested dict of all other arrays.
    """

    graphdef: nnx.GraphDef
    params: PyTree
    frozen: PyTree

    def merge(self, params: PyTree, frozen: PyTree) -> Any:
        """Returns the module with these arrays."""
        return nnx.merge(self.graphdef, params, frozen)


def evaluate_splits(
    module: SplitModule, evaluations: Mapping[str, Callable[[Any], Mapping[str, float]]]
) -> Evaluate:
    """Combines the evaluations of the whole module on each split.

    Args:
        module: the model; only its structure is used.
        evaluations: ``model -> metrics`` by split.
    """

    def evaluate(params: PyTree, frozen: PyTree, split: str) -> Mapping[str, float]:
        return evaluations[split](module.merge(params, frozen))

    return evaluate


def split_module(module: nnx.Module, trainable: Any = nnx.Param) -> SplitModule:
    """Splits a module into trained and frozen arrays.

    Args:
        module: a concrete or abstract (`nnx.eval_shape`) module.
        trainable: an NNX filter: a variable type such as `nnx.Param` or
            `meta_opt.models.lora.LoRAParam`, or ``(path, variable) -> bool``.
    """
    graphdef, *states = nnx.split(module, trainable, ...)
    params, frozen = map(nnx.to_pure_dict, states)
    return SplitModule(graphdef, params, frozen)
