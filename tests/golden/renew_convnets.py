"""Renews the golden files of ``tests/models/test_convnets.py``.

    pip install torch transformers timm && python tests/golden/renew_convnets.py

Writes small ResNets and ConvNeXts of random weights, and of batch statistics that are
not 0 and 1, as folders the way Transformers and timm save them, and what PyTorch
computes with them on the same images.
"""

from pathlib import Path

import numpy as np
import timm
import torch
import transformers

HERE = Path(__file__).parent / "convnets"
CLASSES = 5
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def perturbed(model: torch.nn.Module) -> torch.nn.Module:
    """Makes every part matter: norms, biases, layer scales and batch statistics too."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "gamma" in name or "layer_scale" in name:
                tensor.uniform_(0.3, 1)
            elif tensor.ndim > 1:
                fan_in = tensor[0].numel()
                tensor.normal_(std=fan_in**-0.5)
            else:
                tensor.add_(0.3 * torch.randn_like(tensor))
        for name, tensor in model.named_buffers():
            if name.endswith("running_mean"):
                tensor.normal_(std=0.5)
            elif name.endswith("running_var"):
                tensor.uniform_(0.3, 2)
    return model.eval()


def of_transformers() -> dict[str, torch.nn.Module]:
    labels = {i: f"class {i}" for i in range(CLASSES)}
    resnet = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[16, 24, 32], depths=[1, 2, 1], id2label=labels
    )
    convnext = transformers.ConvNextConfig(
        hidden_sizes=[8, 12, 16], depths=[1, 2, 1], num_stages=3, id2label=labels
    )
    return {
        "resnet": transformers.ResNetForImageClassification(resnet),
        "convnext": transformers.ConvNextForImageClassification(convnext),
    }


def main() -> None:
    rng = np.random.default_rng(0)
    # An odd side, so that padding and strides matter.
    image = rng.integers(0, 256, (3, 75, 64, 3), dtype=np.uint8)
    pixels = (image / 255 - np.array(MEAN)) / np.array(STD)
    given = torch.tensor(pixels.transpose(0, 3, 1, 2)).float()
    expected: dict[str, np.ndarray] = {"image": image}
    processor = transformers.ConvNextImageProcessor(image_mean=MEAN, image_std=STD)
    for name, model in of_transformers().items():
        perturbed(model)
        folder = HERE / f"{name}_transformers"
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        with torch.no_grad():
            out = model(given, output_hidden_states=True)
        features, logits = out.hidden_states[-1], out.logits
        expected[f"{name}_transformers_features"] = features.numpy()
        expected[f"{name}_transformers_logits"] = logits.numpy()
    sizes = {
        "resnet": ("resnet50", {"layers": (1, 2, 1, 1), "channels": (4, 6, 8, 8)}),
        "convnext": (
            "convnext_tiny",
            {"depths": (1, 2, 1, 1), "dims": (8, 12, 16, 16)},
        ),
    }
    for name, (architecture, arguments) in sizes.items():
        model = timm.create_model(architecture, num_classes=CLASSES, **arguments)
        perturbed(model)
        folder = HERE / f"{name}_timm"
        timm.models.save_for_hf(
            model, folder, model_args=arguments, safe_serialization=True
        )
        with torch.no_grad():
            features, logits = model.forward_features(given), model(given)
        expected[f"{name}_timm_features"] = features.numpy()
        expected[f"{name}_timm_logits"] = logits.numpy()
    np.savez_compressed(HERE / "expected.npz", **expected)
    for path in sorted(HERE.rglob("*.*")):
        print(path.relative_to(HERE), path.stat().st_size)


if __name__ == "__main__":
    main()
