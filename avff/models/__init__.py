"""Networks: tensors in, tensors out. Imports torch, einops, yaml and safetensors only."""

from avff.models.build import build_classifier, build_critics, build_model, build_pretrain_model
from avff.models.classifier import Classifier, Logits
from avff.models.critics import CriticOutput, Critics
from avff.models.pretrain import PretrainModel, PretrainOutput

__all__ = [
    "Classifier",
    "CriticOutput",
    "Critics",
    "Logits",
    "PretrainModel",
    "PretrainOutput",
    "build_classifier",
    "build_critics",
    "build_model",
    "build_pretrain_model",
]
