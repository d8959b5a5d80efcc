"""Video-text models with several losses: clips, questions, losses, metrics and runs."""

import dataclasses
import functools
import signal
from collections import Counter
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from finetuning_toy import SignallingBatches
from flax import nnx
from video_text_toy import (
    MODEL,
    clips_config,
    toy_clips,
    workload_config,
)

from configs import meltr
from meta_opt.data.sources import clips as clip_sources
from meta_opt.data.sources.clip_questions import (
    KINDS,
    answer_ids,
    answer_vocabulary,
    ask_questions,
    count_changes,
)
from meta_opt.data.sources.clips import fit_frames, hold_out, read_clips
from meta_opt.evaluators.video_text import (
    captioning_evaluation,
    question_evaluation,
    retrieval_evaluation,
    sentiment_evaluation,
)
from meta_opt.finetuning.loop_config import LoopConfig
from meta_opt.finetuning.run_config import read_run_config
from meta_opt.finetuning.runs import run
from meta_opt.interruption import Interrupted
from meta_opt.meta_loss.combiner import CombinerConfig
from meta_opt.meta_loss.settings import PUBLISHED
from meta_opt.models.fusion import Tokens
from meta_opt.tree_paths import leaves_by_path
from meta_opt.workloads.export import ExportConfig
from meta_opt.workloads.frame_targets import make_codebook
from meta_opt.workloads.video_text import VideoTextConfig, count_text_tokens
from meta_opt.workloads.video_text_data import read_clip_inputs
from meta_opt.workloads.video_text_losses import (
    FAMILIES,
    LOSSES,
    TASKS,
    losses_of,
)
from meta_opt.workloads.video_text_model import (
    model_factory,
    split_video_text,
)
from meta_opt.workloads.video_text_outputs import MaskingConfig, Masks, Outputs

MASKED = {"masked_language", "masked_frame", "masked_joint", "masked_align"}
MASKED |= {"masked_decoder", "masked_text", "masked_visual"}
# All losses are in one of these.
WIDEST = [
    ("univl", "sentiment"),
    ("violet", "question_answering"),
    ("all_in_one", "retrieval"),
]
CAN = [(family, task) for family, x in FAMILIES.items() for task in x.primary]


def quick(pairs, at_once):
    """Marks as slow what is not in ``at_once``."""
    slow = pytest.mark.slow
    return [pytest.param(*p, marks=() if p in at_once else slow) for p in pairs]


@pytest.fixture(scope="module")
def built(clips_root):
    """Workloads by family and task."""
    return functools.cache(
        lambda family, task: workload_config(clips_root, family, task).build()
    )


@pytest.fixture(scope="module")
def computed(built):
    """Jitted ``(batch, key) -> losses`` by family and task."""

    @functools.cache
    def compute(family, task):
        workload = built(family, task)
        fn = jax.jit(workload.losses.fn)
        return lambda batch, key: np.asarray(
            fn(workload.params, workload.frozen, batch, jax.random.key(key))[0]
        )

    return compute


def first_batch(workload, size=24):
    return next(workload.train_batches(size, 0))


# Clips


def test_meta_validation_is_apart_from_all_other_splits(clips_root):
    inputs = read_clip_inputs(clips_config(clips_root), "retrieval")
    keys = {split: set(clips.key) for split, clips in inputs.clips.items()}
    assert keys.keys() == {"train", "meta_validation", "validation", "test"}
    assert sum(map(len, keys.values())) == len(set.union(*keys.values())) == 96
    training = set(toy_clips("train", None, 8).key)
    assert keys["train"] | keys["meta_validation"] == training
    assert 5 < len(keys["meta_validation"]) < 24
    # A larger share takes more of them and gives none back.
    _, more = hold_out(toy_clips("train", None, 8), 0.5)
    assert keys["meta_validation"] < set(more.key)


def test_clips_are_thinned_or_filled_up(clips_root):
    clips = [np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1) for n in (2, 4, 9)]
    fitted, present = fit_frames(clips, 4)
    assert fitted[:, :, 0, 0, 0].tolist() == [[0, 1, 0, 0], [0, 1, 2, 3], [0, 2, 4, 6]]
    assert present.sum(axis=1).tolist() == [2, 4, 4]
    inputs = read_clip_inputs(clips_config(clips_root), "retrieval")
    three = {s: sum(len(v) == 3 for v in x.video) for s, x in inputs.clips.items()}
    assert inputs.short == three and three["validation"] == 4
    for split, arrays in inputs.splits.items():
        assert np.sum(~arrays["present"]) == three[split]


def test_the_vocabulary_is_that_of_training_texts(clips_root):
    inputs = read_clip_inputs(clips_config(clips_root, max_examples=4), "captioning")
    train = inputs.splits["train"]
    assert (inputs.vocabulary[train["words"]] == train["text"]).all()
    assert inputs.decode(train["caption"]) == list(inputs.clips["train"].name)
    known = {w for name in inputs.clips["train"].name for w in name.split()}
    for name, text in zip(
        inputs.clips["test"].name,
        inputs.decode(inputs.splits["test"]["caption"]),
        strict=True,
    ):
        assert text.split() == [word for word in name.split() if word in known]


def test_visual_tokens_are_of_training_frames(clips_root):
    inputs = read_clip_inputs(clips_config(clips_root), "retrieval")
    targets = inputs.splits["train"]["targets"]
    np.testing.assert_allclose(np.linalg.norm(targets, axis=-1), 1, atol=1e-5)
    assert inputs.codebook.shape == (5, targets.shape[-1])
    again = make_codebook(targets[inputs.splits["train"]["present"]], 5, seed=0)
    np.testing.assert_array_equal(again, inputs.codebook)
    config = workload_config(clips_root, "violet", "retrieval")
    module = split_video_text(
        nnx.jit(
            model_factory(losses_of("violet", "retrieval")[0], config.model, inputs)
        )(jax.random.key(0)),
        "all",
    )
    np.testing.assert_array_equal(module.frozen["codebook"], inputs.codebook)
    found = module.merge(module.params, module.frozen).visual_tokens(targets)
    away = ((targets[:, :, None] - inputs.codebook[None, None]) ** 2).sum(-1)
    np.testing.assert_array_equal(found, away.argmin(-1))


def test_errors_of_clips(clips_root, monkeypatch):
    with pytest.raises(ValueError, match="leaves no clip for meta-validation"):
        read_clip_inputs(clips_config(clips_root, meta_validation=0.0), "retrieval")
    with pytest.raises(ValueError, match="leaves no clip for training"):
        read_clip_inputs(clips_config(clips_root, meta_validation=1.0), "retrieval")
    with pytest.raises(ValueError, match="codebook_size=500 is more than the"):
        read_clip_inputs(clips_config(clips_root, codebook_size=500), "retrieval")
    with pytest.raises(ValueError, match="did you mean 'animated_emoji'"):
        clips_config(clips_root, source="animated_emojis")
    with pytest.raises(ValueError, match=r"clips\.encoders has no encoder of text"):
        clips_config(clips_root, encoders={"image": "toy_video_image"})
    # One below 0 would silently leave out a clip.
    with pytest.raises(ValueError, match=r"clips\.max_examples=-1 must be at least 0"):
        clips_config(clips_root, max_examples=-1)
    with pytest.raises(ValueError, match=r"clips\.image_size=0 must be at least 1"):
        clips_config(clips_root, image_size=0)
    with pytest.raises(ValueError, match=r"clips\.frames=5 is more than model"):
        workload_config(clips_root, frames=5)

    def without(split, data_dir, side):
        clips = toy_clips(split, data_dir, side)
        return dataclasses.replace(clips, video=[*clips.video[:-1], clips.video[0][:0]])

    monkeypatch.setitem(clip_sources.CLIPS, "without", without)
    with pytest.raises(ValueError, match=r"test: the clip 'test-.*' has no frames"):
        read_clips("without", "test", None, 8)
    with pytest.raises(ValueError, match="a video-text model is written as 'model'"):
        workload_config(clips_root).build(export=ExportConfig("out", "peft"))


# Questions


def asked(split="train", seed=0):
    clips = toy_clips(split, None, 8)
    frames, present = fit_frames(clips.video, 4)
    questions = ask_questions(
        clips.key, clips.name, clips.category, frames, present, seed=seed
    )
    return clips, frames, present, questions


def test_questions_are_the_same_each_time_and_balanced():
    clips, _, _, questions = asked()
    jax.tree.map(np.testing.assert_array_equal, questions, asked()[-1])
    assert asked(seed=1)[-1].choices != questions.choices
    by_kind = list(zip(questions.kind, questions.answer, strict=True))
    answers = {kind: Counter(a for k, a in by_kind if k == kind) for kind in KINDS}
    rarest = min(Counter(clips.category).values())
    assert set(answers["category"].values()) == {rarest}
    assert answers["direction"] == {"forwards": 24, "backwards": 24}
    assert set(answers["changes"]) == {"0", "1", "2", "3"}
    # Of clips of three frames none changes three times.
    assert max(answers["changes"].values()) - min(answers["changes"].values()) < 12
    places = Counter(questions.choice.tolist())
    assert max(places.values()) - min(places.values()) <= 1


def test_answers_are_right():
    clips, frames, present, questions = asked("test")
    for n, i in enumerate(questions.clip):
        shown = questions.frames[n]
        assert (shown >= 0).sum() == present[i].sum()
        shown = shown[shown >= 0]
        answer = {
            "category": clips.category[i],
            "changes": str(count_changes(frames[i][shown])),
            "direction": "forwards" if shown[-1] > shown[0] else "backwards",
        }[questions.kind[n]]
        assert questions.answer[n] == answer
        assert questions.question[n] == KINDS[questions.kind[n]]
        offered = questions.choices[n]
        assert len(set(offered)) == 4 and set(offered) <= set(clips.name)
        assert offered[questions.choice[n]] == clips.name[i]


def test_answers_that_training_does_not_have():
    questions = asked()[-1]
    vocabulary = answer_vocabulary(questions)
    ids = answer_ids(questions, vocabulary)
    assert [vocabulary[i] for i in ids] == list(questions.answer)
    fewer = answer_ids(questions, [a for a in vocabulary if a != "red"])
    np.testing.assert_array_equal(fewer == -1, np.array(questions.answer) == "red")
    with pytest.raises(ValueError, match="49 names to choose from"):
        clips, frames, present, _ = asked()
        ask_questions(
            clips.key, clips.name, clips.category, frames, present, choices=49
        )


def test_what_is_shown_is_what_is_asked_of(clips_root):
    config = clips_config(clips_root)
    plain = read_clip_inputs(config, "retrieval").splits["train"]
    inputs = read_clip_inputs(config, "question_answering")
    arrays, questions = inputs.splits["train"], inputs.questions["train"]
    for n in (0, len(questions.clip) // 2, len(questions.clip) - 1):
        shown = questions.frames[n]
        frames = plain["frames"][questions.clip[n]]
        there = shown >= 0
        np.testing.assert_array_equal(arrays["frames"][n][there], frames[shown[there]])
        np.testing.assert_array_equal(arrays["present"][n], there)
        np.testing.assert_array_equal(
            arrays["text"][n], plain["text"][questions.clip[n]]
        )
    x, real = arrays["choices"]
    assert x.shape[:3] == (len(questions.clip), 4, 12) and real.any(axis=-1).all()


# Losses


def test_families_have_their_losses():
    assert {f: len(x.losses) for f, x in FAMILIES.items()} == {
        "univl": 8,
        "violet": 3,
        "all_in_one": 3,
    }
    assert losses_of("univl", "retrieval")[1] == "align"
    assert losses_of("univl", "captioning") == (FAMILIES["univl"].losses, "decoder")
    names, primary = losses_of("univl", "sentiment")
    assert (len(names), primary) == (9, "sentiment")
    assert losses_of("all_in_one", "retrieval")[1] == "contrastive"
    for family, task in CAN:
        names, primary = losses_of(family, task)
        assert primary in names and set(names) <= LOSSES.keys()
    for family in FAMILIES:
        for task in set(TASKS) - set(FAMILIES[family].primary):
            with pytest.raises(ValueError, match=f"{task} can be done by"):
                losses_of(family, task)
    with pytest.raises(ValueError, match=r"'all_in_one' has no loss for .*retrieval"):
        VideoTextConfig("all_in_one", "captioning")
    with pytest.raises(ValueError, match="did you mean 'univl'"):
        VideoTextConfig("univil")
    with pytest.raises(ValueError, match=r"frame_rate=1\.5 must be"):
        MaskingConfig(frame_rate=1.5)


def test_losses_are_those_of_the_outputs():
    """One case, by hand."""
    scores = jnp.array([[1.0, 0.95], [0.0, 1.0]])
    two = jnp.array([[True, False], [False, False]])
    hidden, text = jnp.zeros((2, 3, 4)), jnp.array([[1, 2, 0], [3, 0, 0]])
    captioning = (hidden, jnp.ones((8, 4)), text, text > 0)
    outputs = SimpleNamespace(
        similarity=scores,
        alignment=2 * scores,
        masked_similarity=3 * scores,
        masked_alignment=jnp.zeros((2, 2)),
        language_logits=jnp.zeros((2, 2, 16)),
        words=jnp.array([[3, 4], [5, 0]]),
        masked_words=two,
        frame_predictions=jnp.ones((2, 2, 1)),
        present=jnp.ones((2, 2), bool),
        masks=SimpleNamespace(frames=two),
        visual_logits=jnp.zeros((2, 2, 4)),
        visual_tokens=jnp.array([[1, 2], [3, 0]]),
        captioning=captioning,
        masked_captioning=captioning,
        pairs=(jnp.zeros(4), jnp.array([1, 1, 0, 0]) > 0, jnp.ones(4, bool)),
        video_z=jnp.eye(2),
        text_z=jnp.eye(2),
        scale=0.0,
        negatives=~jnp.eye(2, dtype=bool),
        other_clips=~jnp.eye(2, dtype=bool),
        answer_logits=jnp.zeros((2, 5)),
        choice_logits=jnp.zeros((2, 4)),
        score=jnp.array([0.5, -1.0]),
    )
    batch = {
        "targets": np.zeros((2, 2, 1), np.float32),
        "answer": np.array([2, -1]),
        "choice": np.array([0, 3]),
        "score": np.array([0.0, -1.0], np.float32),
    }
    expected = {
        # Only 0.1 + 0.95 - 1 exceeds its margin, in its row and in its column.
        "joint": 2 * 0.05 / 4,
        "align": 0.0,
        "masked_joint": 0.0,
        "masked_align": 4 * 0.1 / 4,
        "masked_language": np.log(16),
        "masked_text": np.log(16),
        "masked_frame": np.log(4),
        "masked_visual": np.log(4),
        "decoder": np.log(8),
        "masked_decoder": np.log(8),
        "matching": np.log(2),
        "contrastive": np.log(2),
        "answer": np.log(5) + np.log(4),
        "sentiment": 0.125,
    }
    assert expected.keys() == LOSSES.keys()
    for name, value in expected.items():
        found = LOSSES[name](outputs, batch, MaskingConfig(margin=0.1))
        np.testing.assert_allclose(found, value, atol=1e-6, err_msg=name)
    # Two captions of one clip: no loss takes one for the other's negative.
    outputs.negatives = outputs.other_clips = jnp.zeros((2, 2), bool)
    for name in ("joint", "masked_joint", "align", "masked_align", "contrastive"):
        found = LOSSES[name](outputs, batch, MaskingConfig(margin=0.1))
        np.testing.assert_allclose(found, 0, atol=1e-6, err_msg=name)
    found = LOSSES["masked_frame"](outputs, batch, MaskingConfig())
    np.testing.assert_allclose(found, np.log(2), atol=1e-6)


def test_captions_of_one_clip_are_no_negatives(clips_root):
    """Of a batch with two of a clip; as an option they are, as published."""
    inputs = read_clip_inputs(clips_config(clips_root), "retrieval")
    batch = {k: x[:4] for k, x in inputs.splits["train"].items() if k != "frames"}
    assert batch["clip"].tolist() == [0, 1, 2, 3]
    batch["clip"] = np.array([0, 1, 0, 3], np.int32)
    # Another clip has the name of the second.
    batch["text"] = batch["text"].copy()
    batch["text"][3] = batch["text"][1]
    words = jnp.zeros(batch["text"].shape, bool)
    masks = Masks(jnp.asarray(batch["text"]), words, jnp.asarray(batch["present"]))
    outputs = Outputs(None, batch, masks)
    clips = [[0, 1, 0, 1], [1, 0, 1, 1], [0, 1, 0, 1], [1, 1, 1, 0]]
    np.testing.assert_array_equal(outputs.other_clips, clips)
    pairs = [[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]]
    np.testing.assert_array_equal(outputs.negatives, pairs)
    published = Outputs(None, batch, masks, false_negatives=True)
    assert published.negatives is None and published.other_clips is None


@pytest.mark.parametrize("family, task", quick(WIDEST, WIDEST[1:2]))
def test_masked_losses_differ_from_step_to_step(built, computed, family, task):
    losses, batch = computed(family, task), first_batch(built(family, task))
    names = built(family, task).losses.names
    a, b = losses(batch, 0), losses(batch, 1)
    assert np.isfinite(a).all() and a.shape == (len(names),)
    np.testing.assert_array_equal(a, losses(batch, 0))
    for name, one, other in zip(names, a, b, strict=True):
        assert (one != other) == (name in MASKED), name


@pytest.mark.slow
@pytest.mark.parametrize("family, task", WIDEST)
def test_what_fills_up_short_clips_changes_nothing(built, computed, family, task):
    batch = first_batch(built(family, task))
    absent = ~batch["present"]
    assert absent.any()
    other = dict(batch)
    for name in ("frames", "targets"):
        x = batch[name].copy()
        x[absent] = np.random.default_rng(0).normal(size=x[absent].shape)
        other[name] = x
    losses = computed(family, task)
    np.testing.assert_allclose(losses(batch, 0), losses(other, 0), rtol=1e-6)


REACH = {
    "joint": "image text temporal embeddings",
    "masked_joint": "image text temporal embeddings masked_frame",
    "align": "image text temporal cross match",
    "masked_align": "image text temporal cross match masked_frame",
    "masked_language": "image text temporal cross language masked_frame",
    "masked_frame": "image text temporal cross frame masked_frame",
    "decoder": "image temporal cross captioner",
    "masked_decoder": "image text temporal cross captioner masked_frame",
    "sentiment": "image text temporal cross scores",
    "matching": "image text temporal cross match",
    "masked_text": "image text temporal cross language masked_frame",
    "masked_visual": "image text temporal cross visual masked_frame",
    "contrastive": "image text temporal embeddings logit_scale",
    "answer": "image text temporal cross answers choice",
}
PARTS = {"cross_encoder": "cross"}


@pytest.mark.slow
@pytest.mark.parametrize("family, task", WIDEST)
def test_gradients_reach_the_parts_that_a_loss_reads(built, family, task):
    workload = built(family, task)
    batch = first_batch(workload)

    def norms(params):
        def losses(params):
            return workload.losses.fn(
                params, workload.frozen, batch, jax.random.key(0)
            )[0]

        values, pull_back = jax.vjp(losses, params)
        (each,) = jax.lax.map(pull_back, jnp.eye(len(values)))
        return jax.tree.map(lambda g: jnp.abs(g).reshape(len(g), -1).max(1), each)

    found = {}
    for path, sizes in jax.tree.leaves_with_path(jax.jit(norms)(workload.params)):
        names = [str(p.key) for p in path]
        part = names[1] if names[0] in ("encoders", "heads") else names[0]
        part = PARTS.get(part, part)
        if part == "projections":
            continue
        found[part] = np.maximum(found.get(part, 0), sizes)
    for i, name in enumerate(workload.losses.names):
        reached = {part for part, sizes in found.items() if sizes[i] > 0}
        assert reached == set(REACH[name].split()), name


@pytest.mark.slow
def test_tokens_of_batches_are_counted(built):
    workload = built("univl", "sentiment")
    before = workload.tokens.read
    batch = first_batch(workload)
    # Begin, words and end; padding is 0.
    assert workload.tokens.read - before == np.count_nonzero(batch["text"])
    assert batch["text"].shape[0] == 24 and not batch["text"].all()


def test_what_trains(clips_root):
    whole = workload_config(clips_root).build()
    assert "text_lower" in whole.frozen and "text_lower" not in whole.params
    model = dataclasses.replace(MODEL, trainable="lora")
    adapters = workload_config(clips_root, model=model).build()
    paths = leaves_by_path(adapters.params).keys()
    of_encoders = {path for path in paths if path.startswith("encoders/")}
    assert of_encoders and all("lora_" in path for path in of_encoders)
    assert {p.split("/")[1] for p in of_encoders} == {"image", "text"}
    assert any(path.startswith("cross_encoder/") for path in paths)
    # Adapters begin as nothing, so that the losses are the same.
    batch, key = first_batch(whole), jax.random.key(0)
    one, two = (
        jax.jit(w.losses.fn)(w.params, w.frozen, batch, key)[0]
        for w in (whole, adapters)
    )
    np.testing.assert_allclose(one, two, rtol=1e-4)
    all_layers = workload_config(clips_root, trainable_layers={}).build()
    assert "text_lower" not in all_layers.frozen
    batch = first_batch(all_layers)
    assert batch["frames"].shape[1:] == (4, 16, 16, 3)
    losses, _ = jax.jit(all_layers.losses.fn)(
        all_layers.params, all_layers.frozen, batch, key
    )
    assert np.isfinite(losses).all()


# Metrics


@pytest.mark.parametrize("family, task", quick(CAN, WIDEST[:2]))
def test_loss_of_training_is_that_of_the_evaluation(built, clips_root, family, task):
    workload = built(family, task)
    before = dataclasses.replace(workload.tokens)
    metrics = workload.evaluate(workload.params, workload.frozen, "validation")
    inputs = read_clip_inputs(clips_config(clips_root), task)
    texts = {"question_answering": ("question", "choices")}.get(task, ("text",))
    read = count_text_tokens(inputs, inputs.splits["validation"], texts)
    assert workload.tokens.read - before.read == read > 0
    written = workload.tokens.written - before.written
    assert (written > 0) == (task == "captioning")
    loss, _ = jax.jit(workload.loss_fn)(
        workload.params, workload.frozen, inputs.splits["validation"], jax.random.key(0)
    )
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-4)
    wanted = {
        "retrieval": {"t2v_r1", "t2v_r5", "t2v_r10", "t2v_medr", "v2t_r1"},
        "captioning": {"bleu3", "bleu4", "meteor", "rouge_l", "cider", "exact_match"},
        "question_answering": {"accuracy", "choice_accuracy", "count_mse"},
        "sentiment": {"mae", "correlation", "acc2_non_zero", "f1_non_zero"},
    }[task]
    assert wanted <= metrics.keys()


class Cheat(nnx.Module):
    """Knows what is asked: frames and texts are the numbers of their clips."""

    scale = 10.0
    captioner = SimpleNamespace(
        config=SimpleNamespace(pad_id=0), decoder=SimpleNamespace(logits=lambda x: x)
    )

    def __init__(self, count, captions, answers, choices, scores):
        self.count = count
        tables = {
            "captions": captions,
            "answers": answers,
            "choices": choices,
            "scores": scores,
        }
        self.tables = nnx.Dict(
            {name: nnx.Variable(jnp.asarray(x)) for name, x in tables.items()}
        )

    def frame_features(self, frames):
        return frames

    def video(self, features, present):
        return Tokens(features, present)

    def text(self, inputs):
        return Tokens(inputs, jnp.ones(inputs.shape[:2], bool))

    def embed(self, modality, tokens):
        return jax.nn.one_hot(tokens.x[:, 0, 0].astype(int), self.count)

    def cross(self, video, text=None):
        return video, text

    def match(self, fused):
        video, text = fused
        return -jnp.abs(video.x[:, 0, 0] - text.x[:, 0, 0])

    def _table(self, name, fused):
        return self.tables[name][...][fused[0].x[:, 0, 0].astype(int)]

    def caption_states(self, fused, text):
        return 100 * jax.nn.one_hot(text, 40), None, text, text != 0

    def write(self, fused, max_tokens):
        return self._table("captions", fused)

    def answer_logits(self, fused):
        return 100 * jax.nn.one_hot(self._table("answers", fused), 20)

    def choice_logits(self, video, choices):
        return 100 * jax.nn.one_hot(self._table("choices", (video,)), 4)

    def score(self, fused):
        return self._table("scores", fused)


def test_metrics_of_a_model_that_cheats(clips_root):
    inputs = read_clip_inputs(clips_config(clips_root), "question_answering")
    questions, arrays = inputs.questions["test"], inputs.splits["test"]
    count = len(questions.clip)
    ids = np.arange(count, dtype=np.float32)
    rng = np.random.default_rng(0)
    scores = rng.normal(size=count).astype(np.float32)
    arrays = {
        **arrays,
        "frames": np.broadcast_to(ids[:, None, None], (count, 4, 1)),
        "text_features": np.broadcast_to(ids[:, None, None], (count, 6, 1)),
        "question": np.broadcast_to(ids[:, None, None], (count, 6, 1)),
        "choices": np.zeros((count, 4, 6, 1), np.float32),
        "present": np.ones((count, 4), bool),
        "text": np.arange(count)[:, None],
        "score": scores,
    }
    cheat = Cheat(count, arrays["caption"], arrays["answer"], arrays["choice"], scores)
    for primary in ("align", "matching", "contrastive"):
        found = retrieval_evaluation(arrays, primary, 0.1, batch_size=50)(cheat)
        for way in ("t2v", "v2t"):
            assert {found[f"{way}_{k}"] for k in ("r1", "r5", "r10", "medr")} == {1.0}
    answers = inputs.answers + ("none",) * (20 - len(inputs.answers))
    found = question_evaluation(arrays, questions, answers)(cheat)
    kinds = [f"accuracy_{kind}" for kind in KINDS]
    assert {found[k] for k in ("accuracy", "choice_accuracy", *kinds)} == {1.0}
    assert found["count_mse"] == 0.0 and found["loss"] < 1e-4
    # Some data sets have but one of the two.
    words = {k: x for k, x in arrays.items() if k not in ("choices", "choice")}
    assert "choice_accuracy" not in question_evaluation(words, questions, answers)(
        cheat
    )
    options = {k: x for k, x in arrays.items() if k not in ("question", "answer")}
    found = question_evaluation(options, questions, ())(cheat)
    assert found == {"loss": pytest.approx(0, abs=1e-4), "choice_accuracy": 1.0}
    names = [inputs.clips["test"].name[i] for i in questions.clip]
    found = captioning_evaluation(arrays, [[n] for n in names], inputs.decode)(cheat)
    assert found["exact_match"] == 100.0 and found["accuracy"] == 1.0
    np.testing.assert_allclose([found["bleu3"], found["rouge_l"]], 100.0)
    found = sentiment_evaluation(arrays)(cheat)
    assert found["mae"] == found["loss"] == 0.0 and found["acc2_non_zero"] == 1.0
    np.testing.assert_allclose(found["correlation"], 1.0)


# Runs


VARIANTS = (
    *("univl_retrieval", "univl_captioning", "univl_sentiment", "smoke"),
    *("violet_question_answering", "all_in_one_retrieval"),
)


@pytest.mark.parametrize("name", VARIANTS)
def test_configs(name):
    config = read_run_config(VideoTextConfig, meltr.get_config(name).to_dict())
    names, primary = losses_of(config.workload.family, config.workload.task)
    assert primary in names and config.meta_loss.combiner == "meltr"
    assert config.meta_loss.network.width in (128, 256)
    if name != "smoke":
        assert name.endswith(config.workload.task)


META = dataclasses.replace(
    PUBLISHED["univl"],
    network=CombinerConfig(num_losses=8, hidden_size=8, width=16, ffn_size=16),
)
LOOP = LoopConfig(20, 8, eval_every=10, log_every=5, checkpoint_every=5, progress=False)


@pytest.mark.slow
def test_a_run_with_meltr_resumes_in_the_same_bits(built, tmp_path):
    workload = built("univl", "retrieval")
    go = functools.partial(run, tx=optax.adam(3e-3), config=LOOP, meta_loss=META)
    whole = go(workload, workdir=tmp_path / "whole")

    def signalling(batch_size, seed=0, rows=None):
        batches = workload.train_batches(batch_size, seed, rows)
        return SignallingBatches(batches, signal.SIGTERM, 13)

    interrupted = dataclasses.replace(workload, train_batches=signalling)
    with pytest.raises(Interrupted):
        go(interrupted, workdir=tmp_path / "broken")
    resumed = go(workload, workdir=tmp_path / "broken")
    jax.tree.map(
        np.testing.assert_array_equal,
        (whole.state.params, whole.state.objective),
        (resumed.state.params, resumed.state.objective),
    )
    one, two = (
        (tmp_path / folder / "metrics.jsonl").read_text()
        for folder in ("whole", "broken")
    )
    assert one == two
    names = {key for record in whole.history for key in record}
    for name in workload.losses.names:
        wanted = ("train/loss/", "meta/weight/", "meta/alignment/")
        assert {prefix + name for prefix in wanted} <= names
    losses = [r["validation/loss"] for r in whole.history if "validation/loss" in r]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_clips_are_found_by_their_names(built):
    """Training on the primary loss alone: the parts fit together."""
    workload = built("all_in_one", "retrieval")
    loop = dataclasses.replace(LOOP, num_steps=150, eval_every=75)
    result = run(workload, optax.adam(3e-3), loop)
    test = workload.evaluate(result.state.params, result.state.frozen, "test")
    assert test["t2v_r5"] > 2 * 5 / 24, test
