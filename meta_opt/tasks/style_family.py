"""A task family in one style of model code, initialisation and adaptation."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import optax

from meta_opt.tasks import sources
from meta_opt.tasks.adaptation import frozen_features, pretrain
from meta_opt.tasks.splits import (
    NumpyArrays,
    Parts,
    count_classes,
    some_classes,
    split_examples,
)
from meta_opt.tasks.style_models import Goal, LowRank, StyledModel, adapt, build_model
from meta_opt.tasks.style_nets import Body
from meta_opt.tasks.styles import Style
from meta_opt.tasks.task import Task
from meta_opt.types import PyTree

DATA: dict[str, Callable[[str | None], NumpyArrays | Parts]] = {
    "wine": lambda _: sources.wine(),
    "diabetes": lambda _: sources.diabetes(),
    "cancer": lambda _: sources.cancer(),
    "friedman": lambda _: sources.friedman(),
    "digits": lambda _: sources.digits(),
    "photos_pixels": lambda _: sources.photo_pixels(),
    "photos_patches": lambda _: sources.photo_patches(),
    "descriptions": lambda _: sources.descriptions(),
    "glyphs": lambda _: sources.glyphs(),
    "glyphs_first": lambda _: some_classes(sources.glyphs(), range(0, 36)),
    "glyphs_rest": lambda _: some_classes(sources.glyphs(), range(36, 62)),
    "cldr": lambda _: sources.cldr(),
    "cldr_first": lambda _: some_classes(sources.cldr(), range(0, 30)),
    "cldr_rest": lambda _: some_classes(sources.cldr(), range(30, 61)),
    "emoji_google": lambda folder: sources.emoji("google", folder),
    "emoji_twitter": lambda folder: sources.emoji("twitter", folder),
    "emoji_openmoji": lambda folder: sources.emoji("openmoji", folder),
    "emoji_fluent": lambda folder: sources.emoji("fluent", folder),
    "klettres": lambda folder: sources.klettres(folder),
    "klettres_first": lambda folder: some_classes(
        sources.klettres(folder), range(0, 8)
    ),
    "klettres_rest": lambda folder: some_classes(
        sources.klettres(folder), range(8, 18)
    ),
}
"""Functions that load examples; the data set is the name up to the first ``_``."""

_OPTIMIZERS: dict[str, Callable[[optax.Schedule], optax.GradientTransformation]] = {
    "adamw": lambda rate: optax.adamw(rate, weight_decay=0.05),
    "adamw_heavy_decay": lambda rate: optax.adamw(rate, weight_decay=2.0),
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True),
    "lion": lambda rate: optax.lion(rate, weight_decay=0.1),
}
_RATES = {"adamw": 2e-3, "adamw_heavy_decay": 2e-3, "momentum": 0.05, "lion": 3e-4}


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """Pre-training of a model, and the parameters that are trained afterwards.

    Attributes:
        data: pre-training data, a key of `DATA`.
        optimizer: pre-training optimizer: ``adamw``, ``adamw_heavy_decay``,
            ``momentum`` or ``lion``.
        steps: number of pre-training steps.
        trained: pattern of the paths of trained leaves; the default matches all.
        new_head: whether the head is re-initialised.
        low_rank: LoRA factors for leaves that ``trained`` does not match.
        frozen: whether only a linear head is trained, on precomputed features.
    """

    data: str
    optimizer: str = "adamw"
    steps: int = 300
    trained: str = ""
    new_head: bool = True
    low_rank: LowRank | None = None
    frozen: bool = False


_CLASSIFY = Goal()


@dataclasses.dataclass(frozen=True)
class StyleFamily:
    """A task family in one style.

    Attributes:
        data: data of the task, a key of `DATA`.
        body: architecture of the encoder.
        style: conventions of the model code and its initialisation.
        goal: loss and data augmentation.
        second: architecture of the encoder of a second input, if any.
        outputs: output size of the head; 0 for the number of classes.
        adaptation: adaptation of a pre-trained model; None to train from scratch.
        train: maximum number of training examples.
        held_out: number of test examples; there are half as many validation examples.
        batch: B, batch size.
        horizons: smallest and largest number of inner steps.
        value: whether the loss is passed to the optimizer.
        feedback_every: steps between values of ``feedback``; 0 for none.
    """

    data: str
    body: Body
    style: Style
    goal: Goal = _CLASSIFY
    second: Body | None = None
    outputs: int = 0
    adaptation: Adaptation | None = None
    train: int = 100_000
    held_out: int = 300
    batch: int = 32
    horizons: tuple[int, int] = (30, 300)
    value: bool = True
    feedback_every: int = 0

    def __call__(self, data_dir: str | None) -> Task:
        """Builds the task; `make_task` sets its name.

        Raises:
            MissingDataError: data that are not prepared.
        """
        arrays = DATA[self.data](data_dir)
        model, arrays = _adapted_model(self, arrays, data_dir)
        dataset = self.data.split("_")[0]
        return Task(
            name=dataset,
            dataset=dataset,
            init=model.init,
            loss=model.loss,
            train_loss=model.train_loss,
            splits=split_examples(arrays, self.train, self.held_out),
            batch_size=self.batch,
            provides_loss=self.value,
            feedback_every=self.feedback_every,
            horizons=self.horizons,
        )


def _train_split(arrays: NumpyArrays | Parts) -> NumpyArrays:
    return arrays if isinstance(arrays, dict) else arrays[0]


def _from_scratch(
    family: StyleFamily, arrays: NumpyArrays | Parts, goal: Goal
) -> StyledModel:
    """Returns a model for these arrays, without pre-training."""
    classes = goal.kind in ("classify", "sigmoid") and not family.outputs
    outputs = count_classes(arrays) if classes else family.outputs
    return build_model(
        family.style, family.body, goal, outputs, _train_split(arrays), family.second
    )


def _adapted_model(
    family: StyleFamily, arrays: NumpyArrays | Parts, data_dir: str | None
) -> tuple[StyledModel, NumpyArrays | Parts]:
    """Returns the (adapted) model of a family, and the data it is trained on."""
    how = family.adaptation
    model = _from_scratch(family, arrays, family.goal)
    if how is None:
        return model, arrays
    # Drop settings that do not affect pre-training, so that families share a start.
    base = dataclasses.replace(
        StyleFamily(family.data, family.body, family.style),
        goal=Goal(family.goal.kind, family.goal.target, family.goal.fusion),
        second=family.second,
        outputs=family.outputs,
    )
    start = _pretrained_params(base, how.data, how.optimizer, how.steps, data_dir)
    if how.frozen:
        before = _from_scratch(base, DATA[how.data](data_dir), base.goal)

        def features(part: NumpyArrays) -> NumpyArrays:
            return frozen_features(before, start, part)

        if isinstance(arrays, dict):
            arrays = features(arrays)
        else:
            a, b, c = (features(part) for part in arrays)
            arrays = (a, b, c)
        linear = dataclasses.replace(family, body=Body("identity", "feature"))
        return _from_scratch(linear, arrays, family.goal), arrays
    renewed = f"^{family.style.parts[1]}" if how.new_head else "^$"
    adapted = adapt(model, start, family.style, how.trained, renewed, how.low_rank)
    return adapted, arrays


@functools.cache
def _pretrained_params(
    family: StyleFamily, data: str, optimizer: str, steps: int, data_dir: str | None
) -> PyTree:
    """Returns pre-trained parameters, computed once for each set of arguments."""
    arrays = DATA[data](data_dir)
    model = _from_scratch(family, arrays, family.goal)
    compiled = model._replace(init=jax.jit(model.init))
    return pretrain(
        compiled, _train_split(arrays), steps, _RATES[optimizer], _OPTIMIZERS[optimizer]
    )
