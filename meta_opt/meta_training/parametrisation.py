"""What of the controller is meta-trained: all, the LSTMs, or a few weights by name."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from meta_opt.optimizers.controller import ControllerConfig, output_index
from meta_opt.types import PyTree


@dataclasses.dataclass(frozen=True)
class Parametrisation:
    """Maps what is meta-trained to the controller's weights.

    With ``direct`` empty, all weights are trained, from ``start``, or all but the
    direct weights: LSTMs on top of a rule that is right already. Otherwise only the
    named direct weights from features to outputs are, as one vector added to
    ``start``: few enough for evolution strategies over long runs, where gradients by
    back-propagation are chaotic.

    Attributes:
        start: the controller's weights to begin from.
        config: their shape.
        direct: names for `output_index`, such as ``loss_level>step``.
        keep_direct: whether direct weights stay those of ``start``.

    Example:
        >>> from meta_opt.optimizers.controller import init_theta
        >>> config = ControllerConfig()
        >>> start = init_theta(jax.random.key(0), config)
        >>> few = Parametrisation(start, config, ("constant>step",))
        >>> few.trained().shape
        (1,)
    """

    start: PyTree
    config: ControllerConfig
    direct: Sequence[str] = ()
    keep_direct: bool = False

    def __post_init__(self) -> None:
        """Checks the names.

        Raises:
            ValueError: an unknown feature or output, a name that stands twice, or
                names of what is to be kept.
        """
        if self.direct and self.keep_direct:
            raise ValueError(f"keep_direct leaves nothing of direct={self.direct}")
        if len(set(self.direct)) < len(self.direct):
            raise ValueError(f"a name occurs twice in direct={tuple(self.direct)}")
        for name in self.direct:
            output_index(self.config, name)

    def trained(self) -> PyTree:
        """Returns the trained parameters before the first outer step."""
        return jnp.zeros(len(self.direct)) if self.direct else self.start

    def theta(self, trained: PyTree) -> PyTree:
        """The controller's weights."""
        if self.keep_direct:
            memory = self.config.tensor_hidden + self.config.global_hidden
            output, fixed = trained["output"], self.start["output"]["kernel"]
            kernel = output["kernel"].at[memory:].set(fixed[memory:])
            return {**trained, "output": {**output, "kernel": kernel}}
        if not self.direct:
            return trained
        places = [output_index(self.config, name) for name in self.direct]
        rows, columns = (jnp.array(x) for x in zip(*places, strict=True))
        output = self.start["output"]
        kernel = output["kernel"].at[rows, columns].add(trained)
        return {**self.start, "output": {**output, "kernel": kernel}}

    def pulled(self, trained: PyTree, factor: jax.Array) -> PyTree:
        """Direct or output weights pulled to where they began, by ``1 - factor``."""
        if self.direct:
            return factor * trained
        output = jax.tree.map(
            lambda new, old: old + factor * (new - old),
            trained["output"],
            self.start["output"],
        )
        return {**trained, "output": output}
