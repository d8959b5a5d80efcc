"""`meta_opt.fit`: ``python with_meta_opt.py FOLDER SEED OUT PRESET``."""

import json
import sys
from pathlib import Path


def predict(folder: Path, seed: int, preset: str) -> list[str]:
    """Fits on the training split and predicts the test split."""
    import meta_opt

    predictor = meta_opt.fit(
        folder / "train.csv",
        validation=folder / "validation.csv",
        test=folder / "test.csv",
        preset=preset,
        seed=seed,
    )
    return predictor.predict(folder / "test.csv").tolist()


if __name__ == "__main__":
    place, number, out, name = sys.argv[1:]
    predictions = predict(Path(place), int(number), name)
    Path(out).write_text(json.dumps(predictions), encoding="utf-8")
