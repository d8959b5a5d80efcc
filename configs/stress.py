"""Stress tests of image classifiers: ``reduced``, ``full``.

``smoke`` and ``smoke_generative`` are quick checks. Add trained models with
``--config.models.NAME=FOLDER``.
"""

import ml_collections

from configs import common, convnets

_SYNONYMS = {
    "arrow": "pointer",
    "bird": "feathered animal",
    "building": "house",
    "celebration": "festivity",
    "clothing": "garment",
    "computer hardware": "computer part",
    "dessert": "sweet dish",
    "drink": "beverage",
    "insect": "bug",
    "mammal": "furry animal",
    "map": "chart of land",
    "music": "musical instrument",
    "office supply": "stationery",
    "person": "human",
    "plant": "flora",
    "road sign": "traffic sign",
    "smiley": "happy face",
    "sport": "athletics",
    "tool": "implement",
    "vehicle": "means of transport",
}
_DISTRACTORS = (
    *("cloud", "star", "mineral", "weapon", "logo", "letter", "number", "planet"),
    *("toy", "coin", "jewel", "kitchenware", "medicine", "robot", "monster", "font"),
)


def full() -> ml_collections.ConfigDict:
    """All corruptions and prompts; both learners with three seeds at three widths."""
    config = ml_collections.ConfigDict()
    config.data = dict(folder="data/few_shot/openclipart")
    config.tests = dict(
        synonyms=_SYNONYMS, distractors=_DISTRACTORS, distractor_counts=(4, 16)
    )
    config.shift = dict(
        folder="data/few_shot/tuxpaint",
        variant="tuxpaint",
        name="Tux Paint",
        labels=dict(
            clothes="clothing", people="person", plants="plant", vehicles="vehicle"
        ),
    )
    config.training = dict(
        train_px=(100, 200, 400), seeds=(0, 1, 2), epochs=10, min_steps=200
    )
    config.models = {}
    config.learners = {"efficientnet_lite0": _lite0(), "nano-generative": _nano()}
    return config


def reduced() -> ml_collections.ConfigDict:
    """One seed at one width, short runs."""
    config = full()
    config.training = dict(
        train_px=(100,), seeds=(0,), epochs=4, min_steps=60, max_steps=840
    )
    config.tests.shuffles = 1
    return config


def smoke() -> ml_collections.ConfigDict:
    """A few steps of EfficientNet-Lite0 on bundled drawings: a quick check."""
    config = _smoke()
    del config.learners["nano-generative"]
    return config


def smoke_generative() -> ml_collections.ConfigDict:
    """The same for nano-generative and prompts, which take longer to compile."""
    config = _smoke()
    del config.learners["efficientnet_lite0"]
    return config


def _smoke() -> ml_collections.ConfigDict:
    config = reduced()
    config.data = dict(folder="runs/few_shot/smoke", variant="smoke", per_class=2)
    config.shift = {}
    config.tests = dict(
        widths=(32, 64),
        corruptions=("contrast",),
        synonyms={"food": "meals"},
        distractors=("clouds", "stars"),
        distractor_counts=(2,),
        shuffles=1,
        templates=("question",),
        answers="likelihood",
    )
    # All runs have the same length and batch size, so that each step compiles once.
    config.training = dict(
        train_px=(32,),
        shots=(4,),
        label_noise=(0.2,),
        batch_sizes=(),
        epochs=1,
        min_steps=2,
        max_steps=2,
    )
    for learner in config.learners.values():
        learner.optimizer = dict(name="adam")
        learner.batch_size = 8
    config.learners.efficientnet_lite0.pictures.augmented_views = 1
    return config


def _lite0() -> ml_collections.ConfigDict:
    """EfficientNet-Lite0; the last stage and a head are trained."""
    config = convnets.get_config("efficientnet_lite0")
    for key in ("num_steps", "export"):
        del config[key]
    del config.pictures["task"]
    del config.pictures["feature_cache_dir"]
    config.pictures.augmented_views = 4
    config.batch_size = 16
    config.optimizer = {}
    config.loop.evaluate_at_start = False
    del config.loop["eval_every"]
    config.loop.progress = False
    return config


def _nano() -> ml_collections.ConfigDict:
    """nano-generative; all parameters are trained from scratch."""
    config = common.image_text_config(num_steps=0, batch_size=16)
    for key in ("num_steps", "export"):
        del config[key]
    config.model.weights = ""
    config.model.size = "nano-generative"
    config.model.loss = "captioning"
    config.data.eval_batch_size = 32
    config.loop.evaluate_at_start = False
    config.loop.progress = False
    return config


get_config = common.variants(reduced, full, smoke, smoke_generative)
