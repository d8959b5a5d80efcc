"""Task families in many styles of model code, initialisation and adaptation.

A table of `StyleFamily` on the data sets of meta-training. The name of a family
consists of data set, model and, for pre-trained models, the adaptation method.
"""

import dataclasses

from meta_opt.tasks.sources import WORDS
from meta_opt.tasks.style_family import DATA, Adaptation, StyleFamily
from meta_opt.tasks.style_models import Goal, LowRank
from meta_opt.tasks.style_nets import Body
from meta_opt.tasks.styles import Style

STYLE_DATASETS = tuple(dict.fromkeys(name.split("_")[0] for name in DATA))
"""Data sets of these families, all for meta-training."""

_NO_PATH = "^$"
"""A pattern that matches no path."""

_TORCH = Style(
    init="torch",
    out_in=True,
    norm="none",
    activation="relu",
    leaves=("weight", "bias"),
    blocks="list",
    embedding_std=1.0,
)
_TORCH_VIT = dataclasses.replace(
    _TORCH,
    init="xavier_uniform",
    norm="layer",
    post_norm=True,
    fused_qkv=True,
    positions="sinusoidal",
    pool="cls",
    dropout=0.1,
)
_TIMM_VIT = Style(
    init="truncated_02",
    out_in=True,
    fused_qkv=True,
    pool="cls",
    leaves=("weight", "bias"),
    blocks="tuple",
    parts=("trunk", "fc"),
)
_GPT = Style(
    init="normal_02",
    fused_qkv=True,
    tied=True,
    residual_scaling=True,
    parts=("wte", "lm"),
)
_LLAMA = Style(
    init="normal_02",
    out_in=True,
    bias=False,
    norm="rms",
    activation="silu",
    gated_mlp=True,
    positions="none",
    leaves=("w", "_"),
    blocks="list",
    parts=("model", "out"),
)
_RESNET = Style(
    init="he_normal",
    norm="group",
    activation="silu",
    leaves=("k", "c"),
    parts=("net", "cls"),
)
_BODY_GPT = Body("transformer", "text", (48, 48), causal=True)
_BODY_LLAMA = Body("transformer", "text", (40, 40), causal=True, heads=2)

STYLE_FAMILIES: dict[str, StyleFamily] = {
    # Tables.
    "style_wine_mlp": StyleFamily(
        "wine",
        Body("mlp", "feature", (32, 32)),
        Style("torch", 1.0, True, norm="none", activation="tanh", leaves=None),
        train=50,
        held_out=60,
        batch=8,
        horizons=(30, 1500),
    ),
    "style_diabetes_residual": StyleFamily(
        "diabetes",
        Body("mlp", "feature", (32, 32), residual=True),
        Style("he_normal", activation="silu", zero_head=True, blocks="list"),
        Goal("regress", "target", scale=100.0),
        outputs=1,
        train=200,
        held_out=140,
        batch=16,
        horizons=(30, 800),
        value=False,
    ),
    "style_cancer_binary": StyleFamily(
        "cancer",
        Body("mlp", "feature", (24, 24, 24)),
        Style(norm="rms", bias=False, blocks="tuple"),
        Goal("sigmoid", scale=0.01),
        outputs=1,
        train=80,
        held_out=240,
        batch=4,
        horizons=(50, 1500),
    ),
    "style_friedman_mlp": StyleFamily(
        "friedman",
        Body("mlp", "feature", (64, 64, 64)),
        Style("xavier_normal", 0.3, norm="none", activation="silu", leaves=None),
        Goal("regress", "target"),
        outputs=1,
        batch=256,
        horizons=(50, 1000),
    ),
    # Digits of 8 x 8.
    "style_digits_residual": StyleFamily(
        "digits",
        Body("mlp", widths=(64, 64, 64), residual=True),
        Style("he_uniform", activation="relu", post_norm=True, residual_scaling=True),
        Goal(mixup=True),
        train=600,
        batch=128,
        horizons=(30, 500),
    ),
    "style_digits_mixer": StyleFamily(
        "digits",
        Body("mixer", widths=(32, 32), patch=2),
        Style("lecun_uniform", blocks="tuple", leaves=("kernel", "bias")),
        Goal(smoothing=0.1),
        train=300,
        batch=64,
        horizons=(30, 300),
    ),
    "style_digits_gru": StyleFamily(
        "digits",
        Body("recurrent", widths=(40,), patch=2, cell="gru"),
        Style("orthogonal", norm="none", out_in=True),
        Goal("sigmoid"),
        train=600,
        horizons=(40, 500),
        value=False,
    ),
    "style_digits_vit": StyleFamily(
        "digits",
        Body("transformer", widths=(32, 32), patch=2),
        _TORCH_VIT,
        Goal(smoothing=0.1, shift=1),
        horizons=(40, 300),
    ),
    # Glyphs of 16 x 16, by fonts.
    "style_glyphs_conv": StyleFamily(
        "glyphs",
        Body("conv", widths=(12, 24, 32), stride=2),
        dataclasses.replace(_TORCH, pool="flatten"),
        batch=64,
        horizons=(40, 400),
    ),
    "style_glyphs_autoencoder": StyleFamily(
        "glyphs",
        Body("mlp", widths=(96, 20, 96)),
        Style("xavier_uniform", norm="none", activation="tanh", leaves=("W", "b")),
        Goal("regress", "image", noise=0.2),
        outputs=256,
        batch=24,
        horizons=(40, 800),
    ),
    "style_glyphs_resnet_last_block": StyleFamily(
        "glyphs_rest",
        Body("conv", widths=(16, 32), residual=True, stride=2),
        _RESNET,
        adaptation=Adaptation("glyphs_first", trained=r"^net\.1"),
        train=300,
        batch=16,
        horizons=(30, 300),
        feedback_every=10,
    ),
    "style_glyphs_vit_lora": StyleFamily(
        "glyphs_rest",
        Body("transformer", widths=(40, 40)),
        _TIMM_VIT,
        adaptation=Adaptation(
            "glyphs_first",
            trained=_NO_PATH,
            low_rank=LowRank(
                r"\.(qkv|o)\.weight",
                rank=16,
                alpha=16.0,
                names=("lora_A.weight", "lora_B.weight"),
                transposed=True,
            ),
        ),
        horizons=(30, 300),
    ),
    "style_glyphs_head": StyleFamily(
        "glyphs_rest",
        Body("conv", widths=(16, 32, 48), stride=2),
        dataclasses.replace(_RESNET, zero_head=True),
        adaptation=Adaptation(
            "glyphs_first", optimizer="adamw_heavy_decay", frozen=True
        ),
        batch=256,
        horizons=(50, 1500),
    ),
    # Photos.
    "style_photos_field": StyleFamily(
        "photos_pixels",
        Body("mlp", "feature", (64, 64, 64)),
        Style("he_uniform", norm="none", activation="relu", blocks="list"),
        Goal("regress", "target", scale=10.0),
        outputs=3,
        batch=256,
        horizons=(50, 1000),
    ),
    "style_photos_denoise": StyleFamily(
        "photos_patches",
        Body("mixer", widths=(48,), patch=2),
        Style("normal_02", norm="rms", activation="silu", bias=False),
        Goal("regress", "image", noise=0.3, flip=True),
        outputs=192,
        horizons=(40, 500),
    ),
    # Names of countries and languages in 61 languages, as letters.
    "style_cldr_gpt": StyleFamily(
        "cldr", _BODY_GPT, _GPT, Goal("language"), batch=32, horizons=(30, 300)
    ),
    "style_cldr_llama": StyleFamily(
        "cldr",
        _BODY_LLAMA,
        dataclasses.replace(_LLAMA, init="lecun_normal", gain=2.0, embedding_std=1.0),
        Goal("language", scale=100.0),
        batch=16,
        train=3000,
        horizons=(30, 400),
        value=False,
    ),
    "style_cldr_recurrence": StyleFamily(
        "cldr",
        Body("recurrent", "text", (64, 64), cell="linear", residual=True),
        Style("lecun_normal", norm="rms", bias=False, embedding_std=0.1),
        Goal("language", smoothing=0.05),
        batch=48,
        horizons=(40, 300),
    ),
    "style_cldr_bag": StyleFamily(
        "cldr",
        Body("bag", "text", (32, 64)),
        dataclasses.replace(_TORCH, leaves=None),
        Goal(scale=0.01),
        batch=256,
        horizons=(40, 800),
    ),
    "style_cldr_lstm": StyleFamily(
        "cldr",
        Body("recurrent", "text", (48,), cell="lstm"),
        dataclasses.replace(_TORCH, dropout=0.1),
        train=5000,
        batch=64,
        horizons=(40, 400),
    ),
    "style_cldr_gpt_lora": StyleFamily(
        "cldr_rest",
        _BODY_GPT,
        _GPT,
        Goal("language"),
        adaptation=Adaptation(
            "cldr_first",
            steps=500,
            trained=_NO_PATH,
            new_head=False,
            low_rank=LowRank(r"(qkv|o|up|down)\.w$", 4, 32.0, uniform=False),
        ),
        train=1000,
        batch=16,
        horizons=(30, 400),
    ),
    "style_descriptions_llama": StyleFamily(
        "descriptions",
        Body("transformer", "text", (48,), causal=True),
        dataclasses.replace(_LLAMA, positions="sinusoidal", tied=True),
        Goal("language"),
        held_out=200,
        batch=16,
        horizons=(30, 400),
    ),
    # From names to prose of twice the length: the model has no position embeddings.
    "style_descriptions_llama_lora": StyleFamily(
        "descriptions",
        _BODY_LLAMA,
        _LLAMA,
        Goal("language"),
        adaptation=Adaptation(
            "cldr_first",
            optimizer="lion",
            steps=500,
            trained=r"\.n[12]\.",
            new_head=False,
            low_rank=LowRank(r"\.(q|v|gate|down)\.w$", 1, 8.0, names=("down", "up")),
        ),
        held_out=200,
        batch=16,
        horizons=(30, 400),
    ),
    # Emoji of 16 x 16; nine categories.
    "style_emoji_resnet": StyleFamily(
        "emoji_twitter",
        Body("conv", widths=(16, 24, 48), residual=True, stride=2),
        dataclasses.replace(_RESNET, out_in=True, residual_scaling=True),
        Goal(flip=True, shift=2),
        horizons=(40, 300),
    ),
    "style_emoji_vit_finetune": StyleFamily(
        "emoji_openmoji",
        Body("transformer", widths=(48, 48)),
        dataclasses.replace(_TIMM_VIT, dropout=0.1, embedding_std=0.1),
        Goal(flip=True, smoothing=0.1),
        adaptation=Adaptation("emoji_google", optimizer="momentum"),
        train=200,
        batch=24,
        horizons=(20, 300),
    ),
    "style_emoji_conv_finetune": StyleFamily(
        "emoji_fluent",
        Body("conv", widths=(16, 32, 32), stride=2),
        dataclasses.replace(_TORCH, norm="layer"),
        Goal(noise=0.1),
        adaptation=Adaptation("emoji_google", optimizer="adamw_heavy_decay"),
        batch=64,
        horizons=(20, 300),
        feedback_every=20,
    ),
    "style_emoji_pairs": StyleFamily(
        "emoji_fluent",
        Body("conv", widths=(16, 32, 48), stride=2),
        Style("he_normal", norm="layer", activation="gelu", embedding_std=0.1),
        Goal("contrastive"),
        second=Body("bag", "words", (32, 48), vocabulary=WORDS),
        outputs=32,
        held_out=128,
        batch=64,
        horizons=(30, 300),
        value=False,
    ),
    "style_emoji_pairs_lora": StyleFamily(
        "emoji_openmoji",
        Body("transformer", widths=(40, 40)),
        dataclasses.replace(_TIMM_VIT, init="xavier_uniform", bias=False),
        Goal("contrastive"),
        second=Body("bag", "words", (32, 48), vocabulary=WORDS),
        outputs=32,
        adaptation=Adaptation(
            "emoji_google",
            trained=r"^(proj|t$)",
            new_head=False,
            low_rank=LowRank(
                r"(^other|\.(qkv|up|down))\..*weight",
                rank=4,
                alpha=4.0,
                transposed=True,
                root=True,
            ),
        ),
        train=500,
        held_out=128,
        batch=48,
        horizons=(30, 300),
    ),
    "style_emoji_gated": StyleFamily(
        "emoji_openmoji",
        Body("conv", widths=(8, 16, 32), stride=2),
        dataclasses.replace(_TORCH, init="he_normal", norm="group"),
        Goal(fusion="gated"),
        second=Body("bag", "words", (32,), vocabulary=WORDS),
        batch=48,
        horizons=(40, 300),
    ),
    "style_emoji_attention_lora": StyleFamily(
        "emoji_twitter",
        Body("transformer", widths=(32, 32)),
        dataclasses.replace(_TIMM_VIT, pool="mean", out_in=False, blocks="list"),
        Goal(fusion="attention"),
        second=Body("bag", "words", (32, 32), vocabulary=WORDS),
        adaptation=Adaptation(
            "emoji_google",
            trained=_NO_PATH,
            low_rank=LowRank(
                r"weight$", 16, 8.0, names=("lora_down", "lora_up"), uniform=False
            ),
        ),
        train=600,
        horizons=(30, 300),
    ),
    # Speech, as frames of 24 mel bands.
    "style_klettres_conv": StyleFamily(
        "klettres",
        Body("conv", "mel", (8, 16, 32), stride=2),
        Style("lecun_normal", 0.3, activation="tanh", leaves=None, pool="flatten"),
        batch=16,
        horizons=(30, 400),
    ),
    "style_klettres_lstm": StyleFamily(
        "klettres",
        Body("recurrent", "mel", (48,), patch=2, cell="lstm"),
        Style("xavier_uniform", out_in=True, norm="none", blocks="tuple"),
        batch=32,
        horizons=(40, 400),
        feedback_every=20,
    ),
    "style_klettres_lora": StyleFamily(
        "klettres_rest",
        Body("transformer", "mel", (48, 48), patch=2),
        Style("torch", out_in=True, activation="relu", leaves=("weight", "bias")),
        adaptation=Adaptation(
            "klettres_first",
            trained=_NO_PATH,
            low_rank=LowRank(
                r"\.[qv]\.weight",
                rank=4,
                alpha=16.0,
                names=("lora_A.weight", "lora_B.weight"),
                transposed=True,
            ),
        ),
        held_out=200,
        batch=16,
        horizons=(30, 300),
    ),
    "style_klettres_last_block": StyleFamily(
        "klettres_rest",
        Body("transformer", "mel", (48, 48), patch=4),
        Style("xavier_normal", norm="rms", positions="sinusoidal", fused_qkv=True),
        Goal("sigmoid"),
        adaptation=Adaptation("klettres_first", trained=r"^body\.(h\.1|n)"),
        held_out=200,
        batch=16,
        horizons=(30, 300),
    ),
}
"""Functions from a data folder to a task, by family name."""

STYLE_TRAIN: tuple[str, ...] = tuple(STYLE_FAMILIES)
"""Names of these families: a meta-training set that covers common coding styles."""
