"""Few-shot data: who is in which split and phase, the files, and bad input."""

import collections
import dataclasses
import json
import re

import numpy as np
import pytest
from commands import run_command
from PIL import Image

from meta_opt.data.preprocessing.images import render_drawing
from meta_opt.data.preprocessing.near_duplicates import (
    MAX_BITS,
    MAX_COLOUR,
    fingerprint,
    groups,
)
from meta_opt.data.preprocessing.pictures import UnreadableFilesError
from meta_opt.data.sources.few_shot import clipart
from meta_opt.data.sources.few_shot.files import write_dataset
from meta_opt.data.sources.few_shot.items import by_class, read_items
from meta_opt.data.sources.few_shot.protocol import FewShotConfig, choose
from meta_opt.data.sources.few_shot.source import SourceConfig, read_classes
from meta_opt.data.sources.image_text_rows import ImageTextRows
from meta_opt.data.sources.jsonl_samples import read_samples
from meta_opt.metrics.category_answers import CategoryParser

SMALL = FewShotConfig(
    train=8, validation=2, test=2, widths=(8, 16), candidates=30, max_unreadable=3
)
CLASSES = ("Hats", "men's shoes", "a, b & c")
SPLITS = ("train", "validation", "test")


def noise(seed, height=24, width=32):
    """An image unlike all others: 6 x 8 squares of random colours."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return np.kron(blocks, np.ones((height // 6, width // 8, 1), np.uint8))


def save(file, pixels):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


@pytest.fixture
def products(tmp_path):
    """Three classes of 14 images."""
    for i, name in enumerate(CLASSES):
        for j in range(14):
            save(tmp_path / "products" / name / f"{j:02}.png", noise(100 * i + j))
    return tmp_path / "products"


def chosen_of(products, config=SMALL):
    return choose(by_class(read_items(products)), config)


def lines(file):
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_the_published_sizes():
    config = FewShotConfig()
    assert (config.train, config.validation, config.test) == (28, 6, 6)
    assert (config.per_class, config.phases, config.widths) == (40, 4, (100, 200, 400))
    assert [30 * n for n in (28, 6, 6, 28 // 4)] == [840, 180, 180, 210]
    assert len(clipart.CLASSES) == 30


def test_splits_are_stratified_and_phases_disjoint(products):
    choice = chosen_of(products)
    keys = [one.item.key for chosen in choice.chosen.values() for one in chosen]
    assert len(set(keys)) == len(keys) == 3 * 12
    for name, chosen in choice.chosen.items():
        assert all(one.item.class_name == name for one in chosen)
        counts = collections.Counter((one.split, one.phase) for one in chosen)
        assert counts == {
            **{("train", phase): 2 for phase in (1, 2, 3, 4)},
            ("validation", 0): 2,
            ("test", 0): 2,
        }


def test_the_seed_decides(products):
    def where(seed):
        choice = chosen_of(products, FewShotConfig(**{**vars(SMALL), "seed": seed}))
        return [
            (o.item.key, o.split, o.phase) for c in choice.chosen.values() for o in c
        ]

    assert where(0) == where(0) != where(1)


def test_near_duplicates_stay_in_one_split_and_copies_go(products):
    rng = np.random.default_rng(0)
    for i in range(4):
        picture = noise(5000 + i)
        for j in range(3):  # Another compression, so to say.
            shaky = picture + rng.integers(-3, 4, picture.shape)
            pixels = np.clip(shaky, 0, 255).astype(np.uint8)
            save(products / "Hats" / f"near{i}_{j}.png", pixels)
        save(products / "Hats" / f"near{i}_copy.png", pixels)
    choice = chosen_of(products)
    assert choice.copies == 4 and choice.ambiguous == 0
    splits = collections.defaultdict(set)
    for one in choice.chosen["Hats"]:
        if found := re.search(r"near\d", one.item.key):
            splits[found[0]].add(one.split)
    assert len(splits) >= 2 and all(len(s) == 1 for s in splits.values())


def test_near_duplicates_of_another_class_go(products):
    save(products / "Hats" / "twin.png", noise(7777))
    save(products / "men's shoes" / "twin.png", noise(7777))
    choice = chosen_of(products)
    assert choice.ambiguous == 2
    keys = {o.item.key for chosen in choice.chosen.values() for o in chosen}
    assert not {key for key in keys if "twin" in key}


def test_a_class_of_near_duplicates_does_not_fill_the_splits(tmp_path):
    for j in range(20):
        save(tmp_path / "a" / f"{j}.png", noise(j))
        pixels = noise(1000)
        pixels[0, 0] = j
        save(tmp_path / "b" / f"{j}.png", pixels)
    message = "of the 20 images of class 'b' 20 are usable, in 1 groups"
    with pytest.raises(ValueError, match=message):
        chosen_of(tmp_path)


def test_cut_offs_of_near_duplicates():
    picture = Image.fromarray(noise(3, 240, 320))
    alike = [
        picture.resize((160, 120)),
        picture.convert("L").convert("RGB"),  # Another colour.
        picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        Image.fromarray(noise(4, 240, 320)),
    ]
    # The same on a large white page.
    page = Image.new("RGB", (900, 700), "white")
    page.paste(picture, (500, 300))
    prints = [fingerprint(image) for image in (picture, page, *alike)]
    bits, colours = (np.stack(column) for column in zip(*prints, strict=True))
    assert groups(bits, colours).tolist() == [0, 0, 0, 3, 4, 5]
    # At the cut-offs themselves, and past them.
    bits = np.zeros((2, 64), bool)
    colours = np.zeros((2, 8, 8, 3), np.uint8)
    bits[1, :MAX_BITS], colours[1] = True, int(MAX_COLOUR)
    assert groups(bits, colours).tolist() == [0, 0]
    bits[1, MAX_BITS] = True
    assert groups(bits, colours).tolist() == [0, 1]
    bits[1], colours[1] = False, int(MAX_COLOUR) + 1
    assert groups(bits, colours).tolist() == [0, 1]


def test_groups_are_chains_and_do_not_depend_on_blocks():
    rng = np.random.default_rng(0)
    bits = np.repeat(rng.random((10, 64)) < 0.5, 3, axis=0)
    for i in range(30):  # Of three, each differs from the next in five bits.
        bits[i, 5 * (i % 3) : 5 * (i % 3) + 5] ^= True
        bits[i, : 5 * (i % 3)] ^= True
    colours = np.zeros((30, 8, 8, 3), np.uint8)
    found = groups(bits, colours)
    assert found.tolist() == [3 * (i // 3) for i in range(30)]
    assert groups(bits, colours, block=7).tolist() == found.tolist()


def test_files_that_anyone_and_the_reader_of_samples_can_read(products, tmp_path):
    out = tmp_path / "made" / "few"
    about = write_dataset(out, by_class(read_items(products)), SMALL, "products")
    assert about == json.loads((out / "dataset.json").read_text("utf-8"))
    assert about["counts"] == {"train": 24, "validation": 6, "test": 6}
    assert about["classes"] == sorted(CLASSES)
    assert [p.name for p in out.parent.iterdir()] == ["few"]  # Nothing is left over.
    parser = CategoryParser(about["classes"])
    for width in SMALL.widths:
        folder = out / str(width)
        parts = [lines(folder / f"phase_{i}.jsonl") for i in (1, 2, 3, 4)]
        phases = [{row["image"] for row in part} for part in parts]
        assert [len(phase) for phase in phases] == [6] * 4
        assert len(set.union(*phases)) == 24  # Disjoint.
        train = {row["image"] for row in lines(folder / "train.jsonl")}
        assert train == set.union(*phases)
        up_to = {row["image"] for row in lines(folder / "phases_1_to_3.jsonl")}
        assert up_to == set.union(*phases[:3])
        for name in ("phase_1", "train", "validation", "test"):
            for sample in read_samples(folder / f"{name}.jsonl"):
                fields = sample.fields
                split = name if name in SPLITS else "train"
                assert fields.split == split and fields.prompt == about["prompt"]
                (target,) = fields.target
                assert json.loads(target) == {"category": fields.label}
                assert about["classes"][parser(target).category] == fields.label
                with Image.open(sample.media["image"].file) as image:
                    assert (image.size, image.mode) == ((width, width * 3 // 4), "RGB")
        rows = ImageTextRows(folder / "test.jsonl")
        assert rows.class_names == tuple(sorted(CLASSES)) and len(rows) == 6
    # At both widths a name stands for one image, in one split.
    test = [lines(out / str(width) / "test.jsonl") for width in SMALL.widths]
    assert test[0] == test[1]
    again = tmp_path / "again"
    write_dataset(again, by_class(read_items(products)), SMALL, "products")
    for file in (p for p in out.rglob("*") if p.is_file()):
        assert (again / file.relative_to(out)).read_bytes() == file.read_bytes()


def test_nothing_is_written_in_part(products, tmp_path, monkeypatch):
    out = tmp_path / "few"
    classes = by_class(read_items(products))
    with monkeypatch.context() as patch:
        patch.setattr(
            "meta_opt.data.sources.few_shot.files.write_json",
            lambda *_: (_ for _ in ()).throw(KeyboardInterrupt),
        )
        with pytest.raises(KeyboardInterrupt):
            write_dataset(out, classes, SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["products"]
    out.mkdir()
    write_dataset(out, classes, SMALL)  # An empty folder will do.
    with pytest.raises(ValueError, match="few already exists"):
        write_dataset(out, classes, SMALL)


def test_a_jsonl_file_and_a_table_say_the_same_as_folders(products, tmp_path):
    items = read_items(products)
    assert len(items) == 42 and items[0].key == "Hats/00.png"
    rows = [
        {"image": f"products/{item.key}", "label": item.class_name} for item in items
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    table = ["photo,price,department"]
    table += [f'"{r["image"]}",3,"{r["label"]}"' for r in rows]
    (tmp_path / "p.csv").write_text("\n".join(table))
    for found in (
        read_items(tmp_path / "p.jsonl"),
        read_items(tmp_path / "p.csv", "photo", "department"),
    ):
        assert [(i.key, i.class_name) for i in found] == [
            (f"products/{i.key}", i.class_name) for i in items
        ]
        assert found[3].read() == items[3].read()
    # As spreadsheets of some languages write it.
    (tmp_path / "s.csv").write_text("\n".join(x.replace(",", ";") for x in table[:4]))
    assert len(read_items(tmp_path / "s.csv", "photo", "department")) == 3
    with pytest.raises(ValueError, match=r"no column 'x'.*separated by semicolons"):
        read_items(tmp_path / "s.csv", "photo", "x")
    with pytest.raises(ValueError, match=r"both 'photo'; name two columns of .*p\.csv"):
        read_items(tmp_path / "p.csv", "photo", "photo")
    for other in (products, tmp_path / "p.jsonl"):
        with pytest.raises(ValueError, match=r"image_column='photo'.* is not a table"):
            read_items(other, "photo")


def test_unreadable_pictures_are_skipped_and_counted(products):
    for name in ("x.png", "y.png"):
        (products / "Hats" / name).write_bytes(b"no picture")
    (products / "Hats" / "notes.txt").write_text("no picture, and not meant as one")
    (products / "Hats" / "._x.png").write_bytes(b"of a Mac")
    choice = chosen_of(products)
    assert set(choice.unreadable) == {"Hats/x.png", "Hats/y.png"}
    for j in range(2):
        (products / "men's shoes" / f"z{j}.jpg").write_bytes(b"\xff\xd8")
    with pytest.raises(UnreadableFilesError, match="at most 3 may be skipped"):
        chosen_of(products)


def test_pictures_none_of_which_is_there(tmp_path):
    table = ["image,category"] + [f"a\\{i}.png,{'xy'[i % 2]}" for i in range(24)]
    file = write_text(tmp_path / "a.csv", "\n".join(table))
    with pytest.raises(ValueError, match=r"the first, a\\\d+.png: FileNotFoundError"):
        choose(
            by_class(read_items(file)), dataclasses.replace(SMALL, max_unreadable=24)
        )


def write_rows(file, *rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def write_text(file, text):
    file.write_text(text)
    return file


def empty(folder, name="a.png"):
    folder.mkdir(parents=True)
    (folder / name).write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: empty(p / "flat"), "flat has no folders; put the images of each"),
        (lambda p: p / "none", "there is no .*none; give a folder"),
        (lambda p: write_text(p / "a.xlsx", "PK"), r"a\.xlsx is of no kind that is"),
        (lambda p: p / "none.jsonl", "there is no file .*none.jsonl"),
        (lambda p: p / "none.csv", "there is no file .*none.csv"),
        (
            lambda p: write_rows(p / "a.jsonl", {"image": "a.png"}),
            "line 1: needs an `image` and a `label`; it has no `label`",
        ),
        (
            lambda p: write_rows(p / "a.jsonl", {"text": "a", "label": "b"}),
            "it has no `image`",
        ),
        (
            lambda p: write_rows(
                p / "a.jsonl", {"image": "a.png", "label": "b", "split": "test"}
            ),
            "line 1: has a `split`. The protocol makes its own splits",
        ),
        (
            lambda p: write_text(p / "a.csv", "image,category,Split\na.png,b,test\n"),
            "line 2: has a column `Split`. The protocol makes",
        ),
        (
            lambda p: write_text(
                p / "a.csv", "image,category\nhttps://x.org/a.png,b\n"
            ),
            "https://x.org/a.png is a URL; nothing is downloaded",
        ),
        (
            lambda p: write_text(p / "a.csv", "image,category\n"),
            "a.csv names no image",
        ),
        (
            lambda p: write_text(
                p / "a.csv", "image,category\na/../a/0.png,b\na/0.png,c\n"
            ),
            "the image a/0.png is in two classes",
        ),
        (
            lambda p: empty(p / "a" / "hats", "0.heic").parent,
            "the class folder .*hats has no image of a kind",
        ),
        (
            lambda p: empty(empty(p / "test") / "b").parents[1],
            r"has folders of splits \(test\)",
        ),
        (
            lambda p: write_rows(
                p / "a.jsonl",
                {"image": "a.png", "label": "b"},
                {"image": "./a.png", "label": "c"},
            ),
            "the image a.png is in two classes, 'b' and 'c'",
        ),
    ],
)
def test_bad_input_is_named(tmp_path, make, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_items(make(tmp_path))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("shoes", "shoes "), "'shoes' and 'shoes ' cannot be told apart"),
        (("cafe\u0301", "caf\u00e9"), "cannot be told apart.* Unicode form"),
        (("a", "!!!"), "category 0, '!!!', has no letters"),
    ],
)
def test_classes_that_answers_cannot_tell_apart(tmp_path, names, message):
    for i, name in enumerate(names):
        save(tmp_path / name / "0.png", noise(i))
    with pytest.raises(ValueError, match=message):
        by_class(read_items(tmp_path))


def test_hidden_folders_are_not_read(products):
    save(products / "Hats" / ".thumbnails" / "0.png", noise(1))
    save(products / "Hats" / "@eaDir" / "0.png", noise(1))
    save(products / "__MACOSX" / "0.png", noise(1))
    assert len(read_items(products)) == 42
    (products / "Hats").rename(products / "Hats ")
    assert sorted(by_class(read_items(products))) == sorted(CLASSES)


def test_a_tar_file_beside_the_classes_is_not_the_data(products, caplog):
    wanted = read_items(products)
    (products / "products.tar").write_bytes(b"not a tar file")
    assert [item.key for item in read_items(products)] == [x.key for x in wanted]
    assert "products.tar" in caplog.text


def test_bad_classes_are_named(products):
    items = read_items(products)
    with pytest.raises(ValueError, match="no class 'Hat'; did you mean 'Hats'"):
        by_class(items, ("Hat", "men's shoes"))
    with pytest.raises(ValueError, match=r"1 class \['Hats'\]; at least two"):
        by_class(items, ("Hats",))
    save(products / "hats" / "0.png", noise(1))
    with pytest.raises(ValueError, match="'Hats' and 'hats' cannot be told apart"):
        by_class(read_items(products))
    (products / "hats" / "0.png").rename(products / "Hats" / "14.png")
    (products / "hats").rmdir()
    for j in range(3):
        (products / "Hats" / f"{j:02}.png").rename(products / "a, b & c" / f"b{j}.png")
    message = r"14 images of each class are needed; 'Hats' has 12$"
    with pytest.raises(ValueError, match=message):
        chosen_of(products, FewShotConfig(**{**vars(SMALL), "test": 4}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": 27}, "train=27 images of a class do not divide into phases=4"),
        ({"test": 0}, "test=0 must be at least 1"),
        ({"widths": ()}, "widths="),
        ({"widths": (100, 100)}, "widths has 100 more than once"),
        ({"candidates": 39}, "candidates=39 are fewer than the 40"),
        ({"max_unreadable": -1}, "max_unreadable=-1"),
        ({"prompt": "What is it?"}, "has no {categories}"),
        ({"prompt": '{categories} as {"category": X}'}, "braces that are to stay"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(ValueError, match=message):
        FewShotConfig(**settings)


SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="{0}" height="{0}">'
    '<rect x="{1}" y="{1}" width="{2}" height="{3}" fill="{4}"/></svg>'
)


@pytest.mark.parametrize("width", [7, 100, 400])
def test_a_drawing_is_rendered_without_its_page(width):
    # 40 x 20 on a page of 800: whole, it would be 5 of 100 pixels wide.
    image = render_drawing(SVG.format(800, 600, 40, 20, "navy"), width)
    assert image.width == width
    dark = np.asarray(image)[..., 0] < 128
    # All of it, but for a pixel of the probe around: one of 13 wide, and of 6 high.
    assert dark.mean() > 0.6
    rows, columns = np.flatnonzero(dark.any(axis=1)), np.flatnonzero(dark.any(axis=0))
    assert np.ptp(columns) / (np.ptp(rows) + 1) == pytest.approx(2, abs=0.35)


@pytest.mark.parametrize(
    ("svg", "message"),
    [
        (SVG.format(100, 10, 5, 5, "white"), "empty, or white"),
        (SVG.format(1000, 0, 10, 1000, "black"), "more than 20 times as high"),
    ],
)
def test_drawings_that_are_refused(tmp_path, svg, message):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.svg").write_text(svg)
    (item,) = read_items(tmp_path)
    with pytest.raises(ValueError, match=message):
        item.preview()


def test_a_small_photograph_is_not_enlarged(tmp_path):
    save(tmp_path / "a" / "x.png", noise(0))
    (item,) = read_items(tmp_path)
    assert item.at_width(400).size == (32, 24) and item.at_width(16).size == (16, 12)


@pytest.mark.parametrize(
    ("path", "class_name"),
    [
        ("food/fruit/pear.png", "fruit"),
        ("food/pizza.png", ""),
        ("people/clothing/hats/cap.png", "clothing"),
        ("people/bodypart/ear.png", ""),
        ("signs_and_symbols/flags/europe/germany/bavaria.png", "European flag"),
        ("signs_and_symbols/flags/europe/france/lyon.png", ""),
        ("top.png", ""),
    ],
)
def test_the_deepest_folder_decides_the_class(path, class_name):
    assert clipart.class_of(path) == class_name


def test_a_keyword_comes_before_the_folder():
    assert clipart.class_of("transportation/horse.png") == "vehicle"
    for path in ("transportation/horse.png", "transportation/vehicles/route.png"):
        assert clipart.class_of(path, ("animal", "RoadSign")) == "road sign"
    assert clipart.class_of("animals/mammals/horse.png", ["roadsign"]) == "mammal"


def test_bundled_classes():
    classes = read_classes(SourceConfig("bundled", classes=("food", "animals")))
    assert list(classes) == ["animals", "food"]
    assert min(map(len, classes.values())) >= 40
    assert classes["food"][0].at_width(32).size == (32, 32)


def test_the_command(products, tmp_path):
    out = tmp_path / "few"
    settings = ("--config=configs/few_shot_data.py:own", f"--config.out={out}")
    ended = run_command("few_shot_data", *settings, f"--config.data.name={products}")
    assert ended.returncode == 1 and not out.exists()
    assert ended.stderr.splitlines()[-1] == (
        "few_shot_data: 40 images of each class are needed; 'Hats' has 14, "
        "'a, b & c' has 14, \"men's shoes\" has 14"
    )
    ended = run_command(
        *("few_shot_data", *settings, f"--config.data.name={products}"),
        *("--config.protocol.train=8", "--config.protocol.validation=2"),
        *("--config.protocol.test=2", "--config.protocol.widths=(16,)"),
    )
    assert ended.returncode == 0, ended.stderr
    assert "24, in 4 phases of 6" in ended.stdout
    assert (out / "16" / "phase_4.jsonl").is_file()
