"""Renews the golden files of ``tests/models/test_encoders.py``.

    pip install torch transformers && python tests/golden/renew_encoders.py [FOLDER]

Writes small random encoders under the names of the original files and what PyTorch
computes with them; and a spectrogram by Transformers' own feature extractor. With the
folder of prepared encoders (``data/encoders``) also what PyTorch computes with the real
weights, of inputs that the test makes again.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file
from torch.nn import functional as F

HERE = Path(__file__).parent / "encoders"
# Of the small EfficientNet: repeats, kernel, stride, expansion, channels.
STAGES = ((1, 3, 1, 1, 8), (2, 5, 2, 6, 12), (1, 3, 2, 6, 12))
REAL_STAGES = (
    *((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80)),
    *((3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320)),
)


def random(model: torch.nn.Module) -> torch.nn.Module:
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def numpy(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {k: v.detach().numpy().copy() for k, v in state.items()}


def bert(state: dict[str, np.ndarray], tokens: np.ndarray, **sizes) -> np.ndarray:
    config = transformers.BertConfig(**sizes, layer_norm_eps=1e-12)
    model = transformers.BertModel(config, add_pooling_layer=False)
    model.load_state_dict({k: torch.tensor(v) for k, v in state.items()}, strict=False)
    real = torch.tensor(tokens != 0).long()
    with torch.no_grad():
        found = model.eval()(torch.tensor(tokens), attention_mask=real)
    return found.last_hidden_state.numpy()


def ctranslate2(state: dict[str, np.ndarray], layers: int) -> dict[str, np.ndarray]:
    """Transformers' Whisper under CTranslate2's names."""
    found = {"encoder/position_encodings/encodings": state["embed_positions.weight"]}
    for conv in ("conv1", "conv2"):
        for leaf in ("weight", "bias"):
            found[f"encoder/{conv}/{leaf}"] = state[f"{conv}.{leaf}"]
    norms = {"encoder/layer_norm": "layer_norm"}
    for i in range(layers):
        theirs, ours = f"layers.{i}", f"encoder/layer_{i}"
        norms[f"{ours}/self_attention/layer_norm"] = f"{theirs}.self_attn_layer_norm"
        norms[f"{ours}/ffn/layer_norm"] = f"{theirs}.final_layer_norm"
        attention = f"{theirs}.self_attn"
        zeros = np.zeros_like(state[f"{attention}.q_proj.bias"])
        joint = [f"{attention}.{n}_proj" for n in "qkv"]
        found[f"{ours}/self_attention/linear_0/weight"] = np.concatenate(
            [state[f"{n}.weight"] for n in joint]
        )
        found[f"{ours}/self_attention/linear_0/bias"] = np.concatenate(
            [state.get(f"{n}.bias", zeros) for n in joint]
        )
        for name, there in (
            ("self_attention/linear_1", f"{attention}.out_proj"),
            ("ffn/linear_0", f"{theirs}.fc1"),
            ("ffn/linear_1", f"{theirs}.fc2"),
        ):
            for leaf in ("weight", "bias"):
                found[f"{ours}/{name}/{leaf}"] = state[f"{there}.{leaf}"]
    for ours, theirs in norms.items():
        found[f"{ours}/gamma"] = state[f"{theirs}.weight"]
        found[f"{ours}/beta"] = state[f"{theirs}.bias"]
    return found


def whisper_of(tensors: dict[str, np.ndarray], layers: int) -> dict[str, torch.Tensor]:
    """The reverse of `ctranslate2`."""
    state = {}
    for ours, value in tensors.items():
        value = torch.tensor(np.asarray(value, np.float32))
        parts = ours.split("/")[1:]
        leaf = {"gamma": "weight", "beta": "bias"}.get(parts[-1], parts[-1])
        if parts[0] == "position_encodings":
            state["embed_positions.weight"] = value
        elif not parts[0].startswith("layer_") or parts[0] == "layer_norm":
            state[f"{parts[0]}.{leaf}"] = value
        else:
            there = f"layers.{parts[0].removeprefix('layer_')}"
            if parts[1:3] == ["self_attention", "linear_0"]:
                for name, part in zip("qkv", value.chunk(3), strict=True):
                    if (name, leaf) != ("k", "bias"):
                        state[f"{there}.self_attn.{name}_proj.{leaf}"] = part
                continue
            name = {
                ("self_attention", "layer_norm"): "self_attn_layer_norm",
                ("ffn", "layer_norm"): "final_layer_norm",
                ("self_attention", "linear_1"): "self_attn.out_proj",
                ("ffn", "linear_0"): "fc1",
                ("ffn", "linear_1"): "fc2",
            }[tuple(parts[1:3])]
            state[f"{there}.{name}.{leaf}"] = value
    return state


def whisper(
    state: dict[str, torch.Tensor], mel: np.ndarray, places: int, **sizes
) -> np.ndarray:
    """Features of [B, T, mels] with T = twice the places."""
    config = transformers.WhisperConfig(
        **sizes, max_source_positions=places, activation_function="gelu"
    )
    encoder = transformers.models.whisper.modeling_whisper.WhisperEncoder(config).eval()
    encoder.load_state_dict(state)
    with torch.no_grad():
        found = encoder(torch.tensor(mel).transpose(1, 2))
    return found.last_hidden_state.numpy()


def efficientnet(
    tensors: dict[str, np.ndarray], stages: tuple, image: np.ndarray
) -> np.ndarray:
    """Features [B, h, w, D], written out with PyTorch's functions."""
    given = {k: torch.tensor(v) for k, v in tensors.items()}

    def conv(x, name, norm, stride=1, activate=True):
        weight = given[f"{name}.weight"]
        size = weight.shape[2]
        pads = []
        for side in (x.shape[3], x.shape[2]):
            need = max((-(-side // stride) - 1) * stride + size - side, 0)
            pads += [need // 2, need - need // 2]
        groups = x.shape[1] // weight.shape[1]
        x = F.conv2d(F.pad(x, pads), weight, stride=stride, groups=groups)
        names = ("running_mean", "running_var", "weight", "bias")
        x = F.batch_norm(x, *(given[f"{norm}.{n}"] for n in names), eps=1e-3)
        return x.clamp(0, 6) if activate else x

    x = torch.tensor((image.astype(np.float32) - 127) / 128).permute(0, 3, 1, 2)
    x = conv(x, "_conv_stem", "_bn0", 2)
    number = 0
    for repeats, _, stride, expansion, channels in stages:
        for i in range(repeats):
            block, y = f"_blocks.{number}", x
            if expansion > 1:
                y = conv(y, f"{block}._expand_conv", f"{block}._bn0")
            step = stride if i == 0 else 1
            y = conv(y, f"{block}._depthwise_conv", f"{block}._bn1", step)
            y = conv(y, f"{block}._project_conv", f"{block}._bn2", activate=False)
            x = x + y if step == 1 and x.shape[1] == channels else y
            number += 1
    return conv(x, "_conv_head", "_bn1").permute(0, 2, 3, 1).numpy()


def random_efficientnet(rng: np.random.Generator) -> dict[str, np.ndarray]:
    tensors = {}

    def conv(name, norm, outputs, inputs, size):
        fan = inputs * size * size
        tensors[f"{name}.weight"] = rng.normal(
            0, fan**-0.5, (outputs, inputs, size, size)
        )
        tensors[f"{norm}.weight"] = rng.uniform(0.5, 2, outputs)
        tensors[f"{norm}.bias"] = rng.normal(0.5, 0.5, outputs)
        tensors[f"{norm}.running_mean"] = rng.normal(0, 0.3, outputs)
        tensors[f"{norm}.running_var"] = rng.uniform(0.5, 2, outputs)

    conv("_conv_stem", "_bn0", 8, 3, 3)
    number, width = 0, 8
    for repeats, size, _, expansion, channels in STAGES:
        for _ in range(repeats):
            block, hidden = f"_blocks.{number}", width * expansion
            if expansion > 1:
                conv(f"{block}._expand_conv", f"{block}._bn0", hidden, width, 1)
            conv(f"{block}._depthwise_conv", f"{block}._bn1", hidden, 1, size)
            conv(f"{block}._project_conv", f"{block}._bn2", channels, hidden, 1)
            number, width = number + 1, channels
    conv("_conv_head", "_bn1", 16, width, 1)
    return {k: v.astype(np.float32) for k, v in tensors.items()}


def sound(rng: np.random.Generator) -> np.ndarray:
    """Two seconds of a rising tone and noise, int16 at 16 kHz."""
    time = np.arange(32_000) / 16_000
    wave = 0.4 * np.sin(2 * np.pi * (300 + 800 * time) * time)
    return (32_767 * (wave + rng.normal(0, 0.02, len(time)))).astype(np.int16)


def write_small() -> None:
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 40,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 48,
        "max_position_embeddings": 12,
    }
    model = random(
        transformers.BertModel(
            transformers.BertConfig(**sizes), add_pooling_layer=False
        )
    )
    tensors = numpy(model.state_dict())
    tokens = rng.integers(1, 40, (3, 9))
    tokens[1, 5:] = tokens[2, 2:] = 0
    save_file(tensors, HERE / "minilm.safetensors")
    expected = {"tokens": tokens, "minilm": bert(tensors, tokens, **sizes)}

    sizes = {
        "num_mel_bins": 10,
        "d_model": 24,
        "encoder_layers": 2,
        "encoder_attention_heads": 3,
        "encoder_ffn_dim": 48,
    }
    config = transformers.WhisperConfig(**sizes, max_source_positions=8)
    model = random(transformers.models.whisper.modeling_whisper.WhisperEncoder(config))
    mel = rng.normal(0, 1, (2, 16, 10)).astype(np.float32)
    state = model.state_dict()
    save_file(ctranslate2(numpy(state), 2), HERE / "whisper.safetensors")
    expected |= {"mel": mel, "whisper": whisper(state, mel, 8, **sizes)}

    tensors = random_efficientnet(rng)
    image = rng.integers(0, 256, (2, 37, 30, 3), np.uint8)
    save_file(tensors, HERE / "efficientnet.safetensors")
    expected |= {"image": image, "efficientnet": efficientnet(tensors, STAGES, image)}

    pcm = sound(rng)
    extractor = transformers.WhisperFeatureExtractor(chunk_length=2)
    found = extractor(pcm / 32_768.0, sampling_rate=16_000, return_tensors="np")
    expected |= {"pcm": pcm, "spectrogram": found.input_features[0].T[:, ::8]}
    np.savez_compressed(HERE / "expected.npz", **expected)


def write_real(folder: Path) -> None:
    rng = np.random.default_rng(1)
    tensors = load_file(folder / "minilm" / "model.safetensors")
    tokens = rng.integers(1000, 30_000, (2, 12))
    tokens[1, 7:] = 0
    sizes = {
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    }
    found = {"minilm": bert(tensors, tokens, **sizes)[..., :16]}
    tensors = load_file(folder / "efficientnet_lite0" / "model.safetensors")
    image = rng.integers(0, 256, (1, 64, 64, 3), np.uint8)
    features = efficientnet(tensors, REAL_STAGES, image)
    found["efficientnet_lite0"] = features[..., :64]
    tensors = load_file(folder / "whisper_tiny" / "model.safetensors")
    mel = rng.normal(0, 0.5, (1, 3000, 80)).astype(np.float32)
    sizes = {
        "d_model": 384,
        "encoder_layers": 4,
        "encoder_attention_heads": 6,
        "encoder_ffn_dim": 1536,
    }
    features = whisper(whisper_of(tensors, 4), mel, 1500, **sizes)
    found["whisper_tiny"] = features[:, ::300, :16]
    np.savez_compressed(HERE / "real.npz", **found)


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    write_small()
    if len(sys.argv) > 1:
        write_real(Path(sys.argv[1]))
