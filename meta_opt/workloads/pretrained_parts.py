"""Initialisation of parts of a new generative model from pretrained models."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from meta_opt.data import data_dir as default_data_dir
from meta_opt.data.catalog.encoder_weights import encoder_folder
from meta_opt.models import huggingface
from meta_opt.models.conv_tower import CONVNETS
from meta_opt.models.encoders import MiniLM, load_encoder
from meta_opt.models.generative import Generative, GenerativeConfig
from meta_opt.models.parameters import STORED, by_path


@dataclasses.dataclass(frozen=True)
class PartsConfig:
    """Pretrained parts of a new model.

    Attributes:
        image: the image tower: the encoder ``efficientnet_lite0`` that ``make data``
            prepares, or a SigLIP folder in Hugging Face format, whose tower replaces
            the tower of ``model.size``; "" initialises it at random.
        text: the decoder's token embeddings: the encoder ``minilm``, with the same
            width as the decoder; "" initialises them at random. MiniLM's layers are not
            used: they normalise after their residuals, and have biases and no gates.
        data_dir: folder of encoders; "" for the default folder.
    """

    image: str = ""
    text: str = ""
    data_dir: str = ""

    def __post_init__(self) -> None:
        """Raises ValueError if ``text`` is not a supported encoder."""
        if self.text not in ("", "minilm"):
            raise ValueError(
                f"model.parts.text={self.text!r} must be 'minilm' or empty"
            )

    def architecture(self, made: GenerativeConfig) -> GenerativeConfig:
        """Returns the architecture with the image tower of ``image``.

        Args:
            made: architecture of ``model.size``.

        Raises:
            ValueError: the tower does not fit the architecture, or the folder is not of
                a SigLIP model.
            FileNotFoundError: there is no such folder.
        """
        if not self.image or self.image == made.tower:
            return made
        if self.image in CONVNETS:
            raise ValueError(
                f"model.parts.image={self.image!r} is not for a model of tower="
                f"{made.tower!r}; use another model.size"
            )
        of_folder = huggingface.read_config(self.image)
        if of_folder.class_token:
            raise ValueError(
                f"model.parts.image={self.image!r} is a CLIP folder, whose tower has a "
                "class token; the decoder reads patches alone: name a SigLIP folder"
            )
        tower = dataclasses.replace(
            of_folder.vision, pooling="none", projection="linear_bias"
        )
        names = ("image_size", "patch_size", "patch_bias", "image_mean", "image_std")
        found = {name: getattr(of_folder, name) for name in names}
        return dataclasses.replace(made, tower="vit", vision=tower, **found)

    def build(self, made: GenerativeConfig, seed: int = 0) -> Generative:
        """Returns a new model with the pretrained arrays.

        Args:
            made: result of `architecture`.
            seed: random seed of all other arrays.

        Raises:
            ValueError: pretrained arrays do not have the model's shapes.
            MissingDataError: an encoder is not prepared; the message has the command.
        """

        def create() -> Generative:
            return Generative(made, rngs=nnx.Rngs(seed))

        if not (self.image or self.text):
            return nnx.jit(create)()
        model = nnx.eval_shape(create)
        variables = by_path(model, STORED)
        arrays = {
            path: _fitting(path, array, variables)
            for path, array in self._arrays().items()
        }
        # jit prunes unused results; compiling a convolutional tower would take long.
        others = jax.jit(
            lambda: {
                path: variable[...]
                for path, variable in by_path(create(), STORED).items()
                if path not in arrays
            }
        )()
        for path, variable in variables.items():
            variable.set_value({**arrays, **others}[path])
        return model

    def _arrays(self) -> dict[str, Any]:
        """Returns the pretrained arrays by their paths in the model."""
        root = self.data_dir or default_data_dir()
        found: dict[str, Any] = {}
        if self.image in CONVNETS:
            encoder = load_encoder(self.image, encoder_folder(self.image, root))
            found = _below("vision/encoder", encoder)
        elif self.image:
            tower = _below("vision", huggingface.load(self.image).vision)
            own = ("vision/pool/", "vision/projection/")
            found = {k: x for k, x in tower.items() if not k.startswith(own)}
        if self.text:
            words = load_encoder(self.text, encoder_folder(self.text, root))
            assert isinstance(words, MiniLM)
            found["decoder/tokens/embedding"] = words.embedding[...]
        return found


def _below(place: str, module: nnx.Module) -> dict[str, Any]:
    """Returns the arrays of a module by path, prefixed with ``place``."""
    return {f"{place}/{k}": v[...] for k, v in by_path(module, STORED).items()}


def _fitting(path: str, array: Any, variables: Mapping[str, Any]) -> jax.Array:
    """Converts an array to the dtype and layout of the model's variable."""
    if path not in variables:
        raise ValueError(f"model.parts: the model has no {path}")
    wanted = variables[path]
    if array.shape != wanted.shape:
        raise ValueError(
            f"model.parts: {path} has shape {array.shape} and the model's "
            f"{wanted.shape}; use another model.size or model.processor"
        )
    return jnp.asarray(array, wanted.dtype)
