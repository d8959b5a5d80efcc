"""Exported models in use: what the evaluation of a run computes, and errors."""

import re
import shutil

import jax
import numpy as np
import paths
import pytest
from flax import nnx
from own_data import SENTENCES, write_folder, write_pictures
from paths import ROOT
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import meta_opt
from meta_opt.data.preprocessing.folder_tokenizer import FolderTokenizer
from meta_opt.data.preprocessing.image_fit import read_image_fit
from meta_opt.data.preprocessing.images import decode
from meta_opt.data.preprocessing.tokenizer import load_tokenizer
from meta_opt.evaluators import encoding
from meta_opt.evaluators.encoding import encode_images, encode_texts
from meta_opt.inference import ContrastiveModel, GenerativeModel
from meta_opt.models import huggingface, pretrained
from meta_opt.models.adapters import save_adapters, save_peft
from meta_opt.models.decoding import DecodingConfig, generate
from meta_opt.models.lora import LoRAConfig, LoRAParam, add_lora

EXPECTED = paths.GOLDEN / "paligemma"
DOCS = ROOT / "docs" / "inference.md"
TEXTS = SENTENCES[:5]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    weights = tmp_path_factory.mktemp("weights")
    return {kind: write_folder(weights / kind, kind) for kind in ("siglip", "clip")}


@pytest.fixture(scope="module")
def folder(folders):
    return folders["siglip"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    data = write_pictures(tmp_path_factory.mktemp("data") / "pictures")
    return sorted(data.parent.glob("*.png"))[:7]


def evaluated(model, folder, files, batch_size=7):
    """Embeddings as a run's evaluation makes them of its folder's preprocessing."""
    config = model.config
    how = "crop" if config.class_token else "stretch"
    fit = read_image_fit(folder, config.image_size, how)
    images = np.stack([fit(decode(file.read_bytes())) for file in files])
    tokens = FolderTokenizer(folder, config.pad_id).encode(TEXTS, config.text_length)
    return (
        encode_images(model, images, batch_size),
        encode_texts(model, tokens, batch_size),
    )


def check_unit_rows(*embeddings):
    for z in embeddings:
        assert z.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-5)
        # Rows differ, or equality would mean nothing.
        assert np.std(z, axis=0).max() > 1e-3


@pytest.mark.parametrize(
    "kind", ["clip", pytest.param("siglip", marks=pytest.mark.slow)]
)
def test_embeddings_are_those_of_the_runs_evaluation(kind, folders, files):
    folder = folders[kind]
    expected = evaluated(huggingface.load(folder), folder, files)
    model = meta_opt.load_exported(folder, batch_size=3)
    found = model.embed(files, TEXTS)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    check_unit_rows(*found)
    # Open images, arrays and files are the same images.
    opened = [Image.open(file) for file in files]
    np.testing.assert_array_equal(model.embed(opened), found[0])
    arrays = [np.asarray(image) for image in opened]
    np.testing.assert_array_equal(model.embed(images=arrays), found[0])
    np.testing.assert_array_equal(model.embed(texts=TEXTS), found[1])
    assert model.embed(images=[]).shape == (0, 32)
    logits = float(model.model.scale()) * found[0] @ found[1].T
    weights = np.exp(logits)
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model.classify(files, TEXTS), probabilities, atol=1e-6)


def test_one_program_whatever_the_number(folder, files):
    model = meta_opt.load_exported(folder, batch_size=4)
    model.embed(files[:1], TEXTS[:1])
    compiled = encoding._apply._cache_size()
    model.embed(files, TEXTS)
    model.embed(files[:4], TEXTS[:3])
    assert encoding._apply._cache_size() == compiled


@pytest.mark.parametrize(
    "form", ["peft", pytest.param("adapters", marks=pytest.mark.slow)]
)
def test_adapters_on_a_folder(form, folder, files, tmp_path):
    model, config = (
        huggingface.load(folder),
        LoRAConfig("layers/.*(query|value)/kernel", rank=2),
    )
    add_lora(model, config, rngs=nnx.Rngs(0))
    for i, (_, param) in enumerate(nnx.to_flat_state(nnx.state(model, LoRAParam))):
        param[...] = jax.random.normal(jax.random.key(i), param.shape)
    save = {"adapters": save_adapters, "peft": save_peft}[form]
    save(tmp_path, model, config)
    adapted = meta_opt.load_exported(folder, adapter=tmp_path, batch_size=7)
    found = adapted.embed(files, TEXTS)
    for a, b in zip(found, evaluated(model, folder, files), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    plain = meta_opt.load_exported(folder, batch_size=7).embed(files)
    assert np.abs(found[0] - plain).max() > 0.01
    with pytest.raises(ValueError, match=rf"{tmp_path} holds adapters alone: give the"):
        meta_opt.load_exported(tmp_path)


def test_our_own_weights(tmp_path):
    ours = pretrained.load("nano")
    pretrained.save(tmp_path / "ours", ours)
    found = meta_opt.load_exported(tmp_path / "ours").embed(texts=TEXTS)
    tokens = load_tokenizer().encode(TEXTS, ours.config.text_length)
    np.testing.assert_allclose(found, encode_texts(ours, tokens, 5), atol=1e-6)
    # Shipped ones by name: the image of a colour is nearest to its name.
    nano = meta_opt.load_exported("nano")
    assert isinstance(nano, ContrastiveModel)
    cars = [np.full((40, 60, 3), c, np.uint8) for c in ([200, 0, 0], [0, 0, 200])]
    assert nano.classify(cars, ["red", "blue"]).argmax(axis=1).tolist() == [0, 1]


@pytest.fixture(scope="module")
def paligemma(tmp_path_factory):
    """The golden model with a tokenizer that begins a text, as Gemma's does."""
    folder = tmp_path_factory.mktemp("weights") / "paligemma"
    shutil.copytree(EXPECTED, folder)
    tokens = [
        "<pad>",
        "<eos>",
        "<bos>",
        "<unk>",
        "\n",
        *(f"w{i}" for i in range(5, 50)),
    ]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer.add_special_tokens(tokens[:4])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_answers_are_those_that_the_model_writes(paligemma):
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    prompts = [[2, 7, 8, 4, 0], [2, 9, 4, 0, 0], [2, 30, 31, 32, 4]]
    written = generate(
        huggingface.load_generative(paligemma),
        images,
        np.array(prompts, np.int32),
        DecodingConfig(max_tokens=6),
    )
    expected = [
        " ".join(f"w{i}" for i in row if i > 4)
        for row in ((*r, 1)[: (*r, 1).index(1)] for r in np.asarray(written).tolist())
    ]
    model = meta_opt.load_exported(
        paligemma, batch_size=2, max_tokens=6, prompt_length=5
    )
    assert isinstance(model, GenerativeModel)
    found = model.answer(list(images), ["w7 w8", "w9", "w30 w31 w32"])
    assert found == expected and len(set(found)) == 3
    assert model.answer(images[1:2], "w9") == expected[1:2]
    assert model.answer([]) == []
    with pytest.raises(ValueError, match="got 2 prompts for 3 images; pass one"):
        model.answer(images, ["w7", "w8"])
    with pytest.raises(
        ValueError, match="as PEFT writes them, which are read for CLIP"
    ):
        meta_opt.load_exported(paligemma, adapter=EXPECTED.parent / "clip" / "adapter")


def test_a_list_of_answers_is_classified(paligemma):
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    model = meta_opt.load_exported(
        paligemma, batch_size=2, max_tokens=6, prompt_length=5
    )
    found = model.classify(list(images), ["w5 w6", "w5", "w9 w10"], "w7 w8")
    # Teacher-forced, an answer at a time, with the token that ends it.
    prompt = np.tile(np.array([2, 7, 8, 4, 0], np.int32), (3, 1))
    log_p = []
    log_softmax = jax.jit(
        lambda text: jax.nn.log_softmax(model.model.logits(images, prompt, text))
    )
    for answer in ([5, 6, 1], [5, 1, 0], [9, 10, 1]):
        text = np.tile(np.array(answer, np.int32), (3, 1))
        each = np.asarray(log_softmax(text))
        picked = np.take_along_axis(each, text[..., None], axis=-1)[..., 0]
        log_p.append((picked * (text != 0)).sum(axis=1))
    expected = jax.nn.softmax(np.stack(log_p, axis=1), axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert model.classify([], ["w5", "w6"]).shape == (0, 2)
    with pytest.raises(ValueError, match="'w5' and 'w5' are the same tokens"):
        model.classify(images, ["w5", "w5"])


def test_mistakes_are_named(folder, files, tmp_path):
    model = meta_opt.load_exported(folder)
    broken = tmp_path / "broken.png"
    broken.write_bytes(files[0].read_bytes()[:60])
    for images, error, message in (
        ([files[0], broken], ValueError, f"{broken} cannot be read: "),
        ([tmp_path / "none.png"], ValueError, r"none\.png cannot be read: .*No such"),
        ([np.zeros((4, 4, 3))], ValueError, r"float64 \[4, 4, 3\] must be uint8 \[H"),
        ([np.zeros((4, 4), np.uint8)], ValueError, r"uint8 \[4, 4\] must be uint8"),
        ([3], TypeError, "a path, a Pillow image or an array"),
        (str(files[0]), TypeError, "images takes a list, not one str"),
    ):
        with pytest.raises(error, match=message):
            model.embed(images)
    with pytest.raises(TypeError, match="texts takes a list"):
        model.embed(texts="a cat")
    with pytest.raises(TypeError, match="texts has None, which is not a string"):
        model.embed(texts=["a cat", None])
    with pytest.raises(ValueError, match="needs images, texts or both"):
        model.embed()
    with pytest.raises(ValueError, match="no weights 'nanno'; did you mean 'nano'"):
        meta_opt.load_exported("nanno")
    with pytest.raises(ValueError, match=r"no adapters\.json and no adapter_config"):
        meta_opt.load_exported(folder, adapter=tmp_path)
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        meta_opt.load_exported(folder, batch_size=0)


def test_the_scripts_of_the_docs(
    folder, paligemma, files, tmp_path, monkeypatch, capsys
):
    (tmp_path / "tuned").symlink_to(folder)
    (tmp_path / "answers").symlink_to(paligemma)
    (tmp_path / "photos").mkdir()
    for i in (1, 2):
        Image.open(files[i]).save(tmp_path / "photos" / f"{i}.jpg")
    monkeypatch.chdir(tmp_path)
    scripts = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    printed = []
    # The third is of a video-text model: tests/workloads/test_video_text_export.py.
    for script in scripts[:2]:
        exec(compile(script, str(DOCS), "exec"), {})
        printed.append(capsys.readouterr().out.splitlines())
    embeds, answers = printed
    assert re.fullmatch(r"a cat on a sofa: photos/[12]\.jpg", embeds[0])
    assert len(embeds) == 5 and len(answers) == 2
    assert all(re.fullmatch(r"(w\d+ ?)+", answer) for answer in answers)
