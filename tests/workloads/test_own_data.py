"""A user's folder and pictures, from the files to the files: trains, resumes, exports.

The folder is a random SigLIP (or CLIP), the pictures 40 PNGs of coloured squares.
"""

import dataclasses
import json
import os
import shutil
import signal
import tarfile

import jax
import numpy as np
import pytest
from flax import nnx
from models_small import forward
from own_data import run_page, write_folder, write_pictures
from safetensors.numpy import load_file

from configs import finetune as configs
from meta_opt.data.preprocessing.image_fit import ImageFit
from meta_opt.data.preprocessing.pictures import UnreadableFilesError
from meta_opt.finetuning import runs
from meta_opt.finetuning.ledger import read_ledger
from meta_opt.finetuning.run_config import read_run_config
from meta_opt.finetuning.runs import finetune
from meta_opt.interruption import Interrupted
from meta_opt.models import adapters, huggingface, pretrained
from meta_opt.models.parameters import by_path
from meta_opt.models.vision_text import SIZES
from meta_opt.parallel.mesh import MeshConfig, make_mesh
from meta_opt.run_log import read_records
from meta_opt.workloads import (
    contrastive,
    image_text,
    image_text_architecture,
    image_text_export,
    image_text_model,
)
from meta_opt.workloads.export import ExportConfig
from meta_opt.workloads.image_text import ImageTextConfig
from meta_opt.workloads.image_text_architecture import ModelConfig
from meta_opt.workloads.image_text_data import DataConfig, Splits
from meta_opt.workloads.image_text_model import build_model, load_weights
from meta_opt.workloads.image_text_preprocessing import read_preprocessing

STEPS = 12


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("weights") / "siglip")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("weights") / "clip", "clip")


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="module")
def configured(siglip, captions):
    """Makes a run's configuration from the file that users name, and overrides."""

    def make(variant="so400m_lora", **changes):
        config = configs.get_config(variant)
        config.model.weights, config.data.name = str(siglip), str(captions)
        config.num_steps, config.batch_size = STEPS, 16
        config.loop.eval_every, config.loop.checkpoint_every = 4, 4
        config.loop.log_every = 1
        config.optimizer.name, config.optimizer.learning_rate = "adamw", 0.01
        config.model.lora.rank = 4
        config.data.eval_batch_size = 8
        config.pipeline.num_threads = 2
        config.update(changes)
        return read_run_config(ImageTextConfig, config.to_dict())

    return make


@pytest.fixture(scope="module")
def run(configured, tmp_path_factory):
    """A run of adapters on eight devices: configuration, folder, what it gave."""
    config, workdir = configured(), tmp_path_factory.mktemp("run")
    return config, workdir, finetune(config, workdir)


def batch_of(config, split="test"):
    preprocessing = read_preprocessing(config.workload.model)
    source = Splits(config.workload.data, preprocessing.fit).held_out(split)
    texts = [captions[0] for captions in source.captions]
    text = preprocessing.tokenizer.encode(texts, preprocessing.text_length)
    return {"image": source.images(), "text": text}


def outputs(model, batch):
    # On one device: models that come back from files are.
    graphdef, state = nnx.split(model)
    model = nnx.merge(graphdef, jax.device_get(state))
    return [np.asarray(x) for x in forward(model, batch)]


def trained(run):
    config, _, finished = run
    model = build_model(
        config.workload.model, read_preprocessing(config.workload.model)
    )
    return model.merge(finished.result.state.params, finished.result.state.frozen)


def test_it_learns_and_measures_retrieval(run):
    _, workdir, (result, test, data) = run
    losses = [r["train/loss"] for r in result.history if "train/loss" in r]
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.1
    assert {"loss", "i2t_r1", "t2i_r1", "i2t_r5", "t2i_medr"} <= test.keys()
    assert not [name for name in test if name.startswith("zero_shot")]
    assert data["unreadable_pictures"] == {}
    assert data["examples"] == {"train": 33, "validation": 4, "test": 3}
    written = json.loads((workdir / "result.json").read_text())
    assert written["test"] == test and written["unreadable"] == 0
    assert "validation/i2t_r1" in written["validation"]
    # It ran on all devices, in bfloat16 where it computes and float32 where it trains.
    mesh = jax.tree.leaves(result.state.params)[0].sharding.mesh
    assert mesh.shape["fsdp"] == 8
    assert {str(x.dtype) for x in jax.tree.leaves(result.state.params)} == {"float32"}


def test_the_ledger_of_a_run_counts_the_tokens_of_captions(run):
    config, workdir, (_, _, data) = run
    training, test = read_ledger(workdir).entries
    # "a small red square at the left" and the token that ends it, which also pads.
    each, examples = 8, data["examples"]
    evaluations = STEPS // 4 + config.loop.evaluates_first
    read = STEPS * 16 + evaluations * examples["validation"]
    assert training.amounts.tokens_in == each * read
    assert test.amounts.tokens_in == each * examples["test"]
    assert (training.amounts.tokens_out, test.amounts.tokens_out) == (0, 0)


def test_splits_are_disjoint_and_stay(configured, captions):
    config = configured().workload.data
    preprocessing = read_preprocessing(configured().workload.model)
    splits = Splits(config, preprocessing.fit)

    def captions_of(splits, split):
        return {texts[0] for texts in splits.held_out(split).captions}

    held = {split: captions_of(splits, split) for split in ("validation", "test")}
    source = splits.train()
    held["train"] = {source[i]["text"] for i in range(len(source))}
    assert sum(map(len, held.values())) == 40 == len(set.union(*held.values()))
    assert all(held.values())
    fewer = dataclasses.replace(config, max_evaluated=2)
    few = captions_of(Splits(fewer, preprocessing.fit), "test")
    assert len(few) == 2 and few < held["test"]
    splits = Splits(dataclasses.replace(config, test=str(captions)), preprocessing.fit)
    assert len(splits.held_out("test")) == 40
    assert len(splits.train()) == 40 - len(held["validation"])


def test_weights_are_read_onto_the_mesh_and_held_once(configured, monkeypatch):
    built = []

    def build(*args):
        built.append(build_model(*args))
        for x in jax.tree.leaves(built[-1].frozen):
            assert len(x.sharding.device_set) == 8
        return built[-1]

    monkeypatch.setattr(image_text, "build_model", build)
    finetune(configured())
    (model,) = built
    # The step was given the arrays themselves: the run's are the only ones there are.
    leaves = jax.tree.leaves((model.frozen, model.params))
    names = by_path(model.merge(model.params, model.frozen))
    kept = [x for x in jax.tree.leaves(model.frozen) if not x.is_deleted()]
    assert len(leaves) == len(names) and kept == []


def test_an_interrupted_run_ends_in_the_same_bits(run, tmp_path, monkeypatch):
    config, workdir, unbroken = run
    evaluations = []
    evaluate = contrastive.evaluate

    def interrupting(*args, **kwargs):
        evaluations.append(0)
        if len(evaluations) == 2:  # After step 4.
            os.kill(os.getpid(), signal.SIGINT)
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(contrastive, "evaluate", interrupting)
    with pytest.raises(Interrupted, match="at step 4"):
        finetune(config, tmp_path)
    resumed = finetune(config, tmp_path)
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.device_get(resumed.result.state.params),
        jax.device_get(unbroken.result.state.params),
    )
    assert resumed.test == unbroken.test
    metrics = [folder / "metrics.jsonl" for folder in (tmp_path, workdir)]
    assert metrics[0].read_bytes() == metrics[1].read_bytes()
    assert len(read_records(metrics[0])) == STEPS + 4


@pytest.mark.parametrize(
    "form",
    [
        *("model", "peft"),
        pytest.param("huggingface", marks=pytest.mark.slow),
        pytest.param("adapters", marks=pytest.mark.slow),
    ],
)
def test_exports_are_read_again(run, tmp_path, form):
    config = run[0]
    where = ExportConfig(str(tmp_path / "out"), form)
    batch = batch_of(config)
    expected = outputs(trained(run), batch)
    preprocessing = read_preprocessing(config.workload.model)
    before = outputs(load_weights(config.workload.model, preprocessing), batch)
    assert np.abs(before[0] - expected[0]).max() > 0.02
    image_text_export.write(where, trained(run), config.workload.model)
    if form == "model":
        model = pretrained.load(where.path, dtype="bfloat16")
    elif form == "huggingface":
        # It is a folder to begin from, with tokenizer and all.
        again = ModelConfig(weights=where.path, dtype="bfloat16")
        assert read_preprocessing(again).fit == preprocessing.fit
        model = load_weights(again, read_preprocessing(again))
    else:
        model = huggingface.load(config.workload.model.weights, dtype="bfloat16")
        load = adapters.load_adapters if form == "adapters" else adapters.load_peft
        load(where.path, model)
    for a, b in zip(outputs(model, batch), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=0.02)
    if form == "peft":
        about = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
        assert about["base_model_name_or_path"] == config.workload.model.weights


def test_a_finished_run_is_written_without_training_again(run, configured, tmp_path):
    config, workdir, finished = run
    metrics = (workdir / "metrics.jsonl").read_bytes()
    result = (workdir / "result.json").read_bytes()
    where = {"path": str(tmp_path / "out"), "format": "adapters"}
    again = finetune(configured(export=where), workdir)
    assert (workdir / "metrics.jsonl").read_bytes() == metrics
    # Its times, which are not measured again, stay.
    assert (workdir / "result.json").read_bytes() == result
    assert again.test == finished.test
    model = huggingface.load(config.workload.model.weights)
    assert adapters.load_adapters(where["path"], model) == config.workload.model.lora


@pytest.mark.slow
def test_int8_base_under_adapters(configured):
    config = configured(model={"base": "int8", "dtype": "float32"}, mesh={"fsdp": 1})
    result, test, _ = finetune(config)
    types = {str(x.dtype) for x in jax.tree.leaves(result.state.frozen)}
    assert types == {"int8", "float32"}
    losses = [r["train/loss"] for r in result.history if "train/loss" in r]
    assert losses[-1] < losses[0] and np.isfinite(test["loss"])
    with pytest.raises(ValueError, match=r"base='int8' cannot be trained itself; use"):
        configured("so400m", model={"base": "int8"})


def test_bfloat16_parameters_have_float32_adapters(configured, tmp_path):
    config = configured(model={"param_dtype": "bfloat16"})
    model = build_model(
        config.workload.model, read_preprocessing(config.workload.model)
    )
    types = {str(x.dtype) for x in jax.tree.leaves(model.params)}
    assert types == {"float32"}
    assert str(model.frozen["text"]["positions"].dtype) == "bfloat16"
    merged = model.merge(model.params, model.frozen)
    where = ExportConfig(str(tmp_path / "out"), "huggingface")
    image_text_export.write(where, merged, config.workload.model)
    written = load_file(tmp_path / "out" / "model.safetensors").values()
    assert {str(x.dtype) for x in written if x.size > 1} == {"bfloat16"}
    again = huggingface.load(where.path, param_dtype="bfloat16")
    for path, param in by_path(again).items():
        np.testing.assert_array_equal(param[...], by_path(merged)[path][...])


@pytest.mark.slow
def test_all_parameters_of_a_clip_folder_on_tar_files(
    configured, clip, captions, tmp_path
):
    lines = [json.loads(line) for line in captions.read_text().splitlines()]
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard:02}.tar", "w") as tar:
            for line in lines[shard::2]:
                file = captions.parent / line["image"]
                text = tmp_path / f"{file.stem}.txt"
                text.write_text(line["text"])
                tar.add(file, file.name)
                tar.add(text, text.name)
    config = configured(
        "so400m",
        model={"weights": str(clip), "loss": "clip", "dtype": "float32"},
        data={"name": str(tmp_path / "{00..01}.tar")},
        optimizer={"learning_rate": 0.003},
        mesh={"fsdp": 1},
    )
    assert read_preprocessing(config.workload.model).fit.how == "crop"
    result, test, _ = finetune(config)
    losses = [r["train/loss"] for r in result.history if "train/loss" in r]
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.3
    assert "i2t_r1" in test


def test_unreadable_pictures_are_counted_and_the_run_goes_on(
    configured, tmp_path, monkeypatch
):
    data = write_pictures(tmp_path / "pictures", broken=(2, 17, 30))
    missing = tmp_path / "pictures" / "05.png"
    missing.unlink()
    config = configured(data={"name": str(data)})
    unreadable = finetune(config, tmp_path / "run").data["unreadable_pictures"]
    files = [str(tmp_path / f"pictures/{i:02}.png") for i in (2, 5, 17, 30)]
    assert sorted(unreadable) == files
    assert unreadable[str(missing)].startswith("FileNotFoundError")
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (
        written["unreadable"] == 4 and sorted(written["unreadable_pictures"]) == files
    )
    # Finished, and asked for again, it still knows of them.
    again = finetune(config, tmp_path / "run")
    assert sorted(again.data["unreadable_pictures"]) == files
    few = configured(data={"name": str(data), "max_unreadable": 2})
    with pytest.raises(UnreadableFilesError, match=r"\d files cannot be rea"):
        finetune(few)
    # Data that changed under an interrupted run are noticed.
    lines = data.read_text().splitlines(keepends=True)
    data.write_text("".join(lines[:-4]))
    with pytest.raises(
        ValueError, match=r"began with \d+ records .* now there are \d+"
    ):
        finetune(config, tmp_path / "run")


def test_a_prepared_tfds_dataset(configured, captions, tmp_path):
    import tensorflow_datasets as tfds

    lines = [json.loads(line) for line in captions.read_text().splitlines()]

    class OwnPictures(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            text = tfds.features.Text()
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(shape=(None, None, 3)),
                        "captions": tfds.features.Sequence({"text": text}),
                    }
                ),
            )

        def _split_generators(self, dl_manager):
            return {"train": self.rows(lines[:-4]), "test": self.rows(lines[-4:])}

        def rows(self, chosen):
            for line in chosen:
                image = str(captions.parent / line["image"])
                texts = [{"text": line["text"]}, {"text": "another"}]
                yield line["image"], {"image": image, "captions": texts}

        _generate_examples = rows

    OwnPictures(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    config = configured(data={"name": "tfds:own_pictures", "data_dir": str(tmp_path)})
    splits = Splits(config.workload.data, read_preprocessing(config.workload.model).fit)
    assert {c[0] for c in splits.held_out("test").captions} == {
        line["text"] for line in lines[-4:]
    }
    assert splits.held_out("test").captions[0][1] == "another"
    assert len(splits.train()) + len(splits.held_out("validation")) == 36
    with pytest.raises(ValueError, match=r"'own_picture' in .*mean 'own_pictures'"):
        Splits(
            DataConfig(name="tfds:own_picture", data_dir=str(tmp_path)),
            read_preprocessing(config.workload.model).fit,
        )


def test_drawings_of_the_package_are_brought_to_the_models_size(configured):
    config = configured(data={"name": "clipart"})
    preprocessing = read_preprocessing(config.workload.model)
    splits = Splits(config.workload.data, preprocessing.fit)
    assert splits.train()[0]["image"].shape == (16, 16, 3)
    assert len(splits.held_out("test").class_names) > 1


@pytest.mark.parametrize("size", sorted(SIZES))
def test_every_size_can_begin_from_scratch(size, siglip, monkeypatch):
    made = []
    kind = image_text_architecture.CONTRASTIVE._replace(
        module=lambda config, rngs: made.append(config) or nnx.Module()
    )
    monkeypatch.setattr(image_text_model, "kind_of", lambda made: kind)
    for processor in ("", str(siglip)):
        config = ModelConfig(weights="", size=size, processor=processor)
        preprocessing = read_preprocessing(config)
        load_weights(config, preprocessing)
        assert made[-1].vocab_size == preprocessing.tokenizer.vocab_size
        assert (
            made[-1].text_length == SIZES[size].text_length == preprocessing.text_length
        )
        assert preprocessing.fit.size == SIZES[size].image_size
        if made[-1].text.pooling == "end":
            row = preprocessing.tokenizer.encode(["a"], 8)[0]
            assert made[-1].end_id in row and made[-1].end_id != row[0]


@pytest.mark.slow
def test_commands_of_the_page_work_as_written(siglip, captions, tmp_path):
    (tmp_path / "siglip-so400m-patch14-384").symlink_to(siglip)
    shutil.copytree(captions.parent, tmp_path, dirs_exist_ok=True)
    fewer = {
        "experiments.plan_memory": ["config.topology=", "config.most_examples=0"],
        "experiments.finetune": ["config.num_steps=6", "config.batch_size=8"],
    }
    heading = "## Fine-tune your own model on your own images"
    ran = run_page("docs/finetuning.md", heading, tmp_path, fewer)
    assert list(ran) == list(fewer)
    done = ran["experiments.finetune"]
    assert "huggingface at mine" in done.stdout
    assert "resuming runs/mine from step 6" in done.stderr
    again = ModelConfig(weights=str(tmp_path / "mine"))
    assert load_weights(again, read_preprocessing(again)).config.image_size == 16


# Bad input


def test_a_folder_without_tokenizer_or_weights(configured, siglip, tmp_path):
    folder = shutil.copytree(siglip, tmp_path / "folder")
    (folder / "tokenizer.json").unlink()
    config = configured(model={"weights": str(folder)})
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        finetune(config)
    # Another folder's will do.
    model = ModelConfig(weights=str(folder), processor=str(siglip))
    assert read_preprocessing(model).tokenizer.pad_id == 1
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks model\.safetensors"):
        finetune(configured(model={"weights": str(folder), "processor": str(siglip)}))
    with pytest.raises(ValueError, match=r"no weights 'nowhere'.*or a folder"):
        finetune(configured(model={"weights": "nowhere"}))


def test_a_tokenizer_of_another_model(siglip, clip, tmp_path):
    with pytest.raises(ValueError, match=r"are for \d+ tokens and the tokenizer of"):
        read_preprocessing(ModelConfig(weights=str(siglip), processor=str(clip)))
    with pytest.raises(ValueError, match=r"at its end token \d+, and .* adds \[1\]"):
        read_preprocessing(ModelConfig(weights=str(clip), processor=str(siglip)))
    model = huggingface.load(siglip)
    pretrained.save(tmp_path / "ours", model)
    ours = ModelConfig(weights=str(tmp_path / "ours"))
    with pytest.raises(
        ValueError, match=r"for \d+ tokens, .* folder .*model\.processor"
    ):
        read_preprocessing(ours)
    named = ModelConfig(weights=str(tmp_path / "ours"), processor=str(siglip))
    assert read_preprocessing(named).text_length == 10


def test_captions_longer_than_the_context(siglip, clip):
    preprocessing = read_preprocessing(ModelConfig(weights=str(siglip)))
    long = " ".join(["red"] * 30)
    (row,) = preprocessing.tokenizer.encode([long], preprocessing.text_length)
    assert len(row) == 10 and row[-1] == 1 and 1 not in row[:-1]
    with pytest.raises(ValueError, match=r"up to 10 tokens; pipeline.text_length=11"):
        read_preprocessing(ModelConfig(weights=str(siglip)), 11)
    with pytest.raises(ValueError, match=r"at the last of 10 places; .*=9 must be"):
        read_preprocessing(ModelConfig(weights=str(siglip)), 9)
    assert read_preprocessing(ModelConfig(weights=str(clip)), 9).text_length == 9


def test_a_line_that_lacks_something(configured, tmp_path):
    broken = tmp_path / "captions.jsonl"
    broken.write_text('{"image": "a.png", "text": "a"}\n{"image": "b.png"}\n')
    with pytest.raises(
        ValueError, match=r"captions\.jsonl, line 2: needs a non-empty `text`"
    ):
        finetune(configured(data={"name": str(broken)}))
    broken.write_text('{"image": "a.png", "text": "a"}\n')
    with pytest.raises(ValueError, match=r"no image is left for .*data.held_out=0.1"):
        finetune(configured(data={"name": str(broken)}))


def test_length_and_batch_size_come_from_the_number_of_pictures(
    configured, monkeypatch
):
    """And pictures that share a caption are counted before training begins."""
    seen = {}

    def stop(workload, tx, config, **settings):
        seen["loop"], seen["written"] = config, settings["resolved_config"]
        raise Interrupted(signal.SIGINT, 0)

    monkeypatch.setattr(runs, "run", stop)
    # 40 pictures, of which about 32 are trained on.
    config = configured(num_steps=0, batch_size=0, mesh={"fsdp": 1})
    with pytest.raises(Interrupted):
        finetune(config)
    assert seen["loop"].batch_size == 4
    assert 140 <= seen["loop"].num_steps <= 180
    assert seen["written"]["optimizer"]["num_steps"] == seen["loop"].num_steps
    # Each batch is divided over the devices.
    with pytest.raises(Interrupted):
        finetune(configured(num_steps=30, batch_size=0, mesh={"fsdp": 8}))
    assert (seen["loop"].batch_size, seen["loop"].num_steps) == (8, 30)


def test_repeated_captions_are_counted(configured, tmp_path, caplog):
    lines = [{"image": f"{i}.png", "text": ["a", "a", "b"][i % 3]} for i in range(30)]
    file = tmp_path / "repeated.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    config = DataConfig(str(file), validation=str(file), test=str(file))
    splits = Splits(config, ImageFit(8))
    splits.warn_of_repeated_captions()
    assert "30 of 30 training images share their caption" in caplog.text
    assert "(20 have 'a')" in caplog.text


def test_a_mesh_that_does_not_divide_the_batch(configured, monkeypatch):
    monkeypatch.setattr(image_text, "read_preprocessing", None)  # It is not come to.
    with pytest.raises(ValueError, match=r"batch_size=12 must be a positive multiple"):
        train_config = configured(batch_size=12)
        finetune(train_config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "openclipar"}, r"data.name='openclipar'.*did you mean 'openclipart'"),
        ({"name": "clipart", "test": "a.jsonl"}, "clipart has splits of its own"),
        ({"validation": "tfds:x", "name": "a.tar"}, "must be a path"),
        ({"held_out": 0.5}, r"held_out=0.5 must be .* below 0.5"),
        ({"max_evaluated": 0}, "max_evaluated=0 must be at least 1"),
        ({"max_unreadable": -1}, "max_unreadable=-1 must be at least 0"),
    ],
)
def test_settings_of_data_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**changes)


def test_exports_that_make_no_sense_are_errors_before_training(configured, siglip):
    def exporting(form, path="out", variant="so400m_lora", **model):
        export = {"path": path, "format": form}
        return configured(variant, export=export, model=model).workload.build(
            export=ExportConfig(**export)
        )

    with pytest.raises(ValueError, match=r"'adapter' must be one of.*mean 'adapters'"):
        exporting("adapter")
    with pytest.raises(ValueError, match=r"'peft' needs an export\.path"):
        exporting("peft", path="")
    for form in ("adapters", "peft"):
        with pytest.raises(ValueError, match=r"writes adapters, and .*='all' has none"):
            exporting(form, variant="so400m")
    with pytest.raises(ValueError, match=r"is what the run reads; use another"):
        exporting("huggingface", path=f"{siglip}/../siglip")
    with pytest.raises(ValueError, match=r"no folder with one: model\.weights='nano'"):
        exporting("huggingface", weights="nano")
    # What only the model tells: its architecture, and what its adapters are on.
    nano = ModelConfig(weights="nano", processor=str(siglip))
    model = load_weights(nano, read_preprocessing(ModelConfig()))
    with pytest.raises(ValueError, match=r"neither CLIP's nor SigLIP's"):
        image_text_export.check_model(ExportConfig("out", "huggingface"), model)
    pool = {"pattern": r"pool/attention/query/kernel$"}
    with pytest.raises(ValueError, match=r"pool/attention/query/kernel is not a lin"):
        exporting("peft", lora=pool)


def test_names_of_the_model_that_are_not_known():
    with pytest.raises(ValueError, match=r"model.size='So400/14'.*mean 'So400m/14'"):
        ModelConfig(size="So400/14")
    with pytest.raises(ValueError, match=r"model.base='int4'.*did you mean 'int8'"):
        ModelConfig(base="int4")
    with pytest.raises(ValueError, match=r"remat='ful'.*did you mean 'full'"):
        ModelConfig(remat="ful")
    with pytest.raises(ValueError, match=r"param_dtype='float16'"):
        ModelConfig(param_dtype="float16")
    assert make_mesh(MeshConfig(fsdp=-1)).size == 8
