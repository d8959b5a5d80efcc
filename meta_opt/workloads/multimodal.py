"""Tasks on images, texts, audio and video: pretrained encoders, fusion and a head.

The workload of the Meta Optimizer framework (Muhajab et al.): input processing, fusion,
and a modality group for each encoder, for the optimizer's log.
"""

import dataclasses
import functools
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from meta_opt.data.array_batches import array_batches
from meta_opt.data.token_counts import TokenCounter
from meta_opt.evaluators.multimodal import multimodal_evaluation
from meta_opt.types import PyTree
from meta_opt.workloads.counted_texts import counted_texts
from meta_opt.workloads.export import ExportConfig, check_model_format
from meta_opt.workloads.modality_dropout import drop_modalities
from meta_opt.workloads.modality_groups import modality_groups
from meta_opt.workloads.multimodal_export import write_multimodal
from meta_opt.workloads.multimodal_inputs import Inputs, InputsConfig, read_inputs
from meta_opt.workloads.multimodal_model import (
    MultimodalModelConfig,
    model_factory,
    multimodal_loss,
    start_multimodal,
)
from meta_opt.workloads.readout import with_readout
from meta_opt.workloads.unimodal import modality_losses, unimodal_of
from meta_opt.workloads.workload import (
    LossFn,
    SplitModule,
    Workload,
    evaluate_splits,
)


@dataclasses.dataclass(frozen=True)
class MultimodalConfig:
    """The samples of a task and the model; each section is documented at its class.

    Attributes:
        inputs: the task, and how its samples become arrays.
        model: fusion and heads on the encoders, and which part is trained.
        modality_dropout: probability that a training example with several modalities
            loses one of them.
    """

    inputs: InputsConfig
    model: MultimodalModelConfig = dataclasses.field(
        default_factory=MultimodalModelConfig
    )
    modality_dropout: float = 0.0

    def __post_init__(self) -> None:
        """Checks the range."""
        if not 0 <= self.modality_dropout <= 1:
            raise ValueError(
                f"modality_dropout={self.modality_dropout} is a probability, 0 to 1"
            )

    def build(
        self,
        seed: int = 0,
        mesh: Mesh | None = None,
        export: ExportConfig = ExportConfig(),  # noqa: B008
    ) -> Workload:
        """Reads the samples, and initialises fusion and heads.

        Args:
            seed: random seed of initialised parameters.
            mesh: ignored; the encoders are small.
            export: path and format of the exported model.

        Raises:
            ValueError: modality dropout does not apply to the task; see also
                `read_inputs`, `model_factory` and `check_model_format`.
            MissingDataError: a dataset or encoder is not prepared.
        """
        check_model_format(export, "multimodal model")
        inputs = read_inputs(self.inputs)
        self._check_dropout(inputs)
        if self.model.readout:
            inputs = with_readout(inputs)
        # One program, compiled once for all seeds.
        create = nnx.jit(model_factory(self.model, inputs))

        def with_seed(seed: int) -> Workload:
            module = start_multimodal(create, self.model, inputs, seed)

            def write(params: PyTree, frozen: PyTree) -> None:
                trained = module.merge(params, frozen)
                write_multimodal(
                    export, trained, self.inputs, self.model, inputs.class_names
                )

            return dataclasses.replace(
                multimodal_workload(
                    module, inputs, self.inputs.task, self.modality_dropout
                ),
                write=write if export.path else None,
                reseeded=with_seed,
            )

        return with_seed(seed)

    def _check_dropout(self, inputs: Inputs) -> None:
        if not self.modality_dropout:
            return
        about = f"modality_dropout={self.modality_dropout}: task={self.inputs.task!r}"
        if self.model.readout:
            raise ValueError(
                f"modality_dropout={self.modality_dropout} and model.readout: the "
                "readout of a training example is of all its modalities; set one to 0"
            )
        if inputs.kind == "retrieve":
            raise ValueError(
                f"{about} embeds each modality separately, so none can be dropped: set "
                "it to 0"
            )
        if len(inputs.modalities) < 2:
            raise ValueError(
                f"{about} has {inputs.modalities[0]} as its only modality, which "
                "cannot be dropped: set it to 0"
            )


def multimodal_workload(
    module: SplitModule, inputs: Inputs, name: str, dropout: float = 0.0
) -> Workload:
    """Returns the workload of a model with given inputs.

    Args:
        module: model from `meta_opt.workloads.multimodal_model.build_multimodal`.
        inputs: inputs with the split ``train`` and the splits to evaluate.
        name: name of the task, for error messages.
        dropout: see `MultimodalConfig.modality_dropout`.
    """
    tokens = TokenCounter()
    evaluations = {
        s: evaluation_on(inputs, s, tokens=tokens)
        for s in inputs.splits
        if s != "train"
    }
    examples = {s: len(jax.tree.leaves(x)[0]) for s, x in inputs.splits.items()}
    return Workload(
        params=module.params,
        frozen=module.frozen,
        loss_fn=multimodal_loss_fn(module, inputs, dropout),
        losses=modality_losses(module, inputs, dropout),
        unimodal=unimodal_of(module, inputs, dropout),
        groups=modality_groups(module.params),
        train_batches=counted_texts(
            functools.partial(array_batches, inputs.splits["train"]),
            inputs.count_text_tokens,
            tokens,
        ),
        evaluate=evaluate_splits(module, evaluations),
        describe=lambda: {
            "examples": examples,
            "missing": inputs.missing,
            "skipped": inputs.skipped,
        },
        name=f"multimodal, task {name!r} ({inputs.kind}),",
        per_example=inputs.kind != "retrieve",
        tokens=tokens,
    )


def multimodal_loss_fn(
    module: SplitModule, inputs: Inputs, dropout: float = 0.0
) -> LossFn:
    """Returns `multimodal_loss` as a function of the model's arrays.

    Args:
        module: the model; only its structure is used.
        inputs: inputs, for the kind and the modalities of the task.
        dropout: see `MultimodalConfig.modality_dropout`.
    """

    def loss_fn(
        params: PyTree, frozen: PyTree, batch: dict[str, Any], rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        if dropout:
            batch = drop_modalities(batch, inputs.modalities, dropout, rng)
        loss, error = multimodal_loss(module.merge(params, frozen), batch, inputs.kind)
        return loss, {"error": error}

    return loss_fn


def evaluation_on(
    inputs: Inputs,
    split: str,
    batch_size: int = 128,
    tokens: TokenCounter | None = None,
) -> Any:
    """Returns ``model -> metrics``; captions are generated on the test split only.

    Args:
        inputs: inputs with the split.
        split: name of the split.
        batch_size: number of samples per batch.
        tokens: counter of the tokens that are read and generated.
    """
    evaluation = multimodal_evaluation(
        inputs.kind,
        inputs.modalities,
        inputs.splits[split],
        inputs.captions[split],
        inputs.tokenizer,
        batch_size,
        write=split == "test",
        tokens=tokens,
    )
    if tokens is None:
        return evaluation
    read = inputs.count_text_tokens(inputs.splits[split])

    def evaluate(model: Any) -> dict[str, float]:
        tokens.add(read=read)
        return evaluation(model)

    return evaluate
