"""The TFDS feature of speech clips."""

import numpy as np
import tensorflow_datasets as tfds

SPEECH = tfds.features.Tensor(shape=(None,), dtype=np.int16, encoding="bytes")
"""PCM at `meta_opt.data.preprocessing.audio.RATE` as bytes; numbers take up to ten."""
