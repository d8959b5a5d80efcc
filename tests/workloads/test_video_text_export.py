"""Exported video-text models do on clips and texts what the run did on its arrays."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from PIL import Image
from video_text_toy import MODEL, clips_config, toy_clips, workload_config

import meta_opt
from meta_opt.data.missing import MissingDataError
from meta_opt.inference import VideoTextModel
from meta_opt.metrics.captions import caption_metrics
from meta_opt.metrics.question_answering import multiple_choice_accuracy
from meta_opt.metrics.regression import sentiment_metrics
from meta_opt.metrics.retrieval import retrieval_metrics
from meta_opt.workloads.export import ExportConfig
from meta_opt.workloads.video_text_data import read_clip_inputs
from meta_opt.workloads.video_text_export import ARRAYS, SETTINGS

TRAINED = 0.05
"""Standard deviation of what stands for training."""


@pytest.fixture(scope="module")
def exported(clips_root, tmp_path_factory):
    """Folder and metrics on the test split, by family, task and what trains."""

    @functools.cache
    def export(family, task, trainable="all"):
        folder = tmp_path_factory.mktemp("exported") / "tuned"
        model = dataclasses.replace(MODEL, trainable=trainable)
        config = workload_config(clips_root, family, task, model)
        workload = config.build(export=ExportConfig(str(folder)))
        rng = np.random.default_rng(0)
        params = jax.tree.map(
            lambda x: x + TRAINED * rng.normal(size=x.shape).astype(x.dtype),
            workload.params,
        )
        metrics = workload.evaluate(params, workload.frozen, "test")
        workload.write(params, workload.frozen)
        return folder, metrics

    return export


def loaded(folder, clips_root, batch_size=128):
    return meta_opt.load_exported(folder, data_dir=clips_root, batch_size=batch_size)


CLIPS = toy_clips("test", None, 16)


def assert_found(model, metrics, rtol=1e-5):
    """The metrics of a run are those of a model's own scores."""
    scores = model.scores(CLIPS.video, CLIPS.name)
    found = retrieval_metrics(scores, np.arange(24))
    for name in ("r1", "r5", "r10", "medr"):
        assert found[f"t2i_{name}"] == metrics[f"t2v_{name}"]
        assert found[f"i2t_{name}"] == metrics[f"v2t_{name}"]
    return scores


@pytest.mark.slow
def test_search(clips_root, exported, tmp_path):
    folder, metrics = exported("univl", "retrieval")
    model = loaded(folder, clips_root)
    assert isinstance(model, VideoTextModel) and model.task == "retrieval"
    scores = assert_found(model, metrics)
    best = model.search(CLIPS.video, CLIPS.name[:3], count=4)
    assert best.shape == (3, 4)
    ordered = np.take_along_axis(scores[:, :3].T, best, axis=1)
    assert (np.diff(ordered, axis=1) <= 0).all()
    np.testing.assert_array_equal(ordered[:, 0], scores[:, :3].max(axis=0))
    # Clips as files, and as lists of images, are the same clips.
    video = CLIPS.video[0]
    (tmp_path / "clip").mkdir()
    for i, frame in enumerate(video):
        Image.fromarray(frame).save(tmp_path / "clip" / f"{i:03}.png")
    several = [tmp_path / "clip", [Image.fromarray(x) for x in video], video]
    again = model.scores([*several, *CLIPS.video[3:]], CLIPS.name)
    np.testing.assert_array_equal(again[:3], np.repeat(scores[:1], 3, axis=0))
    assert_errors(model, tmp_path, video)


def assert_errors(model, tmp_path, video):
    text = ["red"]
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "clip.npy", np.ones((4, 3), np.float32))
    (tmp_path / "clip.mp4").touch()
    (tmp_path / "notes.txt").touch()
    for clip, message in (
        (tmp_path / "empty", "the clip .*empty has no frames"),
        (tmp_path / "absent", "there is no clip .*absent"),
        (tmp_path / "clip.npy", r"clip\.npy has features, and the model reads images"),
        (tmp_path / "clip.mp4", "is a video, which is not decoded.*ffmpeg"),
        (tmp_path / "notes.txt", r"notes\.txt is not a clip; give a folder of frames"),
        (video[:0], r"clips\[0\] has no frames"),
        (video.astype(np.float32), r"must be uint8 \[H, W, 3\]"),
    ):
        with pytest.raises(ValueError, match=message):
            model.scores([clip], text)
    for call, message in (
        (lambda: model.scores([], text), "clips has no clip"),
        (lambda: model.scores([video], []), "texts has no text"),
        (lambda: model.search([video], text, count=0), "count=0 must be at least 1"),
        (lambda: model.sentiment([video], text), "not trained for sentiment: it is of"),
        (lambda: model.answer([video], text), "not trained to answer questions in"),
        (lambda: model.choose([video], [text]), "not trained to choose between opt"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="texts takes a list"):
        model.scores([video], "red")
    with pytest.raises(TypeError, match="texts has 3, which is not a string"):
        model.scores([video], [3])


def test_damaged_exports_are_refused(clips_root, exported, tmp_path, monkeypatch):
    folder, _ = exported("univl", "retrieval")
    about = json.loads((folder / SETTINGS).read_text())
    assert not any(str(clips_root) in str(value) for value in about.values())

    def broken(arrays=None, **changes):
        (tmp_path / SETTINGS).write_text(json.dumps({**about, **changes}))
        (tmp_path / ARRAYS).write_bytes(arrays or (folder / ARRAYS).read_bytes())
        return meta_opt.load_exported(tmp_path, data_dir=clips_root)

    for changes, message in (
        ({"arrays": b"x"}, r"model\.safetensors is damaged: its SHA-256 is"),
        ({"format": 2}, "has format 2; this code reads 1"),
        ({"task": "retrieve"}, "unknown task 'retrieve'|task='retrieve'|'retrieve'"),
        ({"sizes": {"words": 3}}, r"sizes=.* must have words, codes"),
        ({"vocabularies": []}, "vocabularies"),
        ({"encoders": {**about["encoders"], "text": "0"}}, "was trained on another"),
    ):
        with pytest.raises(ValueError, match=message):
            broken(**changes)
    for options in ({"dtype": "bfloat16"}, {"adapter": "a"}, {"processor": "p"}):
        with pytest.raises(ValueError, match="is a video-text model, which takes no"):
            meta_opt.load_exported(folder, data_dir=clips_root, **options)
    with pytest.raises(MissingDataError):
        meta_opt.load_exported(folder, data_dir=tmp_path)


@pytest.mark.slow
def test_search_by_embeddings_with_adapters_merged(clips_root, exported):
    folder, metrics = exported("all_in_one", "retrieval", "lora")
    settings = json.loads((folder / SETTINGS).read_text())
    assert settings["model"]["trainable"] == "all"
    scores = assert_found(loaded(folder, clips_root), metrics)
    assert np.abs(scores).max() <= 1 + 1e-6


@pytest.mark.slow
def test_captions(clips_root, exported):
    folder, metrics = exported("univl", "captioning")
    model = loaded(folder, clips_root)
    written = model.caption(CLIPS.video)
    found = caption_metrics(written, CLIPS.captions)
    for name, value in found.items():
        assert metrics[name] == pytest.approx(value)
    assert model.scores(CLIPS.video[:2], CLIPS.name[:3]).shape == (2, 3)


@pytest.mark.slow
def test_answers_and_choices(clips_root, exported):
    folder, metrics = exported("violet", "question_answering")
    model = loaded(folder, clips_root)
    inputs = read_clip_inputs(clips_config(clips_root), "question_answering")
    questions = inputs.questions["test"]
    shown = [
        CLIPS.video[i][frames[frames >= 0]]
        for i, frames in zip(questions.clip, questions.frames, strict=True)
    ]
    answers = model.answer(shown, questions.question)
    assert model.answers == inputs.answers
    right = np.equal(answers, questions.answer)
    assert right.mean() == pytest.approx(metrics["accuracy"])
    chosen = model.choose(shown, questions.offered)
    np.testing.assert_allclose(chosen.sum(axis=1), 1, rtol=1e-5)
    accuracy = multiple_choice_accuracy(chosen, questions.choice)
    assert accuracy == pytest.approx(metrics["choice_accuracy"])
    with pytest.raises(ValueError, match="got 1 questions for 2 clips"):
        model.answer(shown[:2], ["what"])
    with pytest.raises(ValueError, match=r"lists of \[1, 2\] texts; all need as many"):
        model.choose(shown[:2], [["a"], ["a", "b"]])


@pytest.mark.slow
def test_sentiment(clips_root, exported):
    folder, metrics = exported("univl", "sentiment")
    known = CLIPS.with_sentiment()
    model = loaded(folder, clips_root, batch_size=7)
    found = model.sentiment(list(known.video), known.name)
    for name, value in sentiment_metrics(known.sentiment, found).items():
        assert metrics[name] == pytest.approx(value, rel=1e-4)
