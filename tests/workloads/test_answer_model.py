"""A model that answers in words, of pretrained parts: from settings to an export."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from own_data import CASES, COLOURS, write_folder, write_pictures
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

import meta_opt
from configs import pretrain, progressive
from meta_opt.data.catalog.encoder_weights import ENCODER_WEIGHTS, license_of
from meta_opt.data.pipeline import PipelineConfig
from meta_opt.data.preprocessing.folder_tokenizer import FolderTokenizer
from meta_opt.data.sources.few_shot.files import answer_of
from meta_opt.finetuning.run_config import read_run_config
from meta_opt.finetuning.runs import finetune
from meta_opt.metrics.category_answers import CategoryParser
from meta_opt.models import generative, huggingface, pretrained
from meta_opt.models.conv_tower import CONVNETS
from meta_opt.models.decoder import DecoderConfig
from meta_opt.models.encoders import EfficientNet, MiniLM, MiniLMConfig
from meta_opt.models.generative import Generative, GenerativeConfig
from meta_opt.models.lora import LoRAConfig
from meta_opt.models.parameters import STORED, by_path
from meta_opt.predictor.backend import VisionTextBackend
from meta_opt.studies.progressive.study import read_study
from meta_opt.tree_paths import leaves_by_path
from meta_opt.workloads import pretrained_parts
from meta_opt.workloads.cached_features import (
    FeatureSource,
    check_frozen,
    tower_features,
)
from meta_opt.workloads.export import ExportConfig
from meta_opt.workloads.image_text import ImageTextConfig
from meta_opt.workloads.image_text_architecture import ModelConfig, tokenizer_folder
from meta_opt.workloads.image_text_export import write
from meta_opt.workloads.image_text_model import build_model, model_structure
from meta_opt.workloads.image_text_preprocessing import read_preprocessing
from meta_opt.workloads.pretrained_parts import PartsConfig

SIZE = "answers-of-tests"
PROMPT = "which colour?"
ANSWERS = [answer_of(colour) for colour in COLOURS]


@pytest.fixture(scope="module", autouse=True)
def small_size():
    """A size that is trained in a second, with the parts of the large one."""
    decoder = DecoderConfig(
        width=24, depth=1, heads=2, head_width=12, mlp_width=48, vocab_size=128
    )
    small = GenerativeConfig(
        image_size=16, tower="efficientnet_nano", decoder=decoder, patch_size=8
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(generative.GENERATIVE_SIZES, SIZE, small)
        patch.setitem(pretrained_sizes(), SIZE, small)
        yield


def pretrained_sizes():
    from meta_opt.workloads import image_text_architecture

    return image_text_architecture._SIZES


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    """A WordPiece tokenizer as BERT's, of the words that are used here."""
    folder = tmp_path_factory.mktemp("tokenizer")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "which", "colour", "category"]
    words += [*COLOURS, *'{}":?-', "un", "##seen"]
    tokenizer = Tokenizer(
        models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(words[:4])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "BertTokenizer", "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return str(folder)


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    folder = write_pictures(tmp_path_factory.mktemp("data") / "pictures").parent
    lines = [
        {"image": f"{i:02}.png", "prompt": PROMPT, "target": answer_of(colour)}
        for i, (colour, _, _) in enumerate(CASES)
    ]
    path = folder / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


def model_config(processor, **changes):
    given = {"weights": "", "processor": processor, "size": SIZE, "loss": "captioning"}
    return ModelConfig(**{**given, **changes})


def built(config):
    module = build_model(config, read_preprocessing(config, 12, 8))
    return module, module.merge(module.params, module.frozen)


# What WordPiece leaves out


def test_answers_come_back_as_json(processor):
    tokenizer = FolderTokenizer(processor, 0)
    (ids,) = tokenizer.pieces([answer_of("red")])
    (text,) = tokenizer.decode([ids])
    assert text == '{"category": "red"}'
    assert CategoryParser(tuple(COLOURS))(text).well_formed
    rows = tokenizer.decode(tokenizer.pieces(["unseen-colour? red"]))
    assert rows == ["unseen-colour? red"]


# The parts


@pytest.fixture
def encoders(monkeypatch):
    """Small random ones in the place of those that are prepared."""
    made = {
        "efficientnet_nano": EfficientNet(
            CONVNETS["efficientnet_nano"], rngs=nnx.Rngs(5)
        ),
        "minilm": MiniLM(
            MiniLMConfig(
                vocab_size=21, text_length=4, width=24, depth=1, heads=2, mlp_width=8
            ),
            rngs=nnx.Rngs(6),
        ),
    }
    monkeypatch.setattr(pretrained_parts, "encoder_folder", lambda name, root: name)
    monkeypatch.setattr(pretrained_parts, "load_encoder", lambda name, _: made[name])
    return made


def test_parts_begin_as_they_were_trained(encoders):
    parts = PartsConfig("efficientnet_nano", "minilm")
    made = dataclasses.replace(
        generative.GENERATIVE_SIZES[SIZE],
        decoder=dataclasses.replace(
            generative.GENERATIVE_SIZES[SIZE].decoder, vocab_size=21
        ),
    )
    model = parts.build(parts.architecture(made), seed=1)
    plain = by_path(Generative(made, rngs=nnx.Rngs(1)), STORED)
    tower = by_path(encoders["efficientnet_nano"], STORED)
    taken = {f"vision/encoder/{k}": v for k, v in tower.items()}
    taken["decoder/tokens/embedding"] = encoders["minilm"].embedding
    found = by_path(model, STORED)
    assert found.keys() == plain.keys() > taken.keys()
    for path, variable in found.items():
        expected = taken.get(path, plain[path])
        np.testing.assert_allclose(variable[...], expected[...], atol=1e-6)


def test_parts_of_another_shape_are_errors(encoders):
    with pytest.raises(ValueError, match=r"tokens/embedding has shape \(21, 24\)"):
        PartsConfig(text="minilm").build(generative.GENERATIVE_SIZES[SIZE])
    with pytest.raises(ValueError, match="not for a model of tower='efficientnet_na"):
        PartsConfig("efficientnet_lite0").architecture(
            generative.GENERATIVE_SIZES[SIZE]
        )
    with pytest.raises(ValueError, match=r"parts.text='bert' must be 'minilm'"):
        PartsConfig(text="bert")


@pytest.mark.slow
def test_a_siglip_folder_is_the_tower(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "siglip")
    parts = PartsConfig(str(folder))
    model = parts.build(parts.architecture(generative.GENERATIVE_SIZES[SIZE]))
    assert model.config.tower == "vit" and model.config.image_size == 16
    image = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
    expected = huggingface.load(folder).vision.features(jax.numpy.asarray(image))
    found = model.vision.features(jax.numpy.asarray(image))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert model.prefix(image).x.shape == (1, 4, 24)
    clip = dataclasses.replace(huggingface.read_config(folder), class_token=True)
    monkeypatch.setattr(huggingface, "read_config", lambda folder: clip)
    with pytest.raises(ValueError, match="is a CLIP folder"):
        parts.architecture(generative.GENERATIVE_SIZES[SIZE])


def test_what_trains(processor):
    def trained(which):
        config = model_config(processor, trainable=which)
        structure = model_structure(config, read_preprocessing(config, 12, 8))
        return set(leaves_by_path(structure.params))

    everything, decoder, layers = map(trained, ("all", "decoder", "layers"))
    tower = {p for p in everything if p.startswith("vision/encoder")}
    assert tower and everything - decoder == tower
    assert decoder - layers == {"decoder/tokens/embedding"}
    assert {"vision/projection/kernel", "decoder/norm/scale"} <= layers


# A run that keeps features


@pytest.fixture(scope="module")
def kept(processor, questions, tmp_path_factory):
    """A run of the configuration that users name, small."""
    folder = tmp_path_factory.mktemp("kept")
    config = pretrain.get_config("answers")
    config.num_steps, config.batch_size = 40, 8
    config.loop.eval_every = config.loop.checkpoint_every = 40
    config.loop.log_every = 1
    config.optimizer.name, config.optimizer.learning_rate = "adamw", 0.02
    config.model.size, config.model.processor = SIZE, processor
    config.model.parts = {}
    config.data.update({"name": str(questions), "validation": "", "test": ""})
    config.data.eval_batch_size = 8
    config.pipeline.update({"text_length": 12, "prompt_length": 8})
    config.pipeline.num_threads = 0
    config.export.path = str(folder / "model")
    settings = read_run_config(ImageTextConfig, config.to_dict())
    return settings, finetune(settings, folder)


# Features that are kept


class Counted:
    """Two pictures, each in two rows."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        image = np.full((16, 16, 3), 50 * (index % 2), np.uint8)
        return {"image": image, "text": str(index), "label": 0}


@pytest.mark.slow
def test_each_picture_is_encoded_once(kept, processor):
    weights = kept[0].export.path
    config = model_config(processor, weights=weights, trainable="layers")
    module, model = built(config)
    encode, calls = tower_features(module), []

    def spy(image):
        calls.append(image)
        return encode(image)

    source = FeatureSource(Counted(), spy)
    records = [source[i] for i in (0, 1, 2, 3, 0)]
    assert len(calls) == 2 and len(source) == 4
    assert [record["text"] for record in records] == ["0", "1", "2", "3", "0"]
    features = jax.jit(model.vision.features)
    for i, record in enumerate(records):
        expected = features(Counted()[i]["image"][None])[0]
        assert record["image"].dtype == np.float16
        np.testing.assert_allclose(record["image"], expected, atol=2e-3)


def test_features_that_would_change_are_not_kept(processor):
    with pytest.raises(ValueError, match="an image tower that trains change"):
        model_config(processor, cache_features=True)
    frozen = model_config(processor, trainable="layers", cache_features=True)
    for changes in ({"flip": True}, {"crop_pixels": 2}):
        with pytest.raises(ValueError, match="images that change cannot be read"):
            ImageTextConfig(model=frozen, pipeline=PipelineConfig(**changes))
    with pytest.raises(ValueError, match="of the image tower encoder would train"):
        check_frozen({"encoder": {}, "projection": {}})
    with pytest.raises(ValueError, match="is for generative models"):
        read_preprocessing(ModelConfig(trainable="layers"))


# What is trained


def test_it_learns_from_kept_features(kept):
    config, finished = kept
    history = finished.result.history
    losses = [r["train/loss"] for r in history if "train/loss" in r]
    assert losses[-1] < 0.3 * losses[0]
    # What is kept of a picture is what the model reads of it.
    batches = []
    for cached in (True, False):
        settings = dataclasses.replace(
            config.workload.model, weights=config.export.path, cache_features=cached
        )
        workload = dataclasses.replace(config.workload, model=settings).build()
        batches.append(next(workload.train_batches(4)))
    features, pictures = batches
    assert features["image"].shape == (4, 4, 128)
    assert pictures["image"].shape == (4, 16, 16, 3)
    np.testing.assert_array_equal(features["text"], pictures["text"])
    # Compiled, which is sooner done than all operations one by one.
    loss = jax.jit(
        lambda batch: workload.loss_fn(workload.params, workload.frozen, batch, None)[0]
    )
    found, expected = map(loss, batches)
    np.testing.assert_allclose(found, expected, rtol=1e-2)


def test_the_export_answers_and_classifies(kept, processor, questions):
    config, finished = kept
    model = meta_opt.load_exported(
        config.export.path, processor=processor, max_tokens=12, prompt_length=8
    )
    pictures = [str(questions.parent / f"{i:02}.png") for i in range(3)]
    answers = model.answer(pictures, PROMPT)
    parser = CategoryParser(tuple(COLOURS))
    assert all(parser(answer).well_formed for answer in answers)
    chances = model.classify(pictures, ANSWERS, PROMPT)
    assert chances.shape == (3, len(COLOURS))
    np.testing.assert_allclose(chances.sum(axis=1), 1, rtol=1e-5)
    # The running statistics and the frozen tower are in the export too.
    tuned = finished.result.state.frozen["vision"]["encoder"]
    stored = by_path(model.model, nnx.BatchStat)
    np.testing.assert_allclose(
        stored["vision/encoder/stem/norm/var"][...],
        tuned["stem"]["norm"]["var"],
        rtol=1e-3,
    )


def test_the_export_has_a_tokenizer_that_may_be_passed_on(
    kept, processor, questions, tmp_path
):
    config, _ = kept
    assert not tokenizer_folder(config.export.path).exists()  # Nobody knows a licence.
    with pytest.raises(ValueError, match=r"there is no .*\.tokenizer: name the folder"):
        meta_opt.load_exported(config.export.path)
    licensed = shutil.copytree(processor, tmp_path / "minilm")
    digest = ENCODER_WEIGHTS["minilm"].sha256
    (licensed / "about.json").write_text(json.dumps({"source_sha256": digest}))
    assert license_of(licensed) == "Apache-2.0" and license_of(processor) == ""
    model = pretrained.load(config.export.path)
    export = ExportConfig(str(tmp_path / "out" / "mine"))
    settings = dataclasses.replace(config.workload.model, processor=str(licensed))
    write(export, model, settings)
    shutil.rmtree(licensed)
    # Moved as `Predictor.save` does.
    moved = tmp_path / "saved" / "model"
    VisionTextBackend("caption", Path(export.path)).save(moved.parent)
    answers = [
        meta_opt.load_exported(
            path, processor=given, max_tokens=12, prompt_length=8
        ).answer([str(questions.parent / "00.png")], PROMPT)
        for path, given in ((config.export.path, processor), (moved, ""))
    ]
    assert answers[0] == answers[1]
    # Another export in its place leaves no tokenizer of the former one.
    write(export, model, config.workload.model)
    assert not tokenizer_folder(export.path).exists()


def test_adapters_go_on_a_model_that_was_exported(kept, processor):
    config = model_config(
        processor,
        weights=kept[0].export.path,
        trainable="lora",
        lora=LoRAConfig(pattern=r"layers/.*/kernel$", rank=2),
        cache_features=True,
    )
    module, model = built(config)
    adapters = leaves_by_path(module.params)
    assert adapters and all("lora_" in path for path in adapters)
    tower_features(module)
    assert model.config.tower == "efficientnet_nano"


@pytest.mark.parametrize("name", ["openclipart_large", "openclipart_reduced"])
def test_progressive_configs_are_complete(name):
    study = read_study(progressive.get_config(name).to_dict())
    model = study.run.workload.model
    assert model.weights == pretrain.get_config("answers").export.path
    assert model.processor == pretrain.get_config("answers").model.processor
    assert list(study.optimizers) == ["learned", "adamw", "adamw_tuned"]
