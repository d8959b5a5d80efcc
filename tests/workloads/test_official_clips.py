"""Official video-text data sets as the clips of video-text workloads."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from official_clips import (
    RATE,
    SIZES,
    mosi_set,
    msrvtt_set,
    msvd_set,
    text_of,
    tgif_action_set,
    youcook2_set,
)
from video_text_toy import clips_config, workload_config

from configs import meltr
from meta_opt.data.shared_rows import SharedRows
from meta_opt.data.sources.annotated_clips import (
    SETS,
    AnnotatedClips,
    OfficialConfig,
)
from meta_opt.data.sources.video_annotations import KINDS
from meta_opt.data.splits import held_out_split
from meta_opt.finetuning.loop_config import LoopConfig
from meta_opt.finetuning.run_config import read_run_config
from meta_opt.finetuning.runs import run
from meta_opt.meta_loss.settings import PUBLISHED
from meta_opt.workloads.video_text import VideoTextConfig
from meta_opt.workloads.video_text_data import read_clip_inputs
from meta_opt.workloads.video_text_losses import LOSSES, TASKS
from meta_opt.workloads.video_text_outputs import MaskingConfig

META = "meta_validation"
# Source, task and what writes it.
CASES = {
    "msrvtt_7k": ("retrieval", msrvtt_set),
    "youcook2": ("captioning", youcook2_set),
    "tgif_qa_action": ("question_answering", tgif_action_set),
    "msvd_qa": ("question_answering", msvd_set),
    "cmu_mosi": ("sentiment", mosi_set),
}


@pytest.fixture(scope="module")
def settings(clips_root, tmp_path_factory):
    """The settings of `clips_config` by source; the set is written once."""

    @functools.cache
    def of(source):
        folder = tmp_path_factory.mktemp(source)
        official = {"media": str(CASES[source][1](folder)), "held_out_share": 0.3}
        changes = {"codebook_size": 2}
        if source == "youcook2":
            official["frames_per_second"] = RATE
            changes["encoders"] = {"image": "precomputed", "text": "toy_video_text"}
        official = OfficialConfig(annotations=str(folder), **official)
        return {"source": source, "official": official, **changes}

    return of


@pytest.fixture(scope="module")
def read(clips_root, settings):
    """What a run on a source reads."""
    return functools.cache(
        lambda source: read_clip_inputs(
            clips_config(clips_root, **settings(source)), CASES[source][0]
        )
    )


def changed(clips_root, settings, source, official=None, **changes):
    """The clips of a source with some settings changed."""
    found = settings(source)
    official = dataclasses.replace(found["official"], **(official or {}))
    return clips_config(clips_root, **{**found, "official": official, **changes})


def videos_of(inputs):
    return {split: set(clips.group) for split, clips in inputs.clips.items()}


def assert_disjoint(groups):
    assert groups.keys() == {"train", META, "validation", "test"}
    assert sum(map(len, groups.values())) == len(set.union(*groups.values()))


# What arrives


def test_msrvtt(read):
    inputs = read("msrvtt_7k")
    groups = videos_of(inputs)
    assert_disjoint(groups)
    assert groups["test"] == {f"video{7010 + i}" for i in range(5)}
    # Train and validation are 7,010 videos of which one's own validation is a part.
    there = {f"video{i}" for i in range(24)} - {"video3", "video5"}
    assert groups["train"] | groups[META] | groups["validation"] == there
    for split in ("train", META, "validation"):
        for video in groups[split]:
            shares = {"validation": 0.3, "test": 0.3}
            wanted = {"validation": META, "test": "validation"}
            held = held_out_split(video, shares)
            assert wanted.get(held, "train") == split
    # In training each caption is a sample, in test there is one for each clip.
    for split, clips in inputs.clips.items():
        arrays = inputs.splits[split]
        numbers = [int(key.removeprefix("video")) for key in clips.key]
        if split in ("train", META):
            texts = [text_of(i, n) for i in numbers for n in range(2)]
            frames = np.asarray(arrays["frames"])
            np.testing.assert_array_equal(frames[::2], frames[1::2])
            assert isinstance(arrays["frames"], SharedRows)
        elif split == "validation":
            texts = [text_of(i) for i in numbers]
        else:
            texts = [text_of(i - 7010, 2) for i in numbers]
        tokens = inputs.reader.tokenizer.encode(texts, 6)
        np.testing.assert_array_equal(arrays["text"], tokens)


def test_what_is_left_out_is_counted_and_named(read):
    inputs = read("msrvtt_7k")
    about = inputs.about
    assert about["splits"] == {
        "train": "train+validation",
        "validation": "held_out",
        "test": "test",
    }
    assert about["read"]["train"] == {
        "split": "train+validation",
        "samples": 23,
        "annotated": 24,
        "missing_clips": 1,
        "missing": ["video3"],
    }
    assert about["videos_shared_with_train"] == {"test": 0}
    (without,) = about["clips_without_frames"].values()
    assert without == {"count": 1, "named": ["video5"]}
    # Those of three frames, where four are asked for.
    three = {
        split: sum(int(key.removeprefix("video")) % 4 == 0 for key in clips.key)
        for split, clips in inputs.clips.items()
    }
    assert inputs.short == three and sum(three.values()) > 3
    for split, clips in inputs.clips.items():
        present = np.asarray(inputs.splits[split]["present"])
        captions = len(present) // len(clips)
        assert (~present).sum() == captions * three[split]


def test_clips_with_damaged_frames_are_counted(clips_root, settings, tmp_path):
    media = msrvtt_set(tmp_path)
    damaged = ("video1", "video2", "video7")
    for name in damaged:
        sorted((media / name).iterdir())[0].write_bytes(b"no picture")
    where = {"annotations": str(tmp_path), "media": str(media)}
    config = changed(clips_root, settings, "msrvtt_7k", where)
    about = read_clip_inputs(config, CASES["msrvtt_7k"][0]).about
    counts = [x.get("clips_with_damaged_frames", 0) for x in about["read"].values()]
    assert sum(counts) == len(damaged)


def test_youcook2(read):
    inputs = read("youcook2")
    assert_disjoint(videos_of(inputs))
    assert videos_of(inputs)["test"] == {f"cook{i}" for i in range(16, 20)}
    for split, clips in inputs.clips.items():
        # Both segments of a video are in one split.
        assert len(clips) == 2 * len(set(clips.group))
        features = inputs.splits[split]["frames"]
        assert features.dtype == np.float32 and features.shape[1:] == (4, 3)
        for row, key in zip(features, clips.key, strict=True):
            video, segment = key.removeprefix("cook").split("_")
            rows = [4, 6, 8, 10] if segment == "0" else [20, 21, 22, 23]
            assert row.tolist() == [[int(video), r, 1] for r in rows]
        numbers = [int(key.removeprefix("cook")[:-2]) for key in clips.key]
        segments = [int(key[-1]) for key in clips.key]
        assert clips.name == list(map(text_of, numbers, segments))
    assert inputs.reader.encoders["image"].lower is None
    targets = inputs.splits["train"]["targets"]
    np.testing.assert_allclose(np.linalg.norm(targets, axis=-1), 1, atol=1e-5)


def test_tgif_action(read, clips_root):
    inputs = read("tgif_qa_action")
    assert_disjoint(videos_of(inputs))
    assert inputs.answers == ()
    tokens = inputs.reader.tokenizer.encode(
        [f"what red {o}" for o in (*SIZES, "red")], 12
    )
    for split, questions in inputs.questions.items():
        arrays = inputs.splits[split]
        assert len(questions.clip) == 2 * len(inputs.clips[split])
        assert not {"answer", "question"} & arrays.keys()
        for n, row in enumerate(questions.clip):
            number = int(inputs.clips[split].key[row].removeprefix("gif"))
            asked = ("what red", "what green").index(questions.question[n])
            assert arrays["choice"][n] == (number + asked) % 5
            assert questions.choices[n] == (*SIZES, "red")
        first = questions.question.index("what red")
        offered = inputs.reader.tokenizer.encode(questions.offered[first], 12)
        np.testing.assert_array_equal(offered, tokens)
        assert arrays["choices"][0].shape[:3] == (len(questions.clip), 5, 12)
        # The question is the text of the losses on texts.
        text = inputs.reader.tokenizer.encode([questions.question[0]], 6)
        np.testing.assert_array_equal(arrays["text"][:1], text)


def test_msvd(read):
    inputs = read("msvd_qa")
    assert_disjoint(videos_of(inputs))
    assert videos_of(inputs)["validation"] == {f"vid{i}" for i in range(21, 25)}
    assert inputs.answers == tuple(sorted(SIZES))
    for split, questions in inputs.questions.items():
        arrays = inputs.splits[split]
        assert not {"choice", "choices"} & arrays.keys()
        assert questions.kind == ("what", "other") * len(inputs.clips[split])
        for n, answer in enumerate(questions.answer):
            place = -1 if answer == "unseen" else inputs.answers.index(answer)
            assert arrays["answer"][n] == place
            number = int(inputs.clips[split].key[questions.clip[n]][3:])
            assert answer in ("unseen", SIZES[(number + n % 2) % 4])
        frames = np.asarray(arrays["frames"])
        np.testing.assert_array_equal(frames[::2], frames[1::2])
        assert (frames[0] != frames[2]).any()
    assert (inputs.splits["test"]["answer"] == -1).sum() == 1


def test_mosi(read):
    inputs = read("cmu_mosi")
    assert_disjoint(videos_of(inputs))
    assert videos_of(inputs)["validation"] == {"v16", "v17", "v18"}
    for split, clips in inputs.clips.items():
        assert len(clips) == 2 * len(set(clips.group))
        for key, score in zip(clips.key, inputs.splits[split]["score"], strict=True):
            video, segment = map(int, key.removeprefix("v").split("_"))
            assert score == np.float32([-3.0, 0.0, 1.2][(video + segment) % 3])


def test_the_customary_splits_can_be_changed(settings):
    official = settings("msrvtt_7k")["official"]
    own = {"train": "train", "validation": "validation"}
    source = AnnotatedClips("msrvtt_7k", dataclasses.replace(official, **own), 4, 8)
    # Video 5 has no frame, which is found out when frames are read.
    there = [f"video{i}" for i in range(20) if i != 3]
    assert source.read("train").key == there
    held = source.read("validation")
    assert held.key == [f"video{i}" for i in range(20, 24)]
    # The references of captions are all of a clip.
    assert held.captions[0] == (text_of(20), text_of(20, 1))
    assert [len(video) for video in held.at_most(2).video] == [
        3 if int(key.removeprefix("video")) % 4 == 0 else 4
        for key in held.at_most(2).key
    ]


@pytest.mark.parametrize("caption", ["...", " "])
def test_captions_without_words_are_left_out(tmp_path, caption):
    media = msrvtt_set(tmp_path)
    path = tmp_path / "MSRVTT_data.json"
    text = path.read_text()
    # Both captions of video 0 are left out, and with them the clip.
    for n in range(2):
        old = f'"caption": "{text_of(0, n)}", "video_id": "video0"'
        assert old in text
        text = text.replace(old, f'"caption": "{caption}", "video_id": "video0"')
    path.write_text(text)
    official = OfficialConfig(str(tmp_path), str(media))
    source = AnnotatedClips("msrvtt", official, 4, 8)
    assert "video0" not in source.read("train").key
    assert source.describe()["read"]["train"]["captions_without_words"] == 2


# Losses and models


def test_the_loss_of_answers_is_of_what_there_is():
    outputs = SimpleNamespace(
        answer_logits=np.float32([[0, 0, np.log(5), 0], [9, 9, 9, 9]]),
        choice_logits=np.zeros((2, 4), np.float32),
    )
    words, choice = {"answer": np.array([0, -1])}, {"choice": np.array([0, 3])}
    for batch, value in (
        (words, np.log(8)),
        (choice, np.log(4)),
        (words | choice, np.log(32)),
    ):
        found = LOSSES["answer"](outputs, batch, MaskingConfig())
        np.testing.assert_allclose(found, value, rtol=1e-6)


def test_a_workload_is_built_with_the_heads_of_its_questions(clips_root, settings):
    clips = settings("tgif_qa_action")
    workload = workload_config(
        clips_root, "violet", "question_answering", **clips
    ).build()
    heads = workload.params["heads"]
    assert "choice" in heads and "answers" not in heads
    described = workload.describe()
    assert described["source"]["source"] == "tgif_qa_action"
    assert described["examples"]["test"] == 8 and described["clips"]["test"] == 4
    batch = next(workload.train_batches(4, 0))
    assert batch["frames"].shape[:2] == (4, 4) and batch["choice"].shape == (4,)
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(batch))


# The file of settings, and mistakes


VARIANTS = {
    "msrvtt_retrieval": "msrvtt_7k",
    "youcook2_captioning": "youcook2",
    "tgif_action": "tgif_qa_action",
    "msvd_question_answering": "msvd_qa",
    "mosi_sentiment": "cmu_mosi",
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_need_their_paths(name):
    settings = meltr.get_config(name)
    flag = r"--config\.clips\.official\.annotations=FOLDER$"
    with pytest.raises(ValueError, match=flag):
        read_run_config(VideoTextConfig, settings.to_dict())
    settings.clips.official.annotations = "a"
    with pytest.raises(ValueError, match=r"--config\.clips\.official\.media=FOLDER$"):
        read_run_config(VideoTextConfig, settings.to_dict())
    settings.clips.official.media = "b"
    workload = read_run_config(VideoTextConfig, settings.to_dict()).workload
    assert workload.clips.source == VARIANTS[name]
    assert workload.task == CASES[VARIANTS[name]][0]


def test_sets_are_those_that_can_be_read():
    assert SETS.keys() == KINDS.keys()
    for name, found in SETS.items():
        assert set(found.tasks) <= set(TASKS)
        parts = {*found.train.split("+"), found.validation, found.test} - {"held_out"}
        assert parts <= set(KINDS[name].splits)


def test_mistakes(clips_root, settings):
    paths = OfficialConfig("a", "b")
    with pytest.raises(ValueError, match="did you mean 'msvd_qa'"):
        clips_config(clips_root, source="msvdqa")
    with pytest.raises(ValueError, match=r"clips\.official is for official data sets"):
        clips_config(clips_root, official=paths)
    with pytest.raises(ValueError, match=r"'msvd_qa' has no labels for task='retriev"):
        workload_config(clips_root, source="msvd_qa", official=paths)
    with pytest.raises(ValueError, match="have the split 'validation' in common"):
        changed(clips_root, settings, "youcook2", {"validation": "validation"})
    with pytest.raises(ValueError, match="no split 'tests'; did you mean 'test'"):
        config = changed(clips_root, settings, "msrvtt_7k", {"test": "tests"})
        read_clip_inputs(config, "retrieval")
    for wrong in ({"held_out_share": 1.0}, {"frames_per_second": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            OfficialConfig(**wrong)
    with pytest.raises(ValueError, match="no clip in validation of 23 samples"):
        config = changed(clips_root, settings, "msrvtt_7k", {"held_out_share": 1e-6})
        read_clip_inputs(config, "retrieval")
    pictures = {"image": "toy_video_image", "text": "toy_video_text"}
    with pytest.raises(ValueError, match=r"reads images: set it to 'precomputed'"):
        config = changed(clips_root, settings, "youcook2", encoders=pictures)
        read_clip_inputs(config, "captioning")
    features = {"image": "precomputed", "text": "toy_video_text"}
    with pytest.raises(ValueError, match=r"'precomputed' takes features of frames"):
        config = changed(clips_root, settings, "cmu_mosi", encoders=features)
        read_clip_inputs(config, "sentiment")


def test_no_clip_with_a_frame(clips_root, settings, tmp_path):
    """Segments that all begin after the end of their videos."""
    found = settings("youcook2")["official"]
    for path in (tmp_path / "media").parent.glob("*"):
        path.unlink()
    media = tmp_path / "media"
    media.mkdir()
    for i in range(20):
        np.save(media / f"cook{i}.npy", np.ones((2, 3), np.float32))
    paths = {"annotations": found.annotations, "media": str(media)}
    config = changed(clips_root, settings, "youcook2", paths)
    with pytest.raises(ValueError, match=r"none of \d+ clips in .* has a frame"):
        read_clip_inputs(config, "captioning")


@pytest.mark.slow
def test_a_run_on_questions_with_options(clips_root, settings):
    clips = settings("tgif_qa_action")
    workload = workload_config(
        clips_root, "violet", "question_answering", **clips
    ).build()
    loop = LoopConfig(4, 4, eval_every=2, log_every=1, progress=False)
    meta = dataclasses.replace(PUBLISHED["violet_qa"], interval=2)
    result = run(workload, optax.adam(3e-3), loop, meta_loss=meta)
    found = [r for r in result.history if "validation/choice_accuracy" in r]
    assert found and np.isfinite(found[-1]["validation/loss"])
    metrics = workload.evaluate(result.state.params, result.state.frozen, "test")
    assert metrics.keys() == {"loss", "choice_accuracy"}
    assert 0 <= metrics["choice_accuracy"] <= 1
