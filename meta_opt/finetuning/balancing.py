"""Balancing of modalities or losses that train at unequal speed.

A run uses one method: OGM-GE scales the gradients of a multimodal classifier's
encoders; equal weights, GradNorm, PCGrad and uncertainty weighting combine several
losses. Equal weights are often competitive (arXiv:2505.10347).
"""

import dataclasses
import re

import jax
import jax.numpy as jnp

from meta_opt.finetuning.objective import Gradients, Objective, make_objective
from meta_opt.finetuning.privacy import PrivacyConfig
from meta_opt.losses.balancing import ogm_factors, ogm_ge
from meta_opt.meta_loss.settings import MetaLossConfig
from meta_opt.tree_paths import path_name
from meta_opt.types import PyTree, check_name
from meta_opt.workloads.workload import Unimodal, Workload

OF_LOSSES = ("equal", "gradnorm", "pcgrad", "uncertainty")
"""Methods that combine several losses; see `meta_opt.meta_loss.settings`."""

METHODS = ("none", "ogm_ge", *OF_LOSSES)


@dataclasses.dataclass(frozen=True)
class BalancingConfig:
    """How modalities or losses are balanced.

    Attributes:
        method: one of `METHODS`.
        alpha: how strongly ``ogm_ge`` attenuates the gradient of a stronger modality;
            0.1 to 0.8 in the paper.
        noise: whether ``ogm_ge`` adds noise that restores the variance of the
            attenuated gradients (generalisation enhancement); False is OGM.
        learning_rate: Adam's learning rate for the parameters of ``gradnorm`` and
            ``uncertainty``.
    """

    method: str = "none"
    alpha: float = 0.5
    noise: bool = True
    learning_rate: float = 2.5e-2

    def __post_init__(self) -> None:
        """Checks the name and the ranges."""
        check_name("balancing.method", self.method, METHODS)
        for name in ("alpha", "learning_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(
                    f"balancing.{name}={getattr(self, name)} must be positive and "
                    "finite"
                )


def check_balancing(
    balancing: BalancingConfig | None,
    meta_loss: MetaLossConfig | None,
    privacy: PrivacyConfig | None,
) -> None:
    """Raises ValueError if other settings determine the gradient too."""
    if balancing is None or balancing.method == "none":
        return
    about = f"balancing.method={balancing.method!r}"
    if meta_loss is not None and meta_loss.combiner != "primary":
        raise ValueError(
            f"{about} and meta_loss.combiner={meta_loss.combiner!r} both determine the "
            "gradient of a step: set meta_loss.combiner='primary', or "
            "balancing.method='none'"
        )
    if privacy is not None:
        raise ValueError(
            f"{about} scales gradients by statistics of a batch without noise, which a "
            "private run must not use: set balancing.method='none'"
        )


def balanced_objective(
    workload: Workload,
    meta_loss: MetaLossConfig | None = None,
    balancing: BalancingConfig | None = None,
) -> Objective:
    """Returns the objective of a run.

    Args:
        workload: workload whose modalities or losses are balanced.
        meta_loss: how losses are combined without balancing; None for the workload's
            own loss.
        balancing: the balancing method; None for no balancing.

    Raises:
        ValueError: the method does not apply to the workload, or ``meta_loss`` combines
            the losses too; see also `make_objective`.
    """
    check_balancing(balancing, meta_loss, None)
    if balancing is None or balancing.method == "none":
        return make_objective(workload, meta_loss)
    about = f"balancing.method={balancing.method!r}"
    name = workload.name or "this workload"
    if balancing.method == "ogm_ge":
        if workload.unimodal is None:
            raise ValueError(
                f"{about} needs a classification from at least two modalities, which "
                f"{name} is not: set balancing.method='none'"
            )
        return _ogm_ge(workload.unimodal, balancing)
    if workload.losses is None or len(workload.losses.names) < 2:
        other = " or 'ogm_ge'" if workload.unimodal is not None else ""
        raise ValueError(
            f"{about} balances several losses, and {name} has one: set "
            f"balancing.method='none'{other}"
        )
    rate = balancing.learning_rate
    return make_objective(
        workload, MetaLossConfig(balancing.method, learning_rate=rate)
    )


def _ogm_ge(unimodal: Unimodal, config: BalancingConfig) -> Objective:
    """Returns the workload's loss, with encoder gradients scaled by OGM's factors.

    A modality's strength is a mean over the examples that have it; if all examples have
    all modalities, the ratios equal those of the paper's sums. Strengths are means over
    the whole batch, not a micro-batch. The objective has no state.
    """
    grad_fn = jax.value_and_grad(unimodal.fn, has_aux=True)

    def gradient(
        objective: PyTree, params: PyTree, frozen: PyTree, batch: PyTree, rng: jax.Array
    ) -> Gradients:
        (loss, found), grads = grad_fn(params, frozen, batch, rng)
        strengths, examples, metrics = found
        signals = {"strengths": strengths, "examples": examples}
        return Gradients(loss, metrics, signals, grads)

    def modulate(
        grads: PyTree, signals: PyTree, key: jax.Array
    ) -> tuple[PyTree, dict[str, jax.Array]]:
        there = signals["examples"] > 0
        means = signals["strengths"] / jnp.where(there, signals["examples"], 1)
        factors = ogm_factors(means, config.alpha, there)
        paths, treedef = jax.tree_util.tree_flatten_with_path(grads)
        names = [path_name(path) for path, _ in paths]
        leaves = [leaf for _, leaf in paths]
        metrics = {}
        for m, (modality, pattern) in enumerate(
            zip(unimodal.names, unimodal.encoders, strict=True)
        ):
            own = [i for i, name in enumerate(names) if re.search(pattern, name)]
            of_modality = jax.random.fold_in(key, m)
            scaled = ogm_ge(
                [leaves[i] for i in own], factors[m], of_modality, config.noise
            )
            for i, leaf in zip(own, scaled, strict=True):
                leaves[i] = leaf
            metrics[f"strength/{modality}"] = means[m]
            metrics[f"gradient_factor/{modality}"] = factors[m]
        return jax.tree.unflatten(treedef, leaves), metrics

    return Objective(
        lambda key: (), gradient, lambda state, signals: state, modulate=modulate
    )
