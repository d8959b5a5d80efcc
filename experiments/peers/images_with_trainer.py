"""Hugging Face's Trainer: ``python images_with_trainer.py FOLDER SEED OUT SETTING``.

Settings: ``default``, those of the library (three epochs, batch size 8, learning rate
5e-5 with linear decay to zero); ``guide``, those of its image classification guide,
https://huggingface.co/docs/transformers/tasks/image_classification.
"""

import json
import sys
from pathlib import Path
from typing import Any

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "guide": {
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "metric_for_best_model": "accuracy",
        "learning_rate": 5e-5,
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 4,
        "num_train_epochs": 3,
        "warmup_ratio": 0.1,
    },
}


def predict(folder: Path, seed: int, setting: str) -> list[str]:
    """Fits on the training split and predicts the test split."""
    from datasets import Image, load_dataset
    from torchvision.transforms.v2 import RandomResizedCrop
    from transformers import (
        AutoImageProcessor,
        AutoModelForImageClassification,
        Trainer,
        TrainingArguments,
    )

    splits = ("train", "validation", "test")
    data = load_dataset("csv", data_files={s: str(folder / f"{s}.csv") for s in splits})
    names = sorted({name for split in splits for name in data[split]["label"]})
    processor = AutoImageProcessor.from_pretrained(folder / "encoder")
    model = AutoModelForImageClassification.from_pretrained(
        folder / "encoder", num_labels=len(names), ignore_mismatched_sizes=True
    )
    crop = RandomResizedCrop(224)

    def inputs(rows, change=lambda image: image):
        images = [change(image.convert("RGB")) for image in rows["image"]]
        labels = [names.index(name) for name in rows["label"]]
        return {"pixel_values": processor(images)["pixel_values"], "labels": labels}

    data = data.cast_column("image", Image())
    data = {split: rows.with_transform(inputs) for split, rows in data.items()}
    data["train"] = data["train"].with_transform(lambda rows: inputs(rows, crop))
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir="trainer",
            seed=seed,
            remove_unused_columns=False,
            **SETTINGS[setting],
        ),
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        compute_metrics=lambda found: {
            "accuracy": (found.predictions.argmax(-1) == found.label_ids).mean()
        },
    )
    trainer.train()
    logits = trainer.predict(data["test"]).predictions
    return [names[i] for i in logits.argmax(-1)]


if __name__ == "__main__":
    place, number, out, name = sys.argv[1:]
    predictions = predict(Path(place), int(number), name)
    Path(out).write_text(json.dumps(predictions), encoding="utf-8")
