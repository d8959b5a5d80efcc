"""A run as the objective of a search for the optimizer's settings."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import optax

from meta_opt.data.pipeline import make_iterator
from meta_opt.data.records import MemorySource
from meta_opt.finetuning.data_source import Splits
from meta_opt.finetuning.loop import run
from meta_opt.finetuning.model_source import build_model, read_preprocessing
from meta_opt.finetuning.parts import Score, make_evaluate
from meta_opt.finetuning.vision_text import RunConfig, make_loss
from meta_opt.optimizers.registry import OptimizerConfig, make_optimizer
from meta_opt.parallel.sharding import VISION_TEXT_RULES
from meta_opt.types import from_config

Report = Callable[[int, float], None]
"""``report(step, validation_loss)``; may raise to end the run."""

MakeOptimizer = Callable[[OptimizerConfig], optax.GradientTransformation]


class Trial:
    """Trains the same model on the same batches under other optimizer settings.

    Attributes:
        params: pytree of arrays, the trainable part at the start.
        frozen: pytree of arrays, the rest.
    """

    def __init__(
        self,
        base: RunConfig,
        score_on: Callable[[MemorySource], Score],
        make_tx: MakeOptimizer = make_optimizer,
    ) -> None:
        """Opens model and data.

        Args:
            base: the run; its optimizer's settings are the ones not searched for.
            score_on: builds the evaluation on validation data. Test data are not read.
            make_tx: builds the optimizer.

        Raises:
            ValueError: see :func:`meta_opt.finetuning.model_source.build_model`.
        """
        self._base = base
        self._make_tx = make_tx
        reading = read_preprocessing(base.model, base.pipeline.text_length)
        self._tokenizer = reading.tokenizer
        self._pipeline = dataclasses.replace(
            base.pipeline, text_length=reading.text_length
        )
        model = build_model(base.model, reading)
        self.params, self.frozen = model.params, model.frozen
        self._loss_fn = make_loss(model, base.model.loss)
        splits = Splits(base.data, reading.fit)
        self._train = splits.train()
        self._evaluate = make_evaluate(model, score_on(splits.held_out("validation")))
        # The last evaluation is the value and not a report.
        self._loop = dataclasses.replace(base.loop, evaluate_at_start=False)

    def __call__(self, settings: Mapping[str, Any], report: Report) -> float:
        """Runs with ``settings`` of the optimizer replaced.

        Args:
            settings: fields of `OptimizerConfig`.
            report: called at every evaluation but the last.

        Returns:
            The validation loss after the last step.

        Raises:
            ValueError: if a setting is not the optimizer's.
        """
        optimizer = from_config(
            OptimizerConfig, {**dataclasses.asdict(self._base.optimizer), **settings}
        )
        losses: list[float] = []

        def evaluate(params: Any, frozen: Any) -> Mapping[str, float]:
            scores = self._evaluate(params, frozen)
            losses.append(scores["loss"])
            step = self._loop.eval_every * len(losses)
            if step < self._loop.num_steps:
                report(step, scores["loss"])
            return scores

        run(
            self._loop,
            params=self.params,
            frozen=self.frozen,
            loss_fn=self._loss_fn,
            tx=self._make_tx(optimizer),
            batches=make_iterator(self._train, self._tokenizer, self._pipeline),
            evaluate=evaluate,
            mesh=self._base.mesh,
            rules=VISION_TEXT_RULES,
        )
        return losses[-1]
