"""Tensors in, tensors out; needs torch, timm, einops, yaml and safetensors only."""
