"""AutoGluon-MultiModal: ``python images_with_autogluon.py FOLDER SEED OUT PRESET``.

The encoder is given, because the preset's own would have to be downloaded. All other
settings are the preset's; AutoGluon's default is ``high_quality``.
"""

import json
import sys
from pathlib import Path


def predict(folder: Path, seed: int, preset: str) -> list[str]:
    """Fits on the training split and predicts the test split."""
    import pandas as pd
    from autogluon.multimodal import MultiModalPredictor

    predictor = MultiModalPredictor(label="label")
    predictor.fit(
        pd.read_csv(folder / "train.csv"),
        tuning_data=pd.read_csv(folder / "validation.csv"),
        presets=preset,
        seed=seed,
        hyperparameters={
            "model.names": ["timm_image"],
            "model.timm_image.checkpoint_name": str(folder / "encoder"),
        },
    )
    return predictor.predict(pd.read_csv(folder / "test.csv")).tolist()


def write_checkpoint(encoder: Path) -> None:
    """Writes ``pytorch_model.bin``, which AutoGluon reads, without the classifier."""
    import torch
    from safetensors.torch import load_file

    tensors = load_file(encoder / "model.safetensors")
    kept = {k: v for k, v in tensors.items() if not k.startswith("classifier.")}
    torch.save(kept, encoder / "pytorch_model.bin")


if __name__ == "__main__":
    place, number, out, name = sys.argv[1:]
    write_checkpoint(Path(place) / "encoder")
    predictions = predict(Path(place), int(number), name)
    Path(out).write_text(json.dumps(predictions), encoding="utf-8")
