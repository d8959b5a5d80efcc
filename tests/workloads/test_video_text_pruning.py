"""Video-text models that read patches: how many tokens, masks, losses, one step."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from video_text_toy import MODEL, workload_config

from meta_opt.finetuning.loop_config import LoopConfig
from meta_opt.finetuning.run_config import read_run_config
from meta_opt.finetuning.runs import run
from meta_opt.models.token_pruning import PruningConfig
from meta_opt.workloads.video_text import VideoTextConfig
from meta_opt.workloads.video_text_data import read_clip_inputs
from meta_opt.workloads.video_text_losses import losses_of
from meta_opt.workloads.video_text_model import model_factory

FRAMES = 4
"""Of a toy clip, each of 2 x 2 patches."""


def config_of(clips_root, family="univl", task="retrieval", **pruning):
    model = dataclasses.replace(MODEL, pruning=PruningConfig(**pruning))
    return workload_config(clips_root, family, task, model)


@pytest.fixture(scope="module")
def model_of(clips_root):
    """Models of one seed by how they prune, all with the same parameters."""
    names, _ = losses_of("univl", "retrieval")
    first = config_of(clips_root)
    inputs = read_clip_inputs(first.clips, first.task)

    def make(**pruning):
        model = dataclasses.replace(MODEL, pruning=PruningConfig(**pruning))
        return model_factory(names, model, inputs)(jax.random.key(0))

    return make, inputs.splits["test"]


def read(model, arrays, count=6):
    part = jax.tree.map(lambda x: x[:count], arrays)
    tokens = model.video(model.frame_features(part["frames"]), part["present"])
    return part, tokens


@pytest.mark.slow
def test_fewer_tokens_reach_cross_encoder_and_decoder(model_of):
    make, arrays = model_of
    for share, count in ((1.0, 16), (0.5, 8), (0.2, 3)):
        model = make(tokens="patches", kept_share=share)
        part, video = read(model, arrays)
        assert video.x.shape == (6, count, MODEL.fusion.width)
        assert model.cross(video).tokens.x.shape[1] == count
        text = model.text(part["text_features"])
        words = text.x.shape[1]
        assert model.cross(video, text).tokens.x.shape[1] == count + words
    model = make(tokens="patches", kept_share=0.5, relevant_share=0.5)
    part, video = read(model, arrays)
    assert model.cross(video, text).tokens.x.shape[1] == 4 + words
    # Of hidden frames each has its place.
    hidden = np.zeros((6, FRAMES), bool)
    masked = model.video(model.frame_features(part["frames"]), part["present"], hidden)
    whole = model.cross(masked, text, prune=False)
    assert whole.tokens.x.shape[1] == FRAMES + words


def test_hidden_frames_are_read_as_without_patches(model_of):
    make, arrays = model_of
    hidden = np.zeros((6, FRAMES), bool)
    hidden[:, 1] = True
    found = []
    for model in (make(), make(tokens="patches", kept_share=0.5)):
        part, _ = read(model, arrays)
        features = model.frame_features(part["frames"])
        found.append(model.video(features, part["present"], hidden))
    np.testing.assert_allclose(found[0].x, found[1].x, rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(found[0].real, found[1].real)


def test_frames_that_are_not_there_change_nothing(model_of):
    make, arrays = model_of
    model = make(tokens="patches", kept_share=0.5)
    part, video = read(model, arrays)
    absent = ~part["present"]
    assert absent.any()
    frames = np.where(absent[:, :, None, None, None], 7.0, part["frames"])
    other = model.video(model.frame_features(frames), part["present"])
    np.testing.assert_array_equal(video.real, other.real)
    kept = np.asarray(video.real)[..., None]
    np.testing.assert_allclose(
        np.where(kept, video.x, 0), np.where(kept, other.x, 0), rtol=1e-5, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "family, task", [("univl", "captioning"), ("all_in_one", "question_answering")]
)
def test_a_run_with_pruned_patches(clips_root, family, task):
    config = config_of(
        clips_root, family, task, tokens="patches", kept_share=0.5, relevant_share=0.5
    )
    workload = config.build()
    losses, _ = jax.jit(workload.losses.fn)(
        workload.params,
        workload.frozen,
        next(workload.train_batches(8, 0)),
        jax.random.key(0),
    )
    assert np.isfinite(losses).all()
    loop = LoopConfig(num_steps=8, batch_size=8, eval_every=8, progress=False)
    result = run(workload, optax.adam(3e-3), loop)
    before, after = (
        r["validation/loss"] for r in result.history if "train/loss" not in r
    )
    assert after < before


def test_settings_of_a_config_file():
    settings = {
        "num_steps": 1,
        "batch_size": 1,
        "model": {"pruning": {"tokens": "patches", "kept_share": 0.2}},
    }
    config = read_run_config(VideoTextConfig, settings)
    assert config.workload.model.pruning == PruningConfig("patches", 0.2)
    settings["model"]["pruning"]["kept_shares"] = 0.2
    with pytest.raises(ValueError, match="did you mean 'kept_share'"):
        read_run_config(VideoTextConfig, settings)
