"""Renews the golden files of ``tests/models/test_huggingface.py``.

    pip install torch transformers peft && python tests/golden/renew_huggingface.py

Writes a CLIP, a SigLIP and a PaliGemma of small random configuration the way
Transformers saves them and what PyTorch computes with them on the same images and token
ids; LoRA adapters of each as PEFT saves them, and further ones of the CLIP, started and
shaped in other ways. ``paligemma``, ``contrastive`` or ``adapters`` as an argument
renews that part alone.
"""

import sys
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


def paligemma() -> transformers.PreTrainedModel:
    config = transformers.PaliGemmaConfig(
        text_config={
            "model_type": "gemma",
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "vocab_size": 50,
        },
        vision_config={
            "model_type": "siglip_vision_model",
            **VISION,
            "vision_use_head": False,
        },
        image_token_index=IMAGE_TOKEN,
        projection_dim=24,
        hidden_size=24,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=1,
    )
    return transformers.PaliGemmaForConditionalGeneration(config)


def perturb(model: transformers.PreTrainedModel, by: float = 0.1) -> None:
    """The initial scales are so small that nearly all is linear."""
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.ndim and "logit" not in name:
                tensor.add_(by * torch.randn_like(tensor))


def pixel_values(image: np.ndarray, mean: tuple, std: tuple) -> torch.Tensor:
    pixels = (image / 255 - np.array(mean)) / np.array(std)
    return torch.tensor(pixels.transpose(0, 3, 1, 2)).float()


IMAGE_TOKEN, PATCHES = 49, 4


def generative() -> None:
    """PaliGemma: answers of training, where the prompt is read both ways, and written.

    Prompts and answers are apart and padded in the file; PyTorch gets them one after
    the other, as its processor makes them.
    """
    torch.manual_seed(0)
    model = paligemma().eval()
    perturb(model, 0.4)
    # Answers would be repetitions otherwise.
    model.get_input_embeddings().weight.data.mul_(0.3)
    folder = HERE / "paligemma"
    model.save_pretrained(folder, max_shard_size="60KB")
    (folder / "generation_config.json").unlink(missing_ok=True)
    rng = np.random.default_rng(0)
    rows, prompt_length, length = 4, 5, 6
    prompts = [[2, *rng.integers(3, 49, n)] for n in (4, 2, 0, 3)]
    answers = [[*rng.integers(3, 49, n), 1] for n in (5, 3, 4, 1)]
    prompt, text = np.zeros((rows, prompt_length)), np.zeros((rows, length))
    image = rng.integers(0, 256, (rows, 16, 16, 3), dtype=np.uint8)
    pixels = pixel_values(image, (0.5,) * 3, (0.5,) * 3)
    ids = np.zeros((rows, PATCHES + prompt_length + length), np.int64)
    kinds, labels = np.zeros_like(ids), np.full_like(ids, -100)
    logits, written = np.zeros((rows, length, 50)), np.zeros((rows, length))
    for row, (ask, answer) in enumerate(zip(prompts, answers, strict=True)):
        prompt[row, : len(ask)], text[row, : len(answer)] = ask, answer
        begin = PATCHES + len(ask)
        end = begin + len(answer)
        ids[row, :end] = [IMAGE_TOKEN] * PATCHES + ask + answer
        kinds[row, begin:end] = 1
        labels[row, begin:end] = answer
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(ids != 0).long(),
            token_type_ids=torch.tensor(kinds),
            labels=torch.tensor(labels),
            pixel_values=pixels,
        )
        for row, (ask, answer) in enumerate(zip(prompts, answers, strict=True)):
            begin = PATCHES + len(ask)
            at = slice(begin - 1, begin - 1 + len(answer))
            logits[row, : len(answer)] = out.logits[row, at]
            read = torch.tensor(ids[row : row + 1, :begin])
            answered = model.generate(
                input_ids=read,
                attention_mask=torch.ones_like(read),
                token_type_ids=torch.zeros_like(read),
                pixel_values=pixels[row : row + 1],
                do_sample=False,
                suppress_tokens=[0],
                max_new_tokens=length,
            )[0, begin:]
            written[row, : len(answered)] = answered
    np.savez_compressed(
        folder / "expected.npz",
        image=image,
        prompt=prompt.astype(np.int32),
        text=text.astype(np.int32),
        logits=logits.astype(np.float32),
        loss=out.loss.numpy(),
        written=written.astype(np.int32),
    )
    print(folder, sorted(path.name for path in folder.iterdir()))


def main() -> None:
    if "contrastive" in sys.argv or not sys.argv[1:]:
        contrastive()
    if "paligemma" in sys.argv or not sys.argv[1:]:
        generative()
    if "adapters" in sys.argv or not sys.argv[1:]:
        adapters()


ADAPTERS = {
    "pissa": {"init_lora_weights": "pissa", "target_modules": MODULES},
    "olora": {
        "init_lora_weights": "olora",
        "use_rslora": True,
        "target_modules": MODULES,
        "alpha_pattern": {"q_proj": 9},
    },
    "patterns": {
        "init_lora_weights": "gaussian",
        "target_modules": [*MODULES, "text_projection"],
        "exclude_modules": r".*vision.*fc1",
        "layers_to_transform": [0, 2],
        "layers_pattern": "layers",
        "rank_pattern": {r"layers\.0\.self_attn\.q_proj": 2},
        "alpha_pattern": {"vision_model.encoder.layers.2.self_attn.q_proj": 3},
    },
    "regex": {"target_modules": r"text_model.*layers\.1\..*\.q_proj|text_projection"},
}


def adapters() -> None:
    """Further adapters of the CLIP that is there, each with the logits it gives."""
    given = batch()
    given_to_torch = {
        "input_ids": torch.tensor(given["text"]).long(),
        "pixel_values": pixel_values(
            given["image"],
            (0.48145466, 0.4578275, 0.40821073),
            (0.26862954, 0.26130258, 0.27577711),
        ),
    }
    for name, settings in ADAPTERS.items():
        torch.manual_seed(0)
        model = transformers.CLIPModel.from_pretrained(HERE / "clip").eval()
        config = peft.LoraConfig(r=3, lora_alpha=6, **settings)
        adapted = peft.get_peft_model(model, config).eval()
        with torch.no_grad():
            for tensor_name, tensor in adapted.named_parameters():
                if "lora_B" in tensor_name:
                    tensor.add_(0.2 * torch.randn_like(tensor))
        folder = HERE / "clip" / f"adapter_{name}"
        adapted.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        about = folder / "adapter_config.json"
        text = about.read_text().replace(f'"{HERE / "clip"}"', "null")
        about.write_text(text)
        # As others load it: on the model as it was.
        model = transformers.CLIPModel.from_pretrained(HERE / "clip")
        loaded = peft.PeftModel.from_pretrained(model, folder).eval()
        with torch.no_grad():
            logits = loaded(**given_to_torch).logits_per_image.numpy()
        np.savez_compressed(folder / "expected.npz", logits=logits)
        print(folder, sorted(path.name for path in folder.iterdir()))


def contrastive() -> None:
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
        perturb(model)
        folder = HERE / name
        model.save_pretrained(folder, max_shard_size="60KB")
        (folder / "generation_config.json").unlink(missing_ok=True)
        given_to_torch = {
            "input_ids": torch.tensor(given["text"]).long(),
            "pixel_values": pixel_values(given["image"], mean, std),
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
