"""Tasks on images, texts, sound and video: pretrained encoders, fusion and a head.

The Meta Optimizer framework's workload (Muhajab et al.): input processing, fusion, and
a modality group for each encoder that the optimizer logs.
"""

import dataclasses
import functools
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from meta_opt.data.array_batches import array_batches
from meta_opt.evaluators.multimodal import multimodal_evaluation
from meta_opt.types import PyTree
from meta_opt.workloads.export import ExportConfig
from meta_opt.workloads.multimodal_export import check_export, write_multimodal
from meta_opt.workloads.multimodal_inputs import Inputs, InputsConfig, read_inputs
from meta_opt.workloads.multimodal_model import (
    MultimodalModelConfig,
    model_factory,
    multimodal_loss,
    split_multimodal,
)
from meta_opt.workloads.workload import (
    LossFn,
    SplitModule,
    Workload,
    evaluate_splits,
)


@dataclasses.dataclass(frozen=True)
class MultimodalConfig:
    """A task, its samples and the model; each section is documented at its class.

    Attributes:
        inputs: the task and its samples.
        model: what is put on the encoders, and which part trains.
    """

    inputs: InputsConfig
    model: MultimodalModelConfig = dataclasses.field(
        default_factory=MultimodalModelConfig
    )

    def build(
        self,
        seed: int = 0,
        mesh: Mesh | None = None,
        export: ExportConfig = ExportConfig(),  # noqa: B008
    ) -> Workload:
        """Reads the samples, and initialises what is put on the encoders.

        Args:
            seed: of what is initialised.
            mesh: ignored; the encoders are small.
            export: where the trained model is to be written, and as what.

        Raises:
            ValueError: see `read_inputs`, `model_factory` and `check_export`.
            MissingDataError: a dataset or encoder that is not prepared.
        """
        check_export(export, self.model)
        inputs = read_inputs(self.inputs)
        # In one program, compiled once for all seeds.
        create = nnx.jit(model_factory(self.model, inputs))

        def with_seed(seed: int) -> Workload:
            model = create(jax.random.key(seed))
            module = split_multimodal(model, self.model.trainable)

            def write(params: PyTree, frozen: PyTree) -> None:
                trained = module.merge(params, frozen)
                write_multimodal(
                    export, trained, self.inputs, self.model, inputs.class_names
                )

            return dataclasses.replace(
                multimodal_workload(module, inputs, self.inputs.task),
                write=write if export.path else None,
                reseeded=with_seed,
            )

        return with_seed(seed)


def multimodal_workload(module: SplitModule, inputs: Inputs, name: str) -> Workload:
    """The workload of a model on inputs that are read.

    Args:
        module: see `meta_opt.workloads.multimodal_model.build_multimodal`.
        inputs: with the split ``train`` and those that are evaluated.
        name: of the task, for errors.
    """
    evaluations = {s: evaluation_on(inputs, s) for s in inputs.splits if s != "train"}
    examples = {s: len(jax.tree.leaves(x)[0]) for s, x in inputs.splits.items()}
    return Workload(
        params=module.params,
        frozen=module.frozen,
        loss_fn=multimodal_loss_fn(module, inputs.kind),
        train_batches=functools.partial(array_batches, inputs.splits["train"]),
        evaluate=evaluate_splits(module, evaluations),
        describe=lambda: {
            "examples": examples,
            "missing": inputs.missing,
            "skipped": inputs.skipped,
        },
        name=f"multimodal, task {name!r} ({inputs.kind}),",
        per_example=inputs.kind != "retrieve",
    )


def multimodal_loss_fn(module: SplitModule, kind: str) -> LossFn:
    """`multimodal_loss` as a function of the model's arrays.

    Args:
        module: its structure is used, its arrays are not.
        kind: of the task, one of `meta_opt.data.samples.KINDS`.
    """

    def loss_fn(
        params: PyTree, frozen: PyTree, batch: dict[str, Any], rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        loss, error = multimodal_loss(module.merge(params, frozen), batch, kind)
        return loss, {"error": error}

    return loss_fn


def evaluation_on(inputs: Inputs, split: str, batch_size: int = 128) -> Any:
    """``model -> metrics`` on a split; captions of the test split are generated too."""
    return multimodal_evaluation(
        inputs.kind,
        inputs.modalities,
        inputs.splits[split],
        inputs.captions[split],
        inputs.tokenizer,
        batch_size,
        write=split == "test",
    )
