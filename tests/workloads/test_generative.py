"""Fine-tuning a generative model on questions about pictures, from files to files.

The folder is a random PaliGemma; the pictures are 40 squares, and each is asked for
its colour and for its place.
"""

import dataclasses
import importlib
import json
import shutil

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from flax import nnx
from generative_small import SMALL
from own_data import CASES, COLOURS, PLACES, run_page, write_pictures
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from configs import finetune as configs
from meta_opt.data.preprocessing.answers import AnswerTokenizer
from meta_opt.data.preprocessing.tokenizer import load_tokenizer
from meta_opt.finetuning.ledger import read_ledger
from meta_opt.finetuning.run_config import read_run_config
from meta_opt.finetuning.runs import finetune
from meta_opt.metrics.answers import answer_metrics, plain
from meta_opt.models import huggingface, pretrained
from meta_opt.models.decoding import DecodingConfig, generate
from meta_opt.models.generative import Generative
from meta_opt.workloads.image_text import ImageTextConfig
from meta_opt.workloads.image_text_architecture import GENERATIVE, ModelConfig
from meta_opt.workloads.image_text_data import Splits
from meta_opt.workloads.image_text_model import build_model
from meta_opt.workloads.image_text_preprocessing import read_preprocessing

QUESTIONS = ("which colour", "which place")
STEPS = 60


def write_paligemma(folder):
    """A random model with a tokenizer that begins a text, as Gemma's does."""
    folder.mkdir(parents=True)
    words = ["\n", *" ".join(QUESTIONS).split(), *COLOURS, *PLACES]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *dict.fromkeys(words)]
    tokenizer = Tokenizer(
        models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer.add_special_tokens(tokens[:4])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "GemmaTokenizer", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    config = dataclasses.replace(SMALL, image_size=16, end_id=1)
    huggingface.save(folder, nnx.jit(lambda: Generative(config, rngs=nnx.Rngs(0)))())
    return folder


@pytest.fixture(scope="module")
def paligemma(tmp_path_factory):
    return write_paligemma(tmp_path_factory.mktemp("weights") / "paligemma")


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    folder = write_pictures(tmp_path_factory.mktemp("data") / "pictures").parent
    lines = [
        {"image": f"{i:02}.png", "prompt": question, "target": answer}
        for i, (colour, place, _) in enumerate(CASES)
        for question, answer in zip(QUESTIONS, (colour, place), strict=True)
    ]
    path = folder / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


@pytest.fixture(scope="module")
def configured(paligemma, questions):
    """Makes a run's configuration from the file that users name, and overrides."""

    def make(variant="paligemma", **changes):
        config = configs.get_config(variant)
        config.model.weights, config.data.name = str(paligemma), str(questions)
        config.model.dtype = "float32"
        config.num_steps, config.batch_size = STEPS, 16
        config.loop.eval_every, config.loop.checkpoint_every = STEPS, STEPS
        config.loop.evaluate_at_start, config.mesh.fsdp = False, 2
        config.loop.log_every = 1
        config.optimizer.name, config.optimizer.learning_rate = "adamw", 0.01
        config.model.lora.rank = 4
        config.data.eval_batch_size = 8
        config.pipeline.num_threads = 2
        config.pipeline.text_length, config.pipeline.prompt_length = 4, 6
        config.update(changes)
        return read_run_config(ImageTextConfig, config.to_dict())

    return make


@pytest.fixture(scope="module")
def run(configured, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    export = {"path": str(folder / "tuned"), "format": "huggingface"}
    config = configured(export=export)
    return config, folder, finetune(config, folder)


@pytest.mark.slow
def test_it_learns_to_answer(run):
    _, folder, (result, test, _) = run
    losses = [r["train/loss"] for r in result.history if "train/loss" in r]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    # It answers with colours and places, whether they are right or not.
    assert test.keys() == {"loss", "exact_match", "bleu", "chrf"}
    assert test["exact_match"] > 20 and test["loss"] < losses[0]
    assert json.loads((folder / "result.json").read_text())["test"] == test
    mesh = jax.tree.leaves(result.state.params)[0].sharding.mesh
    assert mesh.shape["fsdp"] == 2


def test_what_is_exported_scores_the_same(run):
    config, _, (_, test, _) = run
    tuned = dataclasses.replace(config.workload.model, weights=config.export.path)
    workload = dataclasses.replace(config.workload, model=tuned).build()
    found = workload.evaluate(workload.params, workload.frozen, "test")
    assert found["exact_match"] == test["exact_match"]
    assert found["loss"] == pytest.approx(test["loss"], rel=1e-4)


def test_the_ledger_of_a_run_counts_its_tokens(run):
    _, folder, (_, _, data) = run
    training, test = read_ledger(folder).entries
    # <bos> which colour \n, and the answer with <eos>.
    prompt, answer = 4, 2
    examples = data["examples"]
    # An evaluation reads prompts twice: for the loss, and to answer.
    evaluated = {s: n * (2 * prompt + answer) for s, n in examples.items()}
    trained = STEPS * 16 * (prompt + answer)
    assert training.amounts.tokens_in == trained + evaluated["validation"]
    assert test.amounts.tokens_in == evaluated["test"]
    assert 0 < test.amounts.tokens_out <= 4 * examples["test"]


def test_tokens_are_those_that_the_model_writes(configured):
    workload = configured().workload.build()
    preprocessing = configured().workload.preprocessing()
    workload.evaluate(workload.params, workload.frozen, "test")
    module = build_model(configured().workload.model, preprocessing)
    source = Splits(configured().workload.data, preprocessing.fit).held_out("test")
    written = generate(
        module.merge(module.params, module.frozen),
        source.images(),
        preprocessing.prompts(source.prompts),
        DecodingConfig(max_tokens=4),
    )
    # Up to and with <eos>, then padding.
    assert workload.tokens.written == np.count_nonzero(written)


def test_the_command_answers_about_pictures(run, questions, capsys):
    config, _, _ = run
    command = importlib.import_module("experiments.answer")
    pictures = [str(questions.parent / f"{i:02}.png") for i in range(3)]
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    settings = {"model": config.export.path, "length": 4, "dtype": "float32"}
    with flagsaver.flagsaver(**settings, prompt=QUESTIONS[0], batch_size=2):
        command.main(*pictures)
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [path for path, _ in lines] == pictures
    assert all(answer in COLOURS for _, answer in lines)
    with (
        flagsaver.flagsaver(**settings),
        pytest.raises(ValueError, match=r"No such file.*gone\.png"),
    ):
        command.main("gone.png")
    with (
        flagsaver.flagsaver(**settings),
        pytest.raises(ValueError, match=r"jsonl cannot be read: not an image"),
    ):
        command.main(str(questions))


def test_batches_ask_and_answer(configured):
    config = configured()
    preprocessing = config.workload.preprocessing()
    source = Splits(config.workload.data, preprocessing.fit).train()
    first = source[0]
    # <bos> which colour \n, and the answer with <eos>.
    np.testing.assert_array_equal(
        preprocessing.prompts([first["prompt"]])[0], [2, 5, 6, 4, 0, 0]
    )
    answer = preprocessing.tokenizer.encode([first["text"]], 4)[0]
    assert answer[1:].tolist() == [1, 0, 0] and answer[0] > 3
    assert preprocessing.tokenizer.decode([answer]) == [first["text"]]
    # All questions about one picture are in one split.
    held = Splits(config.workload.data, preprocessing.fit).held_out("test")
    assert len(held) % 2 == 0 and set(held.prompts) == set(QUESTIONS)


@pytest.mark.slow
def test_adapters_train_and_are_written_alone(configured, tmp_path):
    export = {"path": str(tmp_path / "adapters"), "format": "adapters"}
    short = {"eval_every": 2, "checkpoint_every": 2}
    config = configured("paligemma_lora", num_steps=4, loop=short, export=export)
    result, test, _ = finetune(config, tmp_path / "run")
    assert np.isfinite(test["loss"])
    paths = {path[-1].key for path, _ in jax.tree.leaves_with_path(result.state.params)}
    assert paths == {"lora_a", "lora_b"}
    assert (tmp_path / "adapters" / "adapters.safetensors").is_file()


def test_a_model_of_no_weights_is_written_and_read(tmp_path):
    config = ModelConfig(weights="", size="nano-generative", loss="captioning")
    preprocessing = read_preprocessing(config, 8, 4, "caption")
    model = build_model(config, preprocessing)
    assert model.merge(model.params, model.frozen).config.end_id == 3
    pretrained.save(tmp_path / "ours", model.merge(model.params, model.frozen))
    ours = dataclasses.replace(config, weights=str(tmp_path / "ours"))
    again = build_model(ours, read_preprocessing(ours, 8, 4))
    for a, b in zip(
        jax.tree.leaves(model.params), jax.tree.leaves(again.params), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_errors_come_before_training(configured, tmp_path):
    config = configured()
    with pytest.raises(ValueError, match=r"loss='clip' is not for .* take captioning"):
        read_preprocessing(dataclasses.replace(config.workload.model, loss="clip"))
    with pytest.raises(ValueError, match=r"'captioning' is not for 'nano'.*clip or"):
        read_preprocessing(ModelConfig(loss="captioning"))
    peft = {"path": str(tmp_path / "peft"), "format": "peft"}
    with pytest.raises(ValueError, match="is of PaliGemma, whose layers"):
        finetune(configured("paligemma_lora", export=peft))
    assert GENERATIVE.losses == ("captioning",)


@pytest.mark.slow
def test_commands_of_the_page_work_as_written(paligemma, questions, tmp_path):
    (tmp_path / "paligemma-3b-pt-224").symlink_to(paligemma)
    shutil.copytree(questions.parent, tmp_path, dirs_exist_ok=True)
    (tmp_path / "photos").mkdir()
    for i in (1, 2):
        shutil.copyfile(tmp_path / f"{i:02}.png", tmp_path / f"photos/{i}.jpg")
    fewer = {
        "experiments.finetune": ["config.num_steps=6", "config.batch_size=8"],
        "experiments.answer": ["dtype=float32"],
    }
    heading = "## Captions and answers to questions"
    ran = run_page("docs/generative.md", heading, tmp_path, fewer)
    assert "huggingface at answers" in ran["experiments.finetune"].stdout
    lines = ran["experiments.answer"].stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["photos/1.jpg", "photos/2.jpg"]


# Prompts and answers as tokens


def test_what_is_too_long_is_cut_between_its_ends():
    ours = AnswerTokenizer(load_tokenizer(), 3, 0, prompt_length=4, prompt="what")
    long = "a very long text about a fish"
    answer = ours.encode([long], 5)[0]
    assert answer[-1] == 3 and 0 not in answer
    prompt = ours.encode_prompts([long, ""])
    assert prompt[0, 0] == 2 and 0 not in prompt[0]
    np.testing.assert_array_equal(prompt[1], ours.encode_prompts(["what"])[0])
    assert ours.decode([[*answer[:2], 3, 9, 9]]) == ours.decode([answer[:2]])
    with pytest.raises(ValueError, match="a row needs at least 2 tokens, not 1"):
        ours.encode(["a"], 1)
    with pytest.raises(TypeError, match="not the string 'a'"):
        ours.encode("a", 4)


def test_answers_are_compared_with_all_references():
    assert plain("  The RED,  fish!") == "the red fish"
    found = answer_metrics(
        ["A red fish", "blue"], [["a bird", "a red fish."], ["green"]]
    )
    assert found["exact_match"] == 50.0 and 0 < found["chrf"] < 100
    perfect = answer_metrics(["a red fish swims"] * 2, [["A red fish swims"]] * 2)
    assert perfect["exact_match"] == perfect["chrf"] == 100.0
    assert perfect["bleu"] == pytest.approx(100.0)
    for bad in ([], [[]]):
        with pytest.raises(ValueError, match="needs at least one"):
            answer_metrics(["a"], bad)
