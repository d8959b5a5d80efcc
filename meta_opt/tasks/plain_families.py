"""Task families of one style: small networks in `meta_opt.tasks.models`.

The name of a family consists of data set, model and, for pre-trained models, the
adaptation method.
"""

import functools

from meta_opt.tasks import sources
from meta_opt.tasks.adaptation import finetuning, frozen_features, head, lora, pretrain
from meta_opt.tasks.models import (
    Model,
    bag_tower,
    classifier,
    contrastive,
    conv_tower,
    fusion,
    language_model,
    mlp_tower,
    patch_tower,
    sequence_tower,
    text_tower,
    video_tower,
)
from meta_opt.tasks.sources import LENGTH, LETTERS, WORDS
from meta_opt.tasks.splits import (
    NumpyArrays,
    Parts,
    count_classes,
    some_classes,
    split_examples,
)
from meta_opt.tasks.task import BuildTask, Task
from meta_opt.types import PyTree

_IMAGE = (16, 16, 3)
_MEL = (32, 24)


def _task(
    dataset: str,
    model: Model,
    arrays: NumpyArrays | Parts,
    *,
    train: int = 100_000,
    held_out: int = 300,
    batch: int = 32,
    horizons: tuple[int, int] = (30, 250),
    value: bool = True,
    feedback_every: int = 0,
    seed: int = 0,
) -> Task:
    """Returns a task on at most ``train`` examples; `make_task` sets its name."""
    return Task(
        name=dataset,
        dataset=dataset,
        init=model.init,
        loss=model.loss,
        splits=split_examples(arrays, train, held_out, seed),
        batch_size=batch,
        provides_loss=value,
        feedback_every=feedback_every,
        horizons=horizons,
    )


def _clip(width: int = 32, depth: int = 1) -> Model:
    return contrastive(
        patch_tower("image", _IMAGE, 4, width, depth),
        bag_tower("words", WORDS, (24, 2 * width)),
        width,
    )


def _conv(classes: int, widths: tuple[int, ...] = (12, 24), channels: int = 3) -> Model:
    return classifier("vision", conv_tower("image", channels, widths), classes)


def _vit(classes: int, width: int = 32, depth: int = 1) -> Model:
    tower = patch_tower("image", _IMAGE, 4, width, depth)
    return classifier("vision", tower, classes)


def _speech(classes: int, width: int = 32, depth: int = 1) -> Model:
    tower = sequence_tower("mel", *_MEL, width, depth, join=2)
    return classifier("audio", tower, classes)


def _speech_conv(classes: int) -> Model:
    # The spectrogram is treated as an image with one channel.
    return classifier("audio", conv_tower("picture", 1, (8, 16, 24)), classes)


def _with_mel_image(parts: Parts) -> Parts:
    a, b, c = ({**x, "picture": x["mel"][..., None]} for x in parts)
    return a, b, c


def _text_classifier(classes: int, width: int = 32) -> Model:
    return classifier("text", text_tower("text", LETTERS, LENGTH, width, 1), classes)


def _text_model(width: int = 32, depth: int = 1) -> Model:
    return language_model(LETTERS, LENGTH, width, depth)


def _image_text_classifier(classes: int) -> Model:
    return fusion(
        {
            "vision": conv_tower("image", 3, (12, 24)),
            "text": bag_tower("words", WORDS, (24, 32)),
        },
        32,
        classes,
    )


# Pre-trained models, each on a data set of the meta-training split.


@functools.cache
def _clip_start(data_dir: str | None) -> PyTree:
    return pretrain(_clip(), sources.emoji("google", data_dir))


@functools.cache
def _vit_start(data_dir: str | None) -> PyTree:
    return pretrain(_vit(9), sources.emoji("google", data_dir))


@functools.cache
def _conv_start(data_dir: str | None) -> PyTree:
    return pretrain(_conv(9), sources.emoji("google", data_dir))


@functools.cache
def _speech_start(data_dir: str | None) -> PyTree:
    arrays = some_classes(sources.klettres(data_dir), range(0, 8))
    return pretrain(_speech(8), arrays[0])


@functools.cache
def _writer_start(data_dir: str | None) -> PyTree:
    del data_dir
    arrays, _, _ = some_classes(sources.cldr(), range(0, 20))
    return pretrain(_text_model(), arrays, steps=800)


def _digits_mlp(data_dir: str | None) -> Task:
    del data_dir
    model = classifier("mlp", mlp_tower("image", (64, 32, 32)), 10)
    return _task(
        "digits",
        model,
        sources.digits(),
        train=400,
        batch=16,
        value=False,
        horizons=(30, 2000),
    )


def _digits_conv(data_dir: str | None) -> Task:
    del data_dir
    arrays = sources.digits()
    return _task(
        "digits", _conv(10, (12, 24), 1), arrays, train=800, seed=1, horizons=(30, 250)
    )


def _cancer_mlp(data_dir: str | None) -> Task:
    del data_dir
    model = classifier("mlp", mlp_tower("feature", (30, 48, 48, 48)), 2)
    return _task(
        "cancer",
        model,
        sources.cancer(),
        train=100,
        held_out=240,
        batch=16,
        horizons=(30, 2000),
    )


def _glyphs_mlp(data_dir: str | None) -> Task:
    del data_dir
    arrays = sources.glyphs()
    model = classifier(
        "mlp", mlp_tower("image", (256, 96, 64, 64, 64)), count_classes(arrays)
    )
    return _task("glyphs", model, arrays, train=700, horizons=(30, 800))


def _glyphs_conv(data_dir: str | None) -> Task:
    del data_dir
    arrays = sources.glyphs()
    model = _conv(count_classes(arrays), (8, 16, 32), 1)
    return _task("glyphs", model, arrays, batch=24, horizons=(30, 150), value=False)


def _emoji_vit(data_dir: str | None) -> Task:
    arrays = sources.emoji("twitter", data_dir)
    return _task("emoji", _vit(9), arrays, batch=24, horizons=(30, 400))


def _emoji_vit_finetune(data_dir: str | None) -> Task:
    model = finetuning(_vit(9), _vit_start(data_dir))
    arrays = sources.emoji("openmoji", data_dir)
    return _task("emoji", model, arrays, train=150, batch=24, horizons=(20, 400))


def _emoji_conv_finetune(data_dir: str | None) -> Task:
    model = finetuning(_conv(9), _conv_start(data_dir))
    arrays = sources.emoji("fluent", data_dir)
    return _task(
        "emoji",
        model,
        arrays,
        train=150,
        batch=24,
        feedback_every=10,
        horizons=(20, 200),
    )


def _emoji_clip(data_dir: str | None) -> Task:
    arrays = sources.emoji("fluent", data_dir)
    return _task(
        "emoji", _clip(), arrays, held_out=128, horizons=(30, 250), value=False
    )


def _emoji_clip_finetune(data_dir: str | None) -> Task:
    model = finetuning(_clip(), _clip_start(data_dir))
    arrays = sources.emoji("openmoji", data_dir)
    return _task("emoji", model, arrays, train=200, held_out=128, horizons=(20, 300))


def _emoji_clip_lora(data_dir: str | None) -> Task:
    model = lora(_clip(), _clip_start(data_dir))
    arrays = sources.emoji("twitter", data_dir)
    return _task("emoji", model, arrays, train=600, held_out=128, horizons=(20, 300))


def _emoji_clip_lora_few(data_dir: str | None) -> Task:
    model = lora(_clip(), _clip_start(data_dir), rank=8)
    arrays = sources.emoji("openmoji", data_dir)
    return _task("emoji", model, arrays, train=200, held_out=128, horizons=(20, 300))


def _emoji_head(data_dir: str | None) -> Task:
    arrays = sources.emoji("openmoji", data_dir)
    arrays = frozen_features(_clip(), _clip_start(data_dir), arrays)
    model = head(arrays["feature"].shape[1], 9)
    return _task(
        "emoji",
        model,
        arrays,
        train=250,
        held_out=400,
        batch=16,
        horizons=(30, 2000),
        feedback_every=20,
    )


def _emoji_vit_head(data_dir: str | None) -> Task:
    arrays = sources.emoji("twitter", data_dir)
    arrays = frozen_features(_vit(9), _vit_start(data_dir), arrays)
    model = head(arrays["feature"].shape[1], 9)
    return _task("emoji", model, arrays, train=250, held_out=600, horizons=(30, 1000))


def _emoji_fusion(data_dir: str | None) -> Task:
    arrays = sources.emoji("openmoji", data_dir)
    return _task(
        "emoji", _image_text_classifier(9), arrays, batch=24, horizons=(30, 250)
    )


def _klettres_transformer(data_dir: str | None) -> Task:
    arrays = sources.klettres(data_dir)
    model = _speech(count_classes(arrays))
    return _task("klettres", model, arrays, horizons=(30, 300))


def _klettres_conv(data_dir: str | None) -> Task:
    arrays = _with_mel_image(sources.klettres(data_dir))
    model = _speech_conv(count_classes(arrays))
    return _task("klettres", model, arrays, batch=16, value=False, horizons=(30, 150))


def _klettres_finetune(data_dir: str | None) -> Task:
    arrays = sources.klettres(data_dir)
    arrays = some_classes(arrays, range(8, count_classes(arrays)))
    model = finetuning(_speech(count_classes(arrays)), _speech_start(data_dir))
    return _task(
        "klettres",
        model,
        arrays,
        held_out=200,
        batch=16,
        horizons=(20, 300),
        feedback_every=10,
    )


def _cldr_reader(data_dir: str | None) -> Task:
    del data_dir
    arrays = sources.cldr()
    model = _text_classifier(count_classes(arrays))
    return _task("cldr", model, arrays, train=4000, horizons=(30, 400), value=False)


def _cldr_writer(data_dir: str | None) -> Task:
    del data_dir
    arrays = sources.cldr()
    return _task(
        "cldr", _text_model(), arrays, batch=16, held_out=200, horizons=(30, 300)
    )


def _cldr_writer_lora(data_dir: str | None) -> Task:
    arrays = sources.cldr()
    arrays = some_classes(arrays, range(20, count_classes(arrays)))
    model = lora(_text_model(), _writer_start(data_dir), rank=4)
    return _task(
        "cldr", model, arrays, train=2000, batch=16, held_out=200, horizons=(20, 400)
    )


def _clipart_conv(data_dir: str | None) -> Task:
    del data_dir
    arrays = sources.clipart()
    model = _conv(count_classes(arrays), (16, 32, 64))
    return _task("clipart", model, arrays, horizons=(50, 400))


def _clipart_vit_finetune(data_dir: str | None) -> Task:
    arrays = sources.clipart()
    model = finetuning(_vit(count_classes(arrays)), _vit_start(data_dir))
    return _task("clipart", model, arrays, train=600, horizons=(50, 300))


def _clipart_clip_finetune(data_dir: str | None) -> Task:
    model = finetuning(_clip(), _clip_start(data_dir))
    arrays = sources.clipart(with_words=True)
    return _task("clipart", model, arrays, held_out=128, horizons=(50, 300))


def _clipart_writer_lora(data_dir: str | None) -> Task:
    model = lora(_text_model(), _writer_start(data_dir), rank=4)
    return _task("clipart", model, sources.clipart(), horizons=(50, 400))


def _clipart_fusion(data_dir: str | None) -> Task:
    del data_dir
    arrays = sources.clipart(with_words=True)
    return _task(
        "clipart",
        _image_text_classifier(count_classes(arrays)),
        arrays,
        batch=24,
        horizons=(50, 300),
    )


def _clipart_head(data_dir: str | None) -> Task:
    arrays = frozen_features(_vit(9), _vit_start(data_dir), sources.clipart())
    model = head(arrays["feature"].shape[1], count_classes(arrays))
    return _task("clipart", model, arrays, train=800, horizons=(50, 600))


def _asterisk_transformer(data_dir: str | None) -> Task:
    arrays = sources.asterisk(data_dir)
    model = _speech(count_classes(arrays), width=48, depth=2)
    return _task("asterisk", model, arrays, train=1200, horizons=(50, 500))


def _tuxpaint_conv(data_dir: str | None) -> Task:
    arrays = sources.tuxpaint(data_dir)
    model = _conv(count_classes(arrays), (16, 24, 32))
    return _task("tuxpaint", model, arrays, horizons=(50, 300))


def _tuxpaint_vit_finetune(data_dir: str | None) -> Task:
    arrays = sources.tuxpaint(data_dir)
    model = finetuning(_vit(count_classes(arrays)), _vit_start(data_dir))
    return _task("tuxpaint", model, arrays, batch=24, horizons=(50, 400))


def _tuxpaint_clip_lora(data_dir: str | None) -> Task:
    model = lora(_clip(), _clip_start(data_dir), rank=8)
    return _task("tuxpaint", model, sources.tuxpaint(data_dir), horizons=(50, 400))


def _tuxpaint_trimodal(data_dir: str | None) -> Task:
    arrays = sources.tuxpaint(data_dir)
    towers = {
        "vision": conv_tower("image", 3, (12, 24)),
        "audio": sequence_tower("mel", *_MEL, 24, 1, join=4),
        "text": bag_tower("text", LETTERS, (24, 32)),
    }
    model = fusion(towers, 32, count_classes(arrays))
    return _task("tuxpaint", model, arrays, batch=24, horizons=(50, 300))


def _tuxpaint_reader(data_dir: str | None) -> Task:
    arrays = sources.tuxpaint_captions(data_dir)
    model = _text_classifier(count_classes(arrays), width=48)
    return _task("tuxpaint", model, arrays, horizons=(50, 500))


def _tuxpaint_writer(data_dir: str | None) -> Task:
    arrays = sources.tuxpaint_captions(data_dir)
    return _task(
        "tuxpaint", _text_model(40, depth=2), arrays, batch=24, horizons=(50, 500)
    )


def _tuxpaint_writer_lora(data_dir: str | None) -> Task:
    model = lora(_text_model(), _writer_start(data_dir), rank=4)
    arrays = sources.tuxpaint_captions(data_dir)
    return _task("tuxpaint", model, arrays, horizons=(50, 500))


def _tuxpaint_head(data_dir: str | None) -> Task:
    parts = sources.tuxpaint(data_dir)
    a, b, c = (frozen_features(_conv(9), _conv_start(data_dir), x) for x in parts)
    model = head(a["feature"].shape[1], count_classes(parts))
    return _task("tuxpaint", model, (a, b, c), horizons=(50, 800))


def _animated_video(data_dir: str | None) -> Task:
    arrays = sources.animated_emoji(data_dir)
    tower = video_tower("video", (8, 16, 16, 3), (12, 24), 32)
    model = classifier("video", tower, count_classes(arrays))
    return _task("animated", model, arrays, batch=16, horizons=(50, 200))


PLAIN_FAMILIES: dict[str, BuildTask] = {
    build.__name__.removeprefix("_"): build
    for build in (
        _digits_mlp,
        _digits_conv,
        _cancer_mlp,
        _glyphs_mlp,
        _glyphs_conv,
        _emoji_vit,
        _emoji_vit_finetune,
        _emoji_conv_finetune,
        _emoji_clip,
        _emoji_clip_finetune,
        _emoji_clip_lora,
        _emoji_clip_lora_few,
        _emoji_head,
        _emoji_vit_head,
        _emoji_fusion,
        _klettres_transformer,
        _klettres_conv,
        _klettres_finetune,
        _cldr_reader,
        _cldr_writer,
        _cldr_writer_lora,
        _clipart_conv,
        _clipart_vit_finetune,
        _clipart_clip_finetune,
        _clipart_writer_lora,
        _clipart_fusion,
        _clipart_head,
        _asterisk_transformer,
        _tuxpaint_conv,
        _tuxpaint_vit_finetune,
        _tuxpaint_clip_lora,
        _tuxpaint_trimodal,
        _tuxpaint_reader,
        _tuxpaint_writer,
        _tuxpaint_writer_lora,
        _tuxpaint_head,
        _animated_video,
    )
}
"""Functions from a data folder to a task, by family name."""
