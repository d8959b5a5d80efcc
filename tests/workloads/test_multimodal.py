"""Runs of the framework: samples, what does not train, losses, and whole runs."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from multimodal_toy import (
    COLOURS,
    ENCODERS,
    MODEL,
    colour_samples,
    inputs_config,
)

import meta_opt
from configs import multimodal as multimodal_configs
from meta_opt.data.array_batches import array_batches
from meta_opt.data.missing import MissingDataError
from meta_opt.data.samples import KINDS, MultimodalTask, Samples
from meta_opt.data.sources import multimodal
from meta_opt.data.sources.multimodal import read_task
from meta_opt.data.token_counts import TokenCounter
from meta_opt.finetuning.loop_config import LoopConfig
from meta_opt.finetuning.run_config import RunConfig
from meta_opt.finetuning.runs import finetune
from meta_opt.models.encoders import Divisible
from meta_opt.models.lora import LoRAConfig
from meta_opt.models.towers import STACKED
from meta_opt.optimizers.decisions import read_decisions
from meta_opt.optimizers.registry import OptimizerConfig
from meta_opt.reporting.decisions import plot_decisions
from meta_opt.tree_paths import leaves_by_path
from meta_opt.workloads import multimodal as multimodal_workload
from meta_opt.workloads.export import ExportConfig
from meta_opt.workloads.lower_features import pooled
from meta_opt.workloads.multimodal import MultimodalConfig, evaluation_on
from meta_opt.workloads.multimodal_export import read_multimodal, read_settings
from meta_opt.workloads.multimodal_inputs import InputsConfig, read_inputs
from meta_opt.workloads.multimodal_model import (
    ADAPTED,
    build_multimodal,
    multimodal_loss,
)


def run_config(root, kind="classify", steps=24, name="adamw", **changes):
    settings = {"learning_rate": 3e-3} if name == "adamw" else {}
    return RunConfig(
        MultimodalConfig(
            inputs_config(root, kind, **changes.pop("inputs", {})),
            dataclasses.replace(MODEL, **changes),
        ),
        loop=LoopConfig(
            steps, 12, eval_every=8, log_every=4, checkpoint_every=8, progress=False
        ),
        optimizer=OptimizerConfig(name, num_steps=steps, stacked=STACKED, **settings),
    )


# Samples


def test_what_is_missing_is_marked_and_counted(root):
    present = colour_samples("train", 16, "classify").present()
    assert np.flatnonzero(~present["audio"]).tolist() == [1, 4]
    assert np.flatnonzero(~present["text"]).tolist() == [2]
    assert present["image"].all()
    inputs = read_inputs(inputs_config(root))
    assert inputs.missing["validation"] == {"image": 0, "text": 1, "audio": 2}
    assert not inputs.splits["train"]["audio_present"][4]


def test_a_users_file_is_a_task(root, tmp_path):
    file = tmp_path / "own.jsonl"
    lines = [
        {"text": f"a {colour}", "label": colour, "split": split}
        for split in ("train", "validation", "test")
        for colour in COLOURS
    ]
    lines.append({**lines[0], "audio": "none.wav"})
    file.write_text("\n".join(map(json.dumps, lines)))
    config = dataclasses.replace(inputs_config(root), task=str(file))
    inputs = read_inputs(config)
    assert (inputs.kind, inputs.modalities) == ("classify", ("text", "audio"))
    assert inputs.class_names == tuple(sorted(COLOURS))
    assert inputs.skipped == {"train": 1, "validation": 0, "test": 0}
    assert inputs.missing["train"] == {"text": 0, "audio": 3}
    assert inputs.encoders.keys() == {"text", "audio"}


def test_fewer_samples_keep_their_parts_together():
    samples = colour_samples("train", 8, "classify")
    few = samples.at_most(10)
    assert len(few) == 10 and few.class_names == COLOURS
    for label, text, image in zip(few.label, few.text, few.image, strict=True):
        assert text in (" ", f"a {COLOURS[label]}")
        assert int(np.argmax(image.mean(axis=(0, 1)))) == label
    assert samples.at_most(0) is samples and samples.at_most(48) is samples


def test_errors_of_tasks(monkeypatch):
    with pytest.raises(ValueError, match="did you mean 'tuxpaint_trimodal'"):
        read_task("tuxpaint_trimodel", "train")
    with pytest.raises(ValueError, match="no split 'dev'"):
        read_task("tuxpaint_speech", "dev")

    with pytest.raises(ValueError, match=r"inputs\.max_examples=-1 must be at least 0"):
        InputsConfig("tuxpaint_trimodal", max_examples=-1)

    def lacking(split, data_dir, side):
        return Samples(text=["a"], label=np.zeros(1, np.int32), class_names=("x", "y"))

    task = MultimodalTask("classify", ("text",), "toy", lacking)
    monkeypatch.setitem(multimodal.TASKS, "lacking", task)
    with pytest.raises(ValueError, match="lacking: nothing to train on in the class y"):
        read_task("lacking", "train")
    assert len(read_task("lacking", "test")) == 1


# What does not train


@pytest.mark.parametrize("modality", ENCODERS)
def test_halves_are_the_whole(modality):
    encoder = nnx.jit(ENCODERS[modality])()
    assert isinstance(encoder, Divisible)
    rng = np.random.default_rng(0)
    inputs = {
        "text": np.array([[1, 2, 0, 0], [3, 4, 5, 6]]),
        "image": rng.integers(0, 256, (2, 16, 16, 3), np.uint8),
        "audio": rng.normal(size=(2, 20, 80)).astype(np.float32),
    }[modality]
    whole, real = jax.jit(encoder.tokens)(inputs)
    for trained in (1, 2):
        lower, upper = encoder.halves(trained)
        found, found_real = jax.jit(lambda x, lo=lower, up=upper: up.tokens(lo(x)))(
            inputs
        )
        np.testing.assert_allclose(found, whole, atol=1e-5)
        np.testing.assert_array_equal(found_real, real)
    for wrong in (0, 4):
        with pytest.raises(ValueError, match=f"can train, not {wrong}"):
            encoder.halves(wrong)


def test_features_out_of_a_file_are_those_that_were_computed(root, tmp_path):
    plain = read_inputs(inputs_config(root, pool_size={"audio": 5}))
    config = inputs_config(
        root, pool_size={"audio": 5}, feature_cache_dir=str(tmp_path)
    )
    written, read = read_inputs(config), read_inputs(config)
    assert len(list(tmp_path.glob("toy_classify-*-*.npz"))) == 9
    for inputs in (written, read):
        jax.tree.map(np.testing.assert_array_equal, inputs.splits, plain.splits)
    x, real = plain.splits["train"]["audio"]
    assert x.shape == (48, 2, 12) and real.all()
    with pytest.raises(ValueError, match="cannot be averaged by 3"):
        read_inputs(inputs_config(root, pool_size={"audio": 3}))


def test_pooling_heeds_what_is_real():
    x = np.arange(8.0, dtype=np.float32).reshape(1, 4, 2)
    real = np.array([[True, False, False, False]])
    found, there = pooled((x, real), 2)
    np.testing.assert_array_equal(found[0, 0], x[0, 0])
    np.testing.assert_array_equal(there, [[True, False]])
    assert found.dtype == np.float32


def test_batches_have_an_order_that_resumes():
    arrays = {"x": np.arange(10), "pair": (np.arange(10.0), np.arange(10) % 2)}
    batches = array_batches(arrays, 3, seed=1)
    first = [next(batches) for _ in range(4)]
    state = batches.get_state()
    rest = [next(batches)["x"] for _ in range(3)]
    again = array_batches(arrays, 3, seed=1)
    again.set_state(state)
    np.testing.assert_array_equal([next(again)["x"] for _ in range(3)], rest)
    seen = np.concatenate([b["x"] for b in first[:3]])
    assert len(set(seen.tolist())) == 9
    for batch in first:
        np.testing.assert_array_equal(batch["pair"][0], batch["x"])
    half = array_batches(arrays, 4, seed=1, rows=np.array([2, 3]))
    whole = array_batches(arrays, 4, seed=1)
    np.testing.assert_array_equal(next(half)["x"], next(whole)["x"][2:])
    with pytest.raises(ValueError, match="a batch of 11 needs"):
        array_batches(arrays, 11)


# Whole runs


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_task_is_learned(root, kind):
    config = run_config(root, kind, steps=32)
    finished = finetune(config)
    losses = [
        r["validation/loss"] for r in finished.result.history if "validation/loss" in r
    ]
    assert losses[-1] < 0.8 * losses[0], losses
    chance = {"classify": 1 / 3, "score": 1 / 3, "retrieve": 1 / 24, "caption": 0.3}
    assert finished.test["accuracy"] > 1.5 * chance[kind]
    if kind == "caption":
        assert {"bleu", "chrf", "exact_match"} <= finished.test.keys()
    if kind == "score":
        assert finished.test["correlation"] > 0.5


@pytest.mark.parametrize(
    "kind",
    [
        "caption",
        *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS[:-1]),
    ],
)
def test_loss_of_training_is_that_of_the_evaluation(root, kind):
    inputs = read_inputs(inputs_config(root, kind))
    parts = build_multimodal(MODEL, inputs)
    model = parts.merge(parts.params, parts.frozen)
    found = evaluation_on(inputs, "validation", batch_size=7)(model)
    loss, error = nnx.jit(lambda m, b: multimodal_loss(m, b, kind))(
        model, inputs.splits["validation"]
    )
    np.testing.assert_allclose(found["loss"], loss, rtol=1e-4)
    # Of pairs the evaluation counts equal texts as right, both ways.
    if kind != "retrieve":
        np.testing.assert_allclose(found["accuracy"], 1 - error, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [{}, {"trainable_layers": {}}, {"pool_size": {"text": 2}}],
    ids=["features", "ids", "pooled"],
)
def test_tokens_of_texts_are_counted(root, changes):
    inputs = read_inputs(inputs_config(root, **changes))
    # "a red" and so on; one of 48 samples has no text.
    assert inputs.count_text_tokens(inputs.splits["train"]) == 47 * 2
    workload = multimodal_workload.multimodal_workload(
        build_multimodal(MODEL, inputs), inputs, "toy"
    )
    batches = workload.train_batches(24)
    next(batches), next(batches)
    assert workload.tokens == TokenCounter(read=47 * 2)


def test_tokens_of_written_captions_are_counted(root):
    workload = run_config(root, "caption").workload.build()
    workload.evaluate(workload.params, workload.frozen, "validation")
    # Captions of one word: the tokens of this package's vocabulary, and an end.
    inputs = read_inputs(inputs_config(root, "caption"))
    read = np.count_nonzero(inputs.splits["validation"]["caption"])
    assert workload.tokens == TokenCounter(read=read)
    workload.evaluate(workload.params, workload.frozen, "test")
    # As many captions of at most six tokens as there are samples.
    assert 24 <= workload.tokens.written <= 24 * 6


def test_with_adapters_encoders_stay_as_they_are(root):
    config = run_config(root, trainable="lora", steps=4)
    inputs = read_inputs(config.workload.inputs)
    parts = build_multimodal(config.workload.model, inputs)
    names = leaves_by_path(parts.params)
    of_encoders = {name for name in names if name.startswith("encoders/")}
    assert of_encoders and all("lora_" in name for name in of_encoders)
    assert any(name.startswith("fusion/") for name in names)
    # Pictures have no transformer: their adapters are on what acts on every pixel.
    for modality in config.workload.inputs.encoders:
        assert any(name.startswith(f"encoders/{modality}/") for name in of_encoders)
    assert multimodal_configs.task("clipart_captions").model.lora.pattern == ADAPTED
    with pytest.raises(ValueError, match="matches no kernel"):
        build_multimodal(
            dataclasses.replace(config.workload.model, lora=LoRAConfig("^nothing$")),
            inputs,
        )


def test_a_whole_encoder_trains_from_the_inputs_themselves(root):
    inputs = read_inputs(inputs_config(root, trainable_layers={}))
    assert inputs.splits["train"]["image"].shape == (48, 16, 16, 3)
    parts = build_multimodal(MODEL, inputs)
    names = leaves_by_path(parts.params)
    assert "encoders/text/embedding" in names


@pytest.mark.slow
def test_a_run_resumes_and_says_what_the_controller_decided(root, tmp_path):
    # The rule under the controller decides in the same form, and compiles sooner.
    config = run_config(root, name="hand_designed", steps=16)
    whole = finetune(config, tmp_path / "whole")

    def breaking(inputs, split, **settings):
        score, count = evaluation_on(inputs, split, **settings), iter(range(3))

        def evaluate(model):
            # At the start and at step 8, which is kept; then it breaks.
            if next(count) == 2:
                raise RuntimeError("no more")
            return score(model)

        return evaluate

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="no"):
        patch.setattr(multimodal_workload, "evaluation_on", breaking)
        finetune(config, tmp_path / "broken")
    finetune(config, tmp_path / "broken")
    one, two = (
        (tmp_path / folder / "metrics.jsonl").read_text()
        for folder in ("whole", "broken")
    )
    assert one == two
    names = {key for record in whole.result.history for key in record}
    assert {"train/loss", "optimizer/text/step", "optimizer/fusion/adam"} <= names
    decided = [k for r in whole.result.history for k in r if k.startswith("optimizer/")]
    assert {k.split("/")[1] for k in decided} >= {"vision", "text", "audio", "head"}
    result = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert result["missing"]["test"]["audio"] == 2
    assert result["validation"]["validation/accuracy"] >= 0
    assert plot_decisions(tmp_path / "decisions.png", whole.result.history)


def test_a_trained_model_is_written_and_read(root, tmp_path):
    config = dataclasses.replace(
        run_config(root, steps=4, trainable="lora"),
        export=ExportConfig(str(tmp_path / "tuned")),
    )
    finished = finetune(config)
    inputs, _, about = read_settings(tmp_path / "tuned")
    assert about["class_names"] == list(COLOURS)
    read = read_inputs(inputs)
    found = evaluation_on(read, "test")(read_multimodal(tmp_path / "tuned", read))
    # Adapters were folded in, which sums in another order.
    assert found["loss"] == pytest.approx(finished.test["loss"], rel=1e-4)
    other = dataclasses.replace(config, export=ExportConfig("out", "peft"))
    with pytest.raises(ValueError, match=r"'peft' is for vision-text models"):
        finetune(other)
    file = tmp_path / "tuned.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"tuned\.safetensors is damaged: its SHA"):
        read_multimodal(tmp_path / "tuned", read)


def test_decisions_are_drawn_where_there_are_any(tmp_path):
    state = meta_opt.hand_designed(10).init({"text": {"kernel": np.ones((4, 4))}})
    decided = {f"optimizer/{k}": v for k, v in read_decisions(state).items()}
    history = [{"step": step, **decided} for step in (1, 2, 3)]
    assert plot_decisions(tmp_path / "decisions.png", history)
    assert (tmp_path / "decisions.png").stat().st_size > 10_000
    baseline = [{"step": 1, "train/loss": 1.0}]
    assert not plot_decisions(tmp_path / "none.png", baseline)
    assert not (tmp_path / "none.png").exists()


def test_errors_of_runs(root, tmp_path):
    config = run_config(root)
    with pytest.raises(ValueError, match=r"loop.num_steps=24 and optimizer.num_steps"):
        dataclasses.replace(config, optimizer=OptimizerConfig("adamw", num_steps=23))
    with pytest.raises(ValueError, match="did you mean 'image'"):
        inputs_config(root, trainable_layers={"imgae": 1})
    with pytest.raises(MissingDataError, match="--only encoders"):
        read_inputs(dataclasses.replace(config.workload.inputs, data_dir=str(tmp_path)))
    with pytest.raises(ValueError, match="is damaged: its SHA-256 is"):
        damage(tmp_path, root)
        read_inputs(dataclasses.replace(config.workload.inputs, data_dir=str(tmp_path)))


def damage(root, source):
    shutil.copytree(source / "encoders", root / "encoders")
    file = root / "encoders" / "toy_image" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
