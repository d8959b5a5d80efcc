"""Fine-tuning with several losses that MELTR combines, on clips with texts.

On animated emoji: ``univl_retrieval``, ``univl_captioning``, ``univl_sentiment``,
``violet_question_answering``, ``all_in_one_retrieval``; ``smoke`` is a quick check.
On official data sets, whose files you provide: ``msrvtt_retrieval``,
``youcook2_captioning``, ``tgif_action``, ``msvd_question_answering``,
``mosi_sentiment``, with ``--config.clips.official.annotations=FOLDER`` and
``--config.clips.official.media=FOLDER``.
Other combinations of the losses: ``--config.meta_loss.combiner=equal``.
"""

import ml_collections

from configs import common


def video_text(family: str, task: str, published: str) -> ml_collections.ConfigDict:
    """A task under the learned optimizer, with the published combiner."""
    config = common.run_config(num_steps=300, batch_size=16)
    config.family = family
    config.task = task
    config.loop.log_every = 20
    config.clips = dict(
        encoders=dict(image="efficientnet_lite0", text="minilm"),
        # Number of last layers that train (0 for all); the others are run once.
        trainable_layers=dict(image=1, text=1),
        feature_cache_dir="runs/features",
    )
    config.model.fusion = dict(width=128, depth=1, mlp_width=512, remat="none")
    config.model.captioner = {}
    config.model.masking = {}
    config.model.lora = dict(pattern=common.ENCODER_KERNELS, alpha=8.0)
    config.meta_loss = dict(
        published=published, combiner="meltr", network={}, hypergradient={}
    )
    return config


def univl_retrieval() -> ml_collections.ConfigDict:
    """Eight losses; the primary one ranks pairs by the cross encoder."""
    return video_text("univl", "retrieval", "univl")


def univl_captioning() -> ml_collections.ConfigDict:
    """The same losses; the primary one is the decoder's."""
    return video_text("univl", "captioning", "univl")


def univl_sentiment() -> ml_collections.ConfigDict:
    """The same losses, and squared error of the sentiment."""
    return video_text("univl", "sentiment", "univl")


def violet_question_answering() -> ml_collections.ConfigDict:
    """Matching, masked text, masked visual tokens, and answers."""
    return video_text("violet", "question_answering", "violet_qa")


def all_in_one_retrieval() -> ml_collections.ConfigDict:
    """Contrastive, masked language, matching."""
    return video_text("all_in_one", "retrieval", "all_in_one")


def official(config: ml_collections.ConfigDict, source: str) -> None:
    """Replaces the emoji by an official data set."""
    config.clips.source = source
    # To be given on the command line.
    config.clips.official = dict(annotations="", media="")
    config.clips.image_size = 128
    config.clips.text_length = 24
    config.clips.question_length = 24
    config.num_steps = 3000
    config.loop.eval_every = 500


def msrvtt_retrieval() -> ml_collections.ConfigDict:
    """Trains on the 7,010 clips of "7k", and tests on the 1k test set."""
    config = univl_retrieval()
    official(config, "msrvtt_7k")
    return config


def youcook2_captioning() -> ml_collections.ConfigDict:
    """Segments; of whole videos with ``clips.official.frames_per_second``."""
    config = univl_captioning()
    official(config, "youcook2")
    config.clips.official.frames_per_second = 0.0
    return config


def tgif_action() -> ml_collections.ConfigDict:
    """Questions with five options each."""
    config = violet_question_answering()
    official(config, "tgif_qa_action")
    return config


def msvd_question_answering() -> ml_collections.ConfigDict:
    """Questions whose answers are among those of the training split."""
    config = violet_question_answering()
    official(config, "msvd_qa")
    return config


def mosi_sentiment() -> ml_collections.ConfigDict:
    """Scores from -3 to 3 of spoken segments."""
    config = univl_sentiment()
    official(config, "cmu_mosi")
    return config


def smoke() -> ml_collections.ConfigDict:
    """A few steps on few clips."""
    config = univl_retrieval()
    config.num_steps = 4
    config.batch_size = 4
    config.loop.eval_every = 2
    config.loop.log_every = 1
    config.loop.checkpoint_every = 2
    config.clips.max_examples = 24
    config.clips.codebook_size = 8
    config.clips.feature_cache_dir = ""
    config.meta_loss.interval = 2
    config.optimizer.name = "hand_designed"
    return config


get_config = common.variants(
    univl_retrieval,
    univl_captioning,
    univl_sentiment,
    violet_question_answering,
    all_in_one_retrieval,
    smoke,
    msrvtt_retrieval,
    youcook2_captioning,
    tgif_action,
    msvd_question_answering,
    mosi_sentiment,
)
