"""The networks: task encoder, GLIDE decoder, discriminator, and the files that hold their weights."""

from piti.config import ModelConfig
from piti.models.discriminator import PatchDiscriminator
from piti.models.encoder import Latent
from piti.models.network import PITIModel, build_model, round_weights

__all__ = ["Latent", "ModelConfig", "PITIModel", "PatchDiscriminator", "build_model", "round_weights"]
