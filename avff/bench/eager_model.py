"""The pretraining step as one writes it without thinking of speed: what `bench step --against eager` compares with.

The same function of the same weights as `avff.models.PretrainModel`, in fp32 and unfused: patches by convolution, queries,
keys and values by three products, attention as softmax(q k^T) v, tokens picked by index tensors, AdamW, clipping and the
average of the weights parameter by parameter. Losses, critics and what makes inputs of clips are the project's own, for
they are no part of the comparison.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from avff.batch import AVBatch
from avff.config import Config
from avff.engine.optimizer import ema_decay_at, parameter_groups, set_learning_rates
from avff.engine.schedule import learning_rate_factor
from avff.models.contrast import contrast_embeddings
from avff.models.cross_modal import CrossModal
from avff.models.encoder import Decoder, Encoder
from avff.models.masking import complementary_masks
from avff.models.pretrain import PretrainModel, PretrainOutput, mean_cosine
from avff.models.transformer import Attention, Block, Stack
from avff.objectives.pretrain import PretrainObjective
from avff.preprocess import Preprocess


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight, layer.bias = nn.Parameter(weight.detach().clone()), nn.Parameter(bias.detach().clone())
    return layer


class EagerAttention(nn.Module):
    """Attention whose matrix of weights is really there."""

    def __init__(self, ours: Attention):
        super().__init__()
        self.heads = ours.heads
        self.q, self.k, self.v = map(linear, ours.qkv.weight.chunk(3), ours.qkv.bias.chunk(3))
        self.proj = ours.proj

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape

        def by_head(y: Tensor) -> Tensor:
            return y.reshape(batch, tokens, self.heads, width // self.heads).transpose(1, 2).contiguous()

        q, k, v = by_head(self.q(x)), by_head(self.k(x)), by_head(self.v(x))
        weights = torch.softmax(q @ k.transpose(2, 3) / (width // self.heads) ** 0.5, dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, width))


class EagerBlock(nn.Module):
    def __init__(self, ours: Block):
        super().__init__()
        self.norm1, self.norm2 = ours.norm1, ours.norm2
        self.attention = EagerAttention(ours.attn)
        self.mlp = nn.Sequential(ours.mlp.fc1, nn.GELU(), ours.mlp.fc2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def eager_stack(ours: Stack) -> nn.Sequential:
    blocks = [EagerBlock(block) for block in ours.blocks if isinstance(block, Block)]
    return nn.Sequential(*blocks, ours.norm)


class EagerEncoder(nn.Module):
    """Patches by a convolution whose stride is its kernel.

    Args:
        kernel: how the values of a patch are ordered: (colours, frames, height, width) or (1, mel frames, mel bins).
    """

    def __init__(self, ours: Encoder, kernel: Sequence[int]):
        super().__init__()
        convolution = nn.Conv3d if len(kernel) == 4 else nn.Conv2d
        size = tuple(kernel[1:])
        self.embed = convolution(kernel[0], len(ours.patch_embed.weight), size, stride=size)  # type: ignore[arg-type]
        self.embed.weight = nn.Parameter(ours.patch_embed.weight.detach().clone().reshape(-1, *kernel))
        self.embed.bias = nn.Parameter(ours.patch_embed.bias.detach().clone())
        self.position, self.modality = ours.position_table, ours.modality_embedding
        self.stack = eager_stack(ours.stack)
        self.num_slices = ours.num_slices

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        tokens = self.stack(tokens + self.position + self.modality)
        return tokens.reshape(len(tokens), self.num_slices, -1, tokens.shape[2])


class EagerCrossModal(nn.Module):
    def __init__(self, ours: CrossModal):
        super().__init__()
        self.token_map, self.position = ours.token_map, ours.slice_position
        self.block, self.norm = EagerBlock(ours.block), ours.norm

    def forward(self, tokens: Tensor, slices: Tensor) -> Tensor:
        mapped = self.token_map(tokens.transpose(2, 3)).transpose(2, 3) + self.position[0, slices]
        return self.norm(self.block(mapped.flatten(0, 1)).reshape(mapped.shape))


class EagerDecoder(nn.Module):
    def __init__(self, ours: Decoder):
        super().__init__()
        self.embed, self.position, self.head = ours.embed, ours.position_table, ours.head
        self.stack = eager_stack(ours.stack)

    def forward(self, fused: Tensor, clip: Tensor, hidden: Tensor) -> Tensor:
        tokens = self.stack(self.embed(fused.flatten(1, 2)) + self.position)
        tokens = tokens.reshape(*fused.shape[:3], -1)[clip, hidden]
        return self.head(tokens.flatten(1, 2))


class EagerPretrainModel(nn.Module):
    """Takes over the weights of a `PretrainModel` that masks encoder outputs; what it does not split, it shares."""

    def __init__(self, ours: PretrainModel):
        super().__init__()
        model = ours.config
        self.level = ours.contrastive_level
        self.video_encoder = EagerEncoder(
            ours.video_encoder, (3, model.tubelet_frames, model.patch_size, model.patch_size)
        )
        self.audio_encoder = EagerEncoder(ours.audio_encoder, (1, model.mel_patch_frames, model.mel_patch_bins))
        self.a2v, self.v2a = EagerCrossModal(ours.a2v), EagerCrossModal(ours.v2a)
        self.video_decoder, self.audio_decoder = EagerDecoder(ours.video_decoder), EagerDecoder(ours.audio_decoder)
        self.temperature = ours.temperature
        self.num_slices = ours.num_slices

    def forward(self, video_BTCHW: Tensor, mel_BMF: Tensor, seed_B: Tensor) -> PretrainOutput:
        masks = complementary_masks(seed_B, self.num_slices)
        shows_video, shows_audio = masks
        video = self.video_encoder(video_BTCHW.transpose(1, 2))
        audio = self.audio_encoder(mel_BMF.unsqueeze(1))
        clip = torch.arange(len(video), device=video.device)[:, None]
        video_from_audio = self.a2v(audio[clip, shows_audio], shows_audio)
        audio_from_video = self.v2a(video[clip, shows_video], shows_video)
        fused_video, fused_audio = torch.zeros_like(video), torch.zeros_like(audio)
        fused_video[clip, shows_video], fused_video[clip, shows_audio] = video[clip, shows_video], video_from_audio
        fused_audio[clip, shows_audio], fused_audio[clip, shows_video] = audio[clip, shows_audio], audio_from_video
        return PretrainOutput(
            masks=masks,
            video_BKP=self.video_decoder(fused_video, clip, shows_audio),
            audio_BKP=self.audio_decoder(fused_audio, clip, shows_video),
            video_BSD=contrast_embeddings(video, self.level),
            audio_BSD=contrast_embeddings(audio, self.level),
            temperature=self.temperature(),
            a2v_cosine_B=mean_cosine(video_from_audio, video[clip, shows_audio]),
            v2a_cosine_B=mean_cosine(audio_from_video, audio[clip, shows_video]),
        )


class EagerStep:
    """Updates of the eager network and its critics in plain torch, from the weights that the config's seed draws."""

    def __init__(self, config: Config, device: torch.device):
        self.config = config
        self.device = device
        self.objective = PretrainObjective(config)  # its losses; its own network is only asked for its weights
        ours = self.objective.model
        assert isinstance(ours, PretrainModel)
        self.preprocess = Preprocess(config.clip, config.data.augment)
        optim = config.optim
        rates = {"model": optim.learning_rate, "critics": optim.critic_learning_rate}
        self.modules: dict[str, nn.Module] = {"model": EagerPretrainModel(ours).to(device)}
        if self.objective.critics is not None:
            self.modules["critics"] = self.objective.critics.to(device)
        self.optimizers = {
            name: torch.optim.AdamW(
                parameter_groups(module, optim, learning_rate=rates[name]),
                betas=optim.betas,
                eps=optim.eps,
                foreach=False,
                fused=False,
            )
            for name, module in self.modules.items()
        }
        self.averages = {
            name: [p.detach().clone() for p in module.parameters()] for name, module in self.modules.items()
        }

    def update(self, step: int, batch: AVBatch) -> tuple[float, float]:
        """Makes one update; returns the loss and the norm of the model's gradient before clipping."""
        inputs = self.preprocess(batch, training=True)
        losses = self.objective.model_losses(self.modules["model"], self.modules.get("critics"), inputs)
        losses.total.backward()
        if losses.critic_inputs is not None:
            self.objective.critic_losses(self.modules["critics"], losses.critic_inputs).total.backward()
        norms = {name: self._apply(name, step) for name in self.modules}
        return losses.terms["loss"].item(), norms["model"]

    def _apply(self, name: str, step: int) -> float:
        optim, module, optimizer = self.config.optim, self.modules[name], self.optimizers[name]
        norm = nn.utils.clip_grad_norm_(module.parameters(), optim.clip_gradient_norm, foreach=False).item()
        set_learning_rates(optimizer, learning_rate_factor(step, optim))
        optimizer.step()
        optimizer.zero_grad()
        decay = ema_decay_at(step + 1, optim.ema_decay)
        with torch.no_grad():
            for average, parameter in zip(self.averages[name], module.parameters(), strict=True):
                average.mul_(decay).add_(parameter, alpha=1 - decay)
        return norm
