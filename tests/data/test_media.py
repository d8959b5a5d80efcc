"""Speech, stamps, clips, names and glyphs, on small folders in the packages' layout."""

import gzip
import io
import json
import unicodedata

import numpy as np
import pytest
from PIL import Image

import meta_opt.data as data
from meta_opt.data import prepare
from meta_opt.data.catalog.builders import animated_emoji, asterisk, klettres, tuxpaint
from meta_opt.data.catalog.emoji_artists import GOOGLE
from meta_opt.data.catalog.emoji_clips import CLIPS, NAMES, SENTIMENTS
from meta_opt.data.missing import MissingDataError
from meta_opt.data.preprocessing.images import (
    TooManyPixelsError,
    decode_frames,
    render_svg,
)
from meta_opt.data.records import SPLITS
from meta_opt.data.sources.cldr import LANGUAGES
from meta_opt.data.sources.glyphs import CHARACTERS, FONTS
from meta_opt.data.sources.tfds_sources import make_builder, read_records
from meta_opt.data.splits import split_of, title_key

soundfile = pytest.importorskip("soundfile")

MEDIA = ("klettres", "tuxpaint", "asterisk", "animated_emoji")


def write_tone(path, frequency, seconds=0.3, rate=8000):
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate)) / rate
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * frequency * time), rate)


def pitch(speech):
    """The loudest frequency of a clip, in Hz."""
    return int(np.abs(np.fft.rfft(speech, 8000)).argmax())


def rows_of(name, root):
    return {s: list(read_records(name, s, root)) for s in SPLITS}


@pytest.fixture(scope="module")
def klettres_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("klettres")
    folder = root / "downloads/manual" / klettres.FOLDER
    for language, count in (("fr", 26), ("da", 24), ("tn", 2)):
        letters = []
        for i in range(count):
            file = f"{language}/alpha/a-{i}.ogg"
            letters.append(f'<sound name=" {chr(65 + i)} " file="{file}" />')
            write_tone(folder / file, 400 + 20 * i, rate=44100)
        letters.append(f'<sound name="ZZ" file="{language}/alpha/a-0.ogg" />')  # again
        # One file that is there and one that is not.
        write_tone(folder / language / "syllab/s-0.ogg", 1000)
        (folder / language / "sounds.xml").write_text(
            f'<!-- x -->\n<klettres><language code="{language}"><menuitem><label>x'
            f"</label></menuitem><alphabet>{''.join(letters)}</alphabet><syllables>"
            f'<sound name="BÅ" file="{language}/syllab/s-0.ogg" /><sound name="NO" '
            f'file="{language}/syllab/s-1.ogg" /></syllables></language></klettres>'
        )
    make_builder("klettres", root).download_and_prepare()
    return root


def test_klettres_records(klettres_root):
    parts = rows_of("klettres", klettres_root)
    rows = {row["path"]: row for part in parts.values() for row in part}
    assert len(rows) == 26 + 24 + 2 + 3
    for split, part in parts.items():
        assert all(split_of(f"{r['language']}/{r['text']}") == split for r in part)
    letter, syllable = rows["da/alpha/a-2.ogg"], rows["da/syllab/s-0.ogg"]
    assert (letter["text"], letter["kind"]) == ("C", "letter")
    assert rows["fr/alpha/a-0.ogg"]["text"] == "A"
    assert (syllable["text"], syllable["kind"]) == ("BÅ", "syllable")
    assert letter["speech"].dtype == np.int16
    assert abs(letter["speech"].size - 2400) < 200
    assert abs(pitch(letter["speech"]) - 440) < 5


def test_klettres_arrays(klettres_root):
    total = 0
    for split in SPLITS:
        mel, labels, names = data.klettres_arrays(split, klettres_root, min_clips=20)
        assert names == ("da", "fr")  # "tn" has too few
        assert mel.shape == (len(labels), 32, 24) and mel.dtype == np.float32
        total += len(labels)
    assert total == 25 + 27
    assert labels.dtype == np.int32 and np.all(np.diff(labels) >= 0)
    mel, labels, names = data.klettres_arrays("test", klettres_root, min_clips=99)
    assert mel.shape == (0, 32, 24) and labels.shape == (0,) and names == ()


@pytest.fixture(scope="module")
def asterisk_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("asterisk")
    folder = root / "downloads/manual/asterisk"
    texts = folder / "asterisk-core-sounds-en" / asterisk.TEXTS / asterisk.TEXT_FILE
    texts.parent.mkdir(parents=True)
    keys = [*(f"digits/{i}" for i in range(12)), "letters/at", "long", "beep"]
    words = {"letters/at": "at [@]", "beep": "[a tone: beep]"}
    lines = ["; remark: none", "", "only-text: Nobody says it"]
    lines += [f"{key}: {words.get(key, f'word: {key}')}" for key in keys]
    lines.append("silence/1: (one second)")
    texts.write_bytes(gzip.compress("\n".join(lines).encode()))
    for i, language in enumerate(asterisk.LANGUAGES):
        sounds = folder / f"asterisk-core-sounds-{language}-wav" / asterisk.SOUNDS
        for j, key in enumerate([*keys, "silence/1", "untold"]):
            if not (language == "ru" and key == "digits/11"):
                seconds = 2.0 if key == "long" else 0.2
                write_tone(
                    sounds / f"{language}_X_{i}/{key}.wav", 500 + 50 * j, seconds
                )
    make_builder("asterisk", root).download_and_prepare()
    return root


def test_asterisk_records(asterisk_root):
    parts = rows_of("asterisk", asterisk_root)
    for split, part in parts.items():
        assert all(split_of(row["key"]) == split for row in part)
    rows = {(r["voice"], r["key"]): r for part in parts.values() for r in part}
    assert len(rows) == 5 * 14 - 1
    assert rows["en_X_0", "letters/at"]["text"] == "at"
    row = rows["ru_X_4", "digits/3"]
    assert row["text"] == "word: digits/3" and abs(pitch(row["speech"]) - 650) < 5
    assert rows["it_X_3", "long"]["speech"].size == 12000


def test_asterisk_arrays_by_prompt(asterisk_root):
    keys = set()
    for split in SPLITS:
        arrays = data.asterisk_arrays(split, asterisk_root)
        # "digits/11" is not in all voices, and "long" was cut.
        assert len(arrays.keys) == 12 and "long" not in arrays.keys
        assert arrays.mel.shape == (len(arrays.key), 32, 24)
        found = {arrays.keys[i] for i in arrays.key}
        assert all(split_of(key) == split for key in found)
        assert len(arrays.key) == 5 * len(found)
        keys |= found
    assert keys == set(arrays.keys)


def test_asterisk_arrays_with_a_voice_held_out(asterisk_root):
    parts = {
        split: data.asterisk_arrays(split, asterisk_root, held_out="fr_X_2")
        for split in SPLITS
    }
    voices = parts["train"].voices
    others = [voices.index(v) for v in voices if v != "fr_X_2"]
    assert sorted(set(parts["train"].voice)) == others
    assert len(parts["train"].key) == 4 * 12
    held = [parts[s] for s in ("validation", "test")]
    assert all({voices[i] for i in part.voice} == {"fr_X_2"} for part in held)
    assert sorted(np.concatenate([part.key for part in held])) == list(range(12))
    assert parts["test"].texts[0] == f"word: {parts['test'].keys[parts['test'].key[0]]}"
    letters = data.asterisk_arrays("train", asterisk_root, folders=["letters"])
    assert letters.keys == ("letters/at",)
    with pytest.raises(ValueError, match="'fr_X_1'; did you mean"):
        data.asterisk_arrays("train", asterisk_root, held_out="fr_X_1")
    with pytest.raises(ValueError, match="no prompt of the folders"):
        data.asterisk_arrays("train", asterisk_root, folders=["none"])


@pytest.fixture(scope="module")
def tuxpaint_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("tuxpaint")
    stamps = root / "downloads/manual" / tuxpaint.FOLDER
    for i in range(24):
        stem = stamps / f"animals/birds/b{i}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        # Two stamps share each caption, but for case and full stop.
        ending = "." if i % 2 else ""
        name = chr(97 + i // 2)
        stem.with_suffix(".txt").write_text(
            f"A {name}bird{ending}\nfr.utf8=Un oiseau {name}.\n\nnonsense\n"
            f"ca@valencia.utf8=Un ocell {name}\nel.utf8=\n",
            encoding="utf-8-sig" if i == 3 else "utf-8",
        )
        image = Image.new("RGBA", (40, 20))
        image.paste((0, 0, 255, 255), (0, 0, 20, 20))
        image.save(stem.with_suffix(".png"))
        if i != 5:
            write_tone(stem.with_name(f"b{i}_desc_ro.ogg"), 700, 0.2)
        if i == 4:
            write_tone(stem.with_name("b4_desc_fr.ogg"), 1100, 0.4, 44100)
            write_tone(stem.with_name("b4_desc.ogg"), 1500, 0.1)
            write_tone(stem.with_name("b4_desc_da.ogg.ogg"), 300)
            write_tone(stem.with_name("b4.ogg"), 300)
    for path in ("symbols/one", "tools/saw", "food/none"):
        (stamps / path).parent.mkdir(parents=True)
        (stamps / path).with_suffix(".txt").write_text("A thing.")
    for path in ("symbols/one", "tools/saw"):
        (stamps / path).with_suffix(".svg").write_text(
            '<svg xmlns="http://www.w3.org/2000/svg" width="2cm" height="2cm">'
            '<rect width="1cm" height="2cm" fill="#f00"/></svg>'
        )
    make_builder("tuxpaint", root).download_and_prepare()
    return root


def test_tuxpaint_records(tuxpaint_root):
    parts = rows_of("tuxpaint", tuxpaint_root)
    rows = {row["key"]: row for part in parts.values() for row in part}
    # No symbols, and no stamp without an image.
    assert sorted({row["category"] for row in rows.values()}) == ["animals", "tools"]
    assert len(rows) == 25
    for split, part in parts.items():
        assert all(split_of(title_key(row["caption"])) == split for row in part)
    row = rows["animals/birds/b4"]
    assert row["caption"] == "A cbird"
    assert row["caption_languages"] == ["ca@valencia", "fr"]
    assert row["captions"] == ["Un ocell c", "Un oiseau c."]
    assert row["speech_languages"] == ["en", "fr", "ro"]
    clips = np.split(row["speech"], np.cumsum(row["speech_lengths"])[:-1])
    assert [round(pitch(clip), -2) for clip in clips] == [1500, 1100, 700]
    assert rows["animals/birds/b3"]["caption"] == "A bbird."


def test_tuxpaint_arrays(tuxpaint_root):
    total = 0
    for split in SPLITS:
        arrays = data.tuxpaint_arrays(split, tuxpaint_root)
        assert arrays["class_names"] == ("animals",)
        count = len(arrays["caption"])
        assert arrays["image"].shape == (count, 16, 16, 3)
        assert arrays["image"].dtype == np.uint8
        assert arrays["mel"].shape == (count, 32, 24)
        for i, key in enumerate(arrays["key"]):
            number = int(key.rpartition("/b")[2])
            language = {4: "fr", 5: ""}.get(number, "ro")
            assert arrays["speech_language"][i] == language
            assert arrays["mel"][i].any() == bool(language)
            letter = chr(97 + number // 2)
            assert arrays["translations"][i] == (
                (arrays["caption"][i], "en"),
                (f"Un ocell {letter}", "ca@valencia"),
                (f"Un oiseau {letter}.", "fr"),
            )
            np.testing.assert_array_equal(arrays["image"][i, 8, 2], (0, 0, 255))
        total += count
    assert total == 24
    everything = [
        data.tuxpaint_arrays(s, tuxpaint_root, 32, min_items=1) for s in SPLITS
    ]
    (saw,) = [
        arrays["image"][i]
        for arrays in everything
        for i, label in enumerate(arrays["label"])
        if arrays["class_names"][label] == "tools"
    ]
    np.testing.assert_array_equal(saw[16, 8], (255, 0, 0))
    np.testing.assert_array_equal(saw[16, 24], (255, 255, 255))


def test_lengths_in_points_are_not_zero():
    svg = '<svg xmlns="http://www.w3.org/2000/svg" width="12pt" height="12pt"></svg>'
    assert render_svg(svg, 10).size == (10, 10)


def animation(count, size=(40, 40), suffix="webp"):
    """The bytes of a clip whose frame i is grey of the value 4 i, lossless."""
    frames = [Image.new("RGBA", size, (4 * i,) * 3 + (255,)) for i in range(count)]
    buffer = io.BytesIO()
    frames[0].save(
        buffer, suffix, save_all=True, append_images=frames[1:], lossless=True
    )
    return buffer.getvalue()


def test_frames_lie_at_even_distances():
    frames = decode_frames(animation(20), 8)
    values = [frame.getpixel((0, 0)) for frame in frames]
    assert values == [(4 * (i * 20 // 8),) * 3 for i in range(8)]
    assert decode_frames(animation(7), 8) == []
    repeated = decode_frames(animation(3), 8, repeat=True)
    assert [repeated.index(frame) for frame in repeated] == [0, 0, 0, 3, 3, 3, 6, 6]
    assert len(decode_frames(animation(8, suffix="gif"), 8)) == 8
    with pytest.raises(TooManyPixelsError, match="a frame is 40 x 40 pixels"):
        decode_frames(animation(8), 8, max_pixels=1000)


@pytest.fixture(scope="module")
def animated_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("animated")
    folder = root / "downloads/manual/animated_emoji"
    clips = [folder / p.folder / p.members[0] for p in CLIPS]
    clip, picture = animation(16), animation(1)
    codepoints = [f"1F4{i:02X}" for i in range(24)]
    for i, codepoint in enumerate([*codepoints, "1F44D-1F3FB", "1F600-FE0F"]):
        file = clips[i % 4] / f"{codepoint.lower()}.webp"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture if i == 7 else clip)
    names = folder / NAMES.folder / GOOGLE.metadata[0]
    names.parent.mkdir(parents=True)
    entries = [
        {"unified": c, "name": f"CAT {c}", "category": "Animals & Nature"}
        for c in codepoints
    ]
    entries.append(
        {"unified": "1F600", "name": "GRIN", "category": "Smileys & Emotion"}
    )
    entries.append({"unified": "1F44D", "name": "THUMB", "category": "People & Body"})
    names.write_text(json.dumps(entries))
    ranking = folder / SENTIMENTS.folder / animated_emoji.SENTIMENT_FILE
    ranking.parent.mkdir(parents=True)
    ranking.write_text(
        "Emoji,Unicode codepoint,Occurrences,Position,Negative,Neutral,Positive,"
        "Unicode name,Unicode block\n"
        "x,0x1f600,9,0.5,1,2,6,GRIN,Emoticons\nx,0x1f400,9,0.5,3,0,1,CAT,Other\n"
        "x,0x1f401,0,0.5,0,0,0,CAT,Other\n"
    )
    make_builder("animated_emoji", root).download_and_prepare()
    return root


def test_animated_emoji_arrays(animated_root):
    found = {}
    for split in SPLITS:
        arrays = data.animated_emoji_arrays(split, animated_root, min_items=1)
        assert arrays["class_names"] == ("animals & nature", "smileys & emotion")
        count = len(arrays["name"])
        assert arrays["video"].shape == (count, 8, 16, 16, 3)
        assert arrays["sentiment"].dtype == np.float32
        for i, codepoint in enumerate(arrays["codepoint"]):
            assert split_of(codepoint) == split
            expected = [8 * k for k in range(8)]
            assert arrays["video"][i, :, 3, 3, 0].tolist() == expected
            found[codepoint] = arrays["name"][i], arrays["sentiment"][i]
    # The image that does not move, skin tones and what has no file are left out.
    assert len(found) == 24 and "1f407" not in found and "1f44d" not in found
    name, sentiment = found["1f600"]
    assert name == "grin" and abs(sentiment - 5 / 9) < 1e-6
    assert found["1f400"][1] == -0.5
    assert np.isnan(found["1f401"][1]) and np.isnan(found["1f402"][1])
    frequent = data.animated_emoji_arrays("test", animated_root, 32)
    assert frequent["class_names"] == ("animals & nature",)
    assert frequent["video"].shape[2:] == (32, 32, 3)


def test_cldr_names():
    seen = {}
    for split in SPLITS:
        texts, labels, names = data.cldr_arrays(split)
        assert names == LANGUAGES and len(names) >= 60
        assert labels.dtype == np.int32 and labels.shape == (len(texts),)
        seen[split] = {(t, names[n]) for t, n in zip(texts, labels, strict=True)}
        again = data.cldr_arrays(split)
        assert again[0] == texts and np.array_equal(again[1], labels)
    # Counted in another way: Germany is in one split, in every language.
    home = split_of("territory/DE")
    expected = {("Alemania", "es"), ("Tyskland", "da"), ("Saksa", "fi")}
    texts, labels, names = data.cldr_arrays(home, max_languages=99)
    pairs = {(t, names[n]) for t, n in zip(texts, labels, strict=True)}
    assert expected <= pairs
    assert ("Saksa", "fi") in seen[home]
    for split in set(SPLITS) - {home}:
        assert ("Saksa", "fi") not in seen[split]
    assert set(range(len(LANGUAGES))) == set(data.cldr_arrays("train")[1])


def test_cldr_names_are_in_latin_script_and_told_apart():
    texts, labels, _ = data.cldr_arrays("validation", max_languages=1)
    lower = [text.casefold() for text in texts]
    by_text = {}
    for text, label in zip(lower, labels, strict=True):
        by_text.setdefault(text, set()).add(int(label))
    assert all(len(found) == 1 for found in by_text.values())
    letters = [c for c in "".join(texts) if c.isalpha()]
    latin = sum("LATIN" in unicodedata.name(c) for c in letters)
    assert latin > 0.995 * len(letters)
    with pytest.raises(ValueError, match="no split 'dev'"):
        data.cldr_arrays("dev")


def test_glyphs():
    fonts = []
    for split in SPLITS:
        images, labels, names, drawn_with = data.glyph_arrays(split)
        assert images.shape == (len(labels), 16, 16) and images.dtype == np.uint8
        assert len(labels) == len(drawn_with) == 4 * 62 * len(FONTS[split])
        assert names == CHARACTERS and np.bincount(labels).tolist() == [
            4 * len(FONTS[split])
        ] * len(names)
        assert images.reshape(len(images), -1).max(axis=1).min() > 100  # none is empty
        fonts += sorted(set(drawn_with))
    assert len(fonts) == len(set(fonts)) == 22
    # An "l" is a narrow bar in the middle; in a font without serifs it is nearly all.
    images, labels, names, drawn_with = data.glyph_arrays("train", [14])
    at = drawn_with.index("DejaVuSans") + names.index("l")
    assert labels[at] == names.index("l")
    columns = images[at].sum(axis=0)
    assert (
        columns[6:10].sum() == columns.sum()
        and (images[at].max(axis=1) > 0)[2:12].all()
    )
    # Letters with tails go below the base line, row 12, and those without do not.
    start = drawn_with.index("DejaVuSans")
    below = {c: images[start + names.index(c)][13:].sum() for c in "gpqyHxn"}
    assert all((below[c] > 0) == (c in "gpqy") for c in below)


@pytest.mark.parametrize("name", MEDIA)
def test_a_missing_dataset_names_the_command(name, tmp_path):
    read = getattr(data, f"{name}_arrays")
    with pytest.raises(MissingDataError, match=f"--only {name}") as error:
        read("train", tmp_path)
    assert "`make data`" in str(error.value)
    with pytest.raises(ValueError, match="no split 'dev'"):
        read("dev", tmp_path)
    with pytest.raises(
        ValueError, match=rf"{name}.*read it with meta_opt.data.sources.media_arr"
    ):
        data.tfds_source(name, "train", tmp_path)


@pytest.mark.parametrize("name", MEDIA)
def test_missing_files_name_the_command(name, tmp_path):
    (tmp_path / "downloads/manual/other").mkdir(parents=True)
    with pytest.raises(MissingDataError, match=f"--only {name}"):
        make_builder(name, tmp_path).download_and_prepare()
    with pytest.raises(AssertionError, match=f"--only {name}"):
        make_builder(name, tmp_path / "none").download_and_prepare()


ENCODERS = ["minilm", "efficientnet_lite0", "whisper_tiny"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            [],
            [
                *("openclipart", "emoji", "klettres", "tuxpaint", "asterisk"),
                *prepare.RAW_PACKAGES,
                *ENCODERS,
            ],
        ),
        (["--all"], [*prepare.PACKAGES, *prepare.RAW_PACKAGES, *ENCODERS]),
        (["--only", "oxygen"], ["oxygen"]),
        (["--only", "animated_emoji"], ["animated_emoji"]),
        (["--only", "encoders"], ENCODERS),
    ],
)
def test_the_large_dataset_is_asked_for(arguments, expected, monkeypatch, capsys):
    for function in ("prepare", "prepare_raw", "prepare_encoder"):
        monkeypatch.setattr(prepare, function, lambda name, root: name)
    assert prepare.main(arguments) == 0
    assert capsys.readouterr().out.split() == expected


def test_packages_are_pinned():
    raw = {name: (package,) for name, package in prepare.RAW_PACKAGES.items()}
    for name, packages in (prepare.PACKAGES | raw).items():
        folders = [package.folder for package in packages]
        assert len(set(folders)) == len(folders), name
        for package in packages:
            pinned = getattr(package, "known", None) or package.version
            assert pinned and package.members, package
