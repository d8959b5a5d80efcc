"""Which of the controller's weights are meta-trained: all, the LSTMs, or a few."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from meta_opt.optimizers.controller import ControllerConfig, output_index
from meta_opt.types import PyTree, check_distinct


@dataclasses.dataclass(frozen=True)
class Parametrisation:
    """Maps the meta-trained parameters to the controller's weights.

    If ``direct`` is empty, all weights are trained, starting from ``start``; with
    ``keep_direct`` all but the direct weights, which trains the LSTMs on top of a rule
    that works already. Otherwise only the named direct weights from features to outputs
    are trained, as one vector that is added to ``start``. These are few enough for
    evolution strategies over long runs, where back-propagated gradients are chaotic.

    Attributes:
        start: initial weights of the controller.
        config: architecture of the controller.
        direct: names for `output_index`, such as ``loss_level>step``.
        keep_direct: whether the direct weights are frozen at those of ``start``.

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
            ValueError: an unknown feature or output, a repeated name, or names in
                ``direct`` together with ``keep_direct``.
        """
        if self.direct and self.keep_direct:
            raise ValueError(
                f"keep_direct freezes the direct weights, so that none of "
                f"direct={self.direct} can be trained: set one of the two"
            )
        check_distinct("direct", self.direct)
        for name in self.direct:
            output_index(self.config, name)

    def trained(self) -> PyTree:
        """Returns the initial values of the meta-trained parameters."""
        return jnp.zeros(len(self.direct)) if self.direct else self.start

    def theta(self, trained: PyTree) -> PyTree:
        """Returns the controller's weights for given meta-trained parameters."""
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
        """Decays direct or output weights towards their initial values.

        Their distance to the initial values is multiplied by ``factor``.
        """
        if self.direct:
            return factor * trained
        output = jax.tree.map(
            lambda new, old: old + factor * (new - old),
            trained["output"],
            self.start["output"],
        )
        return {**trained, "output": output}
