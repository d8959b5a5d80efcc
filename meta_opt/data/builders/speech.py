"""How the datasets of speech store it."""

import numpy as np
import tensorflow_datasets as tfds

SPEECH = tfds.features.Tensor(shape=(None,), dtype=np.int16, encoding="bytes")
"""PCM at :data:`meta_opt.data.audio.RATE`; as bytes, since numbers take up to ten."""
