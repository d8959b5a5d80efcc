"""Hugging Face's Trainer and PEFT: ``python with_trainer.py FOLDER SEED OUT SETTING``.

Settings: ``default``, those of the library (three epochs, batch size 8, learning rate
5e-5 with linear decay to zero); ``guide``, those of its text classification guide,
https://huggingface.co/docs/transformers/tasks/sequence_classification; ``lora``, those
of PEFT's quick tour, https://huggingface.co/docs/peft/quicktour.
"""

import json
import sys
from pathlib import Path
from typing import Any

EVERY_EPOCH = {
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "load_best_model_at_end": True,
    "num_train_epochs": 2,
    "weight_decay": 0.01,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "guide": {
        **EVERY_EPOCH,
        "learning_rate": 2e-5,
        "per_device_train_batch_size": 16,
    },
    "lora": {
        **EVERY_EPOCH,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 32,
    },
}


def predict(folder: Path, seed: int, setting: str) -> list[str]:
    """Fits on the training split and predicts the test split."""
    from datasets import load_dataset
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    splits = ("train", "validation", "test")
    data = load_dataset("csv", data_files={s: str(folder / f"{s}.csv") for s in splits})
    names = sorted(set(data["train"]["label"]))
    tokenizer = AutoTokenizer.from_pretrained(folder / "encoder")
    data = data.map(
        lambda rows: {
            **tokenizer(rows["text"], truncation=True),
            "label": [names.index(name) for name in rows["label"]],
        },
        batched=True,
    )
    model = AutoModelForSequenceClassification.from_pretrained(
        folder / "encoder", num_labels=len(names)
    )
    if setting == "lora":
        lora = LoraConfig(TaskType.SEQ_CLS, r=8, lora_alpha=32, lora_dropout=0.1)
        model = get_peft_model(model, lora)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(output_dir="trainer", seed=seed, **SETTINGS[setting]),
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    trainer.train()
    logits = trainer.predict(data["test"]).predictions
    return [names[i] for i in logits.argmax(-1)]


if __name__ == "__main__":
    place, number, out, name = sys.argv[1:]
    predictions = predict(Path(place), int(number), name)
    Path(out).write_text(json.dumps(predictions), encoding="utf-8")
