"""The TFDS builders on small folders in the packages' layout."""

import json
import os

import numpy as np
import pytest
from PIL import Image

import meta_opt.data as data
from meta_opt.data.catalog.builders.clipart_files import clean_title, read_library
from meta_opt.data.catalog.emoji_artists import ARTISTS, CATEGORIES, GOOGLE, OPENMOJI
from meta_opt.data.missing import MissingDataError
from meta_opt.data.records import SPLITS
from meta_opt.data.sources.tfds_sources import make_builder, read_records
from meta_opt.data.splits import split_of, title_key

SVG = """<svg xmlns="http://www.w3.org/2000/svg" width="300" height="150"
 xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"
 xmlns:cc="http://web.resource.org/cc/" xmlns:dc="http://purl.org/dc/elements/1.1/">
<metadata><rdf:RDF><cc:Work rdf:about=""><dc:title>{title}</dc:title>
<dc:description>of  {title}</dc:description>
<dc:subject><rdf:Bag><rdf:li>fruit</rdf:li><rdf:li></rdf:li><rdf:li>fruit</rdf:li>
</rdf:Bag></dc:subject><cc:license rdf:resource="{licence}"/></cc:Work></rdf:RDF>
</metadata><rect width="150" height="150" fill="#00f"/></svg>"""
PUBLIC_DOMAIN = "http://web.resource.org/cc/PublicDomain"


def titles_of_each_split(count):
    """Returns ``count`` titles for each split."""
    words = (f"thing {chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(26 * 26))
    chosen = {split: [] for split in SPLITS}
    for word in words:
        split = split_of(title_key(word))
        if len(chosen[split]) < count:
            chosen[split].append(word)
    return [title for titles in chosen.values() for title in titles]


class ClipartFolder:
    """A manual folder of Open Clip Art."""

    def __init__(self, root):
        base = root / "downloads/manual/openclipart"
        share = "usr/share/openclipart"
        self.png = base / "openclipart-png" / share / "png"
        self.svg = base / "openclipart-svg" / share / "svg"
        self.png.mkdir(parents=True)
        self.svg.mkdir(parents=True)

    def add(self, path, title, image, licence=PUBLIC_DOMAIN):
        for root, suffix in ((self.png, ".png"), (self.svg, ".svg")):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            file = (root / path).with_suffix(suffix)
            if suffix == ".png":
                image.save(file)
            else:
                file.write_text(SVG.format(title=title, licence=licence))


def picture(seed):
    """A transparent image with a patch of its own colour."""
    colour = tuple(np.random.default_rng(seed).integers(0, 255, 3).tolist())
    image = Image.new("RGBA", (40, 20))
    image.paste((*colour, 255), (0, 0, 20, 20))
    return image


@pytest.fixture(scope="module")
def clipart_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("clipart")
    folder = ClipartFolder(root)
    for i, title in enumerate(titles_of_each_split(2)):
        folder.add(f"food/fruit/f{i}.png", title, picture(i))
    first = titles_of_each_split(1)[0]
    folder.add("animals/large.png", first + " 2", Image.new("1", (2100, 2000)))
    folder.add("shapes/stars/star.png", first + " 3", picture(90))
    folder.add("food/gpl.png", "gpl", picture(91), "http://x.org/licenses/GPL/2.0/")
    folder.add("tools/same.png", "same bytes", picture(0))
    os.symlink(folder.png / "animals/large.png", folder.png / "food/link.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("META_OPT_DATA_DIR", str(root))
        make_builder("openclipart").download_and_prepare()
    return root


def test_openclipart_records(clipart_root):
    rows = {
        row["path"]: (split, row)
        for split in SPLITS
        for row in read_records("openclipart", split, clipart_root)
    }
    assert sorted(rows) == [
        "animals/large.png",
        *(f"food/fruit/f{i}.png" for i in range(6)),
        "shapes/stars/star.png",
    ]
    for split, row in rows.values():
        assert split == split_of(title_key(row["title"]))
        assert row["keywords"] == ["fruit"]
        assert row["description"] == f"of {row['title']}"
        assert row["licence"] == PUBLIC_DOMAIN
    assert rows["food/fruit/f0.png"][1]["subcategory"] == "fruit"


def test_openclipart_source(clipart_root):
    source = data.tfds_source("openclipart", "train", clipart_root)
    assert source.keys == (
        "animals/large.png",
        "food/fruit/f0.png",
        "food/fruit/f1.png",
    )
    assert [source.class_names[i] for i in source.labels] == ["animals", "food", "food"]
    assert all(len(texts) == 1 for texts in source.captions)
    # Over four megapixels: rendered from the SVG, blue left and white right.
    large = source[0]["image"]
    assert large.shape == (64, 64, 3)
    np.testing.assert_array_equal(large[32, 10], (0, 0, 255))
    np.testing.assert_array_equal(large[32, 50], (255, 255, 255))
    longer = data.tfds_source(
        "openclipart", "train", clipart_root, captions="name_tags"
    )
    title = longer[0]["text"]
    assert longer.captions[0] == (title, f"{title}, fruit")


def test_openclipart_decodes_by_tfds_as_well(clipart_root):
    row = make_builder("openclipart", clipart_root).as_data_source("test")[0]
    assert row["image"].shape == (20, 40, 3) and row["image"].dtype == np.uint8


def test_library_reads_in_order_and_once(clipart_root):
    folder = clipart_root / "downloads/manual/openclipart"
    share = "usr/share/openclipart"
    roots = folder / f"openclipart-png/{share}/png", folder / f"openclipart-svg/{share}"
    files = list(read_library(roots[0], roots[1] / "svg"))
    paths = [file.path for file in files]
    assert paths == sorted(paths) and len({f.digest for f in files}) == len(files)


@pytest.mark.parametrize(
    ("title", "cleaned"),
    [
        ("Clipart by Nicu Buculei - pear", "pear"),
        ("stop_sign.svg", "stop sign"),
        ("  two\n words ", "two words"),
        ("Clipart by hand", "Clipart by hand"),
    ],
)
def test_clean_title(title, cleaned):
    assert clean_title(title) == cleaned


@pytest.fixture(scope="module")
def emoji_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("emoji")
    folder = root / "downloads/manual/emoji"
    codepoints = [f"{0x1F400 + i:X}" for i in range(30)] + ["2764-FE0F"]
    for artist in ARTISTS:
        images = folder / artist.folder / artist.images
        images.mkdir(parents=True)
        for i, codepoint in enumerate([*codepoints, "1F44D-1F3FB"]):
            if artist.suffix == ".svg":
                (images / f"{codepoint}.svg").write_text(SVG)
            elif not (artist == ARTISTS[1] and i == 3):  # one emoji lacks a drawing
                size = 256 if artist.suffix == ".webp" else 64
                file = images / f"{codepoint.lower()}{artist.suffix}"
                picture(i).resize((size, size)).save(file)
    entries = [
        {
            "unified": c,
            "name": f"FACE {i}",
            "category": CATEGORIES[i % 9],
            "subcategory": "face",
            "skin_variations": {"1F3FB": {"unified": f"{c}-1F3FB"}},
        }
        for i, c in enumerate(codepoints)
    ]
    tags = [
        {"hexcode": c, "annotation": f"face: {'new' * (i % 2)} {i}", "tags": "a, B c"}
        for i, c in enumerate(codepoints)
    ]
    for artist, content in ((GOOGLE, entries), (OPENMOJI, tags)):
        path = folder / artist.folder / artist.metadata[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    make_builder("emoji", root).download_and_prepare()
    return root


def test_emoji_are_drawn_by_all_artists_in_one_split(emoji_root):
    seen = {}
    for split in SPLITS:
        source = data.tfds_source("emoji", split, emoji_root)
        assert source.images().shape[1:] == (64, 64, 3)
        for key in source.keys:
            artist, codepoint = key.split("/")
            assert split_of(codepoint) == split
            seen.setdefault(codepoint, []).append(artist)
    assert len(seen) == 30 and "2764" in seen and "1f403" not in seen
    assert all(artists == [a.name for a in ARTISTS] for artists in seen.values())


def test_emoji_of_some_artists(emoji_root):
    source = data.tfds_source(
        "emoji", "train", emoji_root, artists=["fluent", "google"]
    )
    artists = [key.split("/")[0] for key in source.keys]
    half = len(source) // 2
    assert artists == ["fluent"] * half + ["google"] * half
    images, labels, names = data.emoji_arrays("train", "openmoji", emoji_root, size=32)
    assert images.shape == (half, 32, 32, 3) and labels.shape == (half,)
    assert names[labels[0]] == source.class_names[source.labels[0]]
    np.testing.assert_array_equal(images[0, 16, 4], (0, 0, 255))
    with pytest.raises(ValueError, match="'gogle'; did you mean 'google'"):
        data.tfds_source("emoji", "train", emoji_root, artists=["gogle"])


def test_emoji_captions(emoji_root):
    plain = data.tfds_source("emoji", "train", emoji_root, artists=["google"])
    longer = data.tfds_source(
        "emoji", "train", emoji_root, artists=["google"], captions="name_tags"
    )
    at = plain.keys.index("google/1f401")
    assert plain.captions[at] == ("face new 1",)
    assert longer.captions[at] == ("face new 1", "face new 1, a, b c", "face 1")
    with pytest.raises(ValueError, match="'tags'; did you mean 'name_tags'"):
        data.tfds_source("emoji", "train", emoji_root, captions="tags")


def test_pipeline_reads_a_prepared_dataset(emoji_root):
    source = data.tfds_source("emoji", "train", emoji_root)
    config = data.PipelineConfig()
    batch = next(data.make_iterator(source, data.load_tokenizer(), config, 8))
    assert batch["image"].shape == (8, 64, 64, 3)


@pytest.mark.parametrize("name", ["openclipart", "emoji"])
def test_a_missing_dataset_names_the_command(name, tmp_path):
    with pytest.raises(MissingDataError, match=rf"`make data`.*--only {name}"):
        data.tfds_source(name, "train", tmp_path)


def test_missing_files_name_the_command(tmp_path):
    ClipartFolder(tmp_path)
    with pytest.raises(MissingDataError, match=r"a \*\.png.*`make data`"):
        make_builder("openclipart", tmp_path).download_and_prepare()
    with pytest.raises(MissingDataError, match=r"google@16.0.0 .* `make data`"):
        make_builder("emoji", tmp_path).download_and_prepare()
    with pytest.raises(AssertionError, match="`make data`"):
        make_builder("emoji", tmp_path / "none").download_and_prepare()


def test_unknown_names(tmp_path):
    with pytest.raises(ValueError, match="'emojis'; did you mean 'emoji'"):
        data.tfds_source("emojis", "train", tmp_path)
    with pytest.raises(ValueError, match="no split 'valid'"):
        data.tfds_source("emoji", "valid", tmp_path)
    with pytest.raises(ValueError, match="artists belong to the dataset 'emoji'"):
        data.tfds_source("openclipart", "train", tmp_path, artists=["google"])
