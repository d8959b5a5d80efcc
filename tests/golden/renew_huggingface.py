"""Renews the golden files of ``tests/test_models_huggingface.py``.

    pip install torch transformers peft && python tests/golden/renew_huggingface.py

Writes a CLIP and a SigLIP of small random configuration the way Transformers saves them
and what PyTorch computes with them on the same images and token ids; and LoRA adapters
of each as PEFT saves them.
"""

from pathlib import Path

import numpy as np
import peft
import torch
import transformers

HERE = Path(__file__).parent
MODULES = ["q_proj", "fc1"]
TEXT = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "vocab_size": 50,
    "max_position_embeddings": 7,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}


def clip() -> transformers.PreTrainedModel:
    config = transformers.CLIPConfig(
        text_config={**TEXT, "eos_token_id": 49, "bos_token_id": 48, "pad_token_id": 1},
        vision_config=VISION,
        projection_dim=20,
    )
    return transformers.CLIPModel(config)


def siglip() -> transformers.PreTrainedModel:
    config = transformers.SiglipConfig(
        text_config={**TEXT, "projection_size": 32}, vision_config=VISION
    )
    return transformers.SiglipModel(config)


def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    text = rng.integers(2, 48, (5, 7))
    for row, end in enumerate((6, 3, 4, 2, 5)):
        text[row, end:] = 49 if row % 2 else 1
        text[row, end] = 49
    image = rng.integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    return {"image": image, "text": text.astype(np.int32)}


def main() -> None:
    given = batch()
    for name, build, mean, std in (
        (
            "clip",
            clip,
            (0.48145466, 0.4578275, 0.40821073),
            (0.26862954, 0.26130258, 0.27577711),
        ),
        ("siglip", siglip, (0.5,) * 3, (0.5,) * 3),
    ):
        torch.manual_seed(0)
        model = build().eval()
        # The initial scales are so small that nearly all is linear.
        with torch.no_grad():
            for tensor_name, tensor in model.named_parameters():
                if tensor.ndim and "logit" not in tensor_name:
                    tensor.add_(0.1 * torch.randn_like(tensor))
        folder = HERE / name
        model.save_pretrained(folder, max_shard_size="60KB")
        (folder / "generation_config.json").unlink(missing_ok=True)
        pixels = (given["image"] / 255 - np.array(mean)) / np.array(std)
        given_to_torch = {
            "input_ids": torch.tensor(given["text"]).long(),
            "pixel_values": torch.tensor(pixels.transpose(0, 3, 1, 2)).float(),
        }
        with torch.no_grad():
            out = model(**given_to_torch)
        np.savez_compressed(
            folder / "expected.npz",
            **given,
            image_embeds=out.image_embeds.numpy(),
            text_embeds=out.text_embeds.numpy(),
            logits=out.logits_per_image.numpy(),
        )
        adapter = peft.LoraConfig(
            r=3, lora_alpha=6, use_rslora=name == "siglip", target_modules=MODULES
        )
        adapted = peft.get_peft_model(model, adapter).eval()
        with torch.no_grad():
            for tensor_name, tensor in adapted.named_parameters():
                if "lora_B" in tensor_name:
                    tensor.normal_(std=0.2)
            out = adapted(**given_to_torch)
        adapted.save_pretrained(folder / "adapter")
        (folder / "adapter" / "README.md").unlink(missing_ok=True)
        np.savez_compressed(
            folder / "adapter" / "expected.npz", logits=out.logits_per_image.numpy()
        )
        print(folder, sorted(path.name for path in folder.iterdir()))


if __name__ == "__main__":
    main()
