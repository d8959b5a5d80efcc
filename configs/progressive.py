"""Progressive few-shot fine-tuning: ``openclipart_small``, ``openclipart_large``.

``openclipart_reduced`` trains the large model in an hour on two cores,
``openclipart_paligemma`` trains PaliGemma; ``smoke`` is a quick check.
"""

import ml_collections

from configs import common


def openclipart_small() -> ml_collections.ConfigDict:
    """All parameters of nano-generative, from scratch, at 100 pixels.

    From a trained generative model: ``--config.model.weights=EXPORTED``.
    """
    config = common.image_text_config(num_steps=0, batch_size=1)
    for section in ("num_steps", "optimizer", "export"):
        del config[section]
    config.study = dict(folder="data/few_shot/openclipart", width=100)
    config.model.weights = ""
    config.model.size = "nano-generative"
    config.model.loss = "captioning"
    config.data.eval_batch_size = 32
    config.loop.evaluate_at_start = False
    config.optimizers = dict(
        learned=dict(name="learned", stacked=common.STACKED),
        adamw=dict(name="adamw"),
        # Placeholder for tuned settings: --config.optimizers.adamw_tuned.KEY=VALUE.
        adamw_tuned=dict(name="adamw", learning_rate=3e-4, weight_decay=1e-3),
    )
    return config


def openclipart_large() -> ml_collections.ConfigDict:
    """All parameters of the model of ``configs/pretrain.py:answers``.

    For other widths: ``--config.study.width=200``, ``400``. For adapters:
    ``--config.model.trainable=lora`` and a pattern as in `openclipart_paligemma`.
    """
    config = openclipart_small()
    config.model.weights = "runs/answers/model"
    config.model.processor = "data/encoders/minilm"
    config.model.remat = "none"
    return config


def openclipart_reduced() -> ml_collections.ConfigDict:
    """The same without training the image tower, in larger batches."""
    config = openclipart_large()
    config.batch_size = 4
    config.model.trainable = "layers"
    config.model.cache_features = True
    config.data.max_evaluated = 60
    return config


def openclipart_dynamic() -> ml_collections.ConfigDict:
    """Adaptive phases: larger images and more examples where they pay off.

    The prices of a point of accuracy, an example and a device hour are made up; set
    your own.
    """
    config = openclipart_reduced()
    config.study.width = 200
    config.prices = dict(currency="USD", device_hour=2.0)
    config.policies = dict(
        dynamic=dict(
            widths=(100, 200), widen_below=3.0, point_value=5.0, example_price=0.05
        )
    )
    return config


def openclipart_paligemma() -> ml_collections.ConfigDict:
    """Adapters on PaliGemma at 200 pixels; ``--config.model.weights=FOLDER``."""
    config = openclipart_small()
    config.study.width = 200
    config.study.export = "adapters"
    config.model.weights = "paligemma-3b-pt-224"
    config.model.dtype = "bfloat16"
    config.model.param_dtype = "bfloat16"
    config.model.trainable = "lora"
    config.model.lora.pattern = (
        r"layers/(attention/(query|key|value|out)|mlp/(up|gate|down))/kernel$"
    )
    config.model.lora.rank = 16
    config.optimizers.adamw_tuned = dict(
        name="adamw", learning_rate=1e-4, weight_decay=1e-3
    )
    config.mesh.fsdp = -1
    return config


def smoke() -> ml_collections.ConfigDict:
    """Two phases of the bundled drawings, one epoch each: a quick check."""
    config = openclipart_small()
    config.study = dict(
        folder="runs/few_shot/smoke", width=32, variant="smoke", phases=2, epochs=1
    )
    config.batch_size = 4
    config.optimizers = dict(
        learned=dict(name="learned", stacked=common.STACKED),
        adamw=dict(name="adamw"),
    )
    return config


get_config = common.variants(
    openclipart_small,
    openclipart_large,
    openclipart_reduced,
    openclipart_dynamic,
    openclipart_paligemma,
    smoke,
)
