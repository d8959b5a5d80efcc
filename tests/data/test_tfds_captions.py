"""Captions of a prepared TFDS dataset: what is not UTF-8 is counted, not patched up."""

import io

import numpy as np
import pytest

from meta_opt.data.preprocessing.image_fit import ImageFit
from meta_opt.data.preprocessing.images import encode_png
from meta_opt.data.preprocessing.pictures import Pictures
from meta_opt.data.sources.tfds_captions import TfdsCaptions

tfds = pytest.importorskip("tensorflow_datasets")


def test_a_caption_in_another_encoding_is_counted(tmp_path):
    class LatinPictures(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "caption": tfds.features.Text(),
            }
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, caption in enumerate(("café".encode(), "thé".encode("latin-1"))):
                image = io.BytesIO(encode_png(np.zeros((4, 4, 3), np.uint8)))
                yield i, {"image": image, "caption": caption}

    LatinPictures(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    rows = TfdsCaptions("latin_pictures", "train", tmp_path)
    source = Pictures(rows, ImageFit(4))
    assert source.in_memory().captions == (("café",),)
    (reason,) = source.unreadable.reasons.values()
    assert "not UTF-8: 0xe9 at byte 3" in reason
