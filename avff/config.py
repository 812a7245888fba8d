"""Every knob of training and evaluation, and the strict loader that fills them (of shards: avff.build_config).

Precedence: defaults here < YAML file < `section.key=value` overrides. Unknown keys, wrong types and bad
choices are errors that name the file, the key and the nearest valid one. `__post_init__` checks values
and touches no disk, network or GPU; whatever can be derived is a property, never a field.

Values marked `unverified` are not settled by the sources at hand (AVFF paper, CVPR 2024); they are our choice.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml

from avff.errors import ConfigError
from avff.strict_yaml import apply_override, from_dict, to_dict

Stage = Literal["pretrain", "finetune"]
Modality = Literal["video", "audio"]
ContrastiveLevel = Literal["slice", "centered_slice", "clip"]
EncoderTraining = Literal["train", "freeze", "lora"]
DecoderName = Literal["decord", "torchcodec", "pyav"]
DecoderChoice = Literal["auto", DecoderName]
ActivationCheckpointing = Literal["none", "cheap", "blocks"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Per colour channel, of values in [0, 1]: what every model's video is normalised by."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _divisors(value: int, limit: int = 12) -> str:
    divisors = [d for d in range(1, value + 1) if value % d == 0]
    return ", ".join(map(str, divisors[-limit:]))


# ------------------------------------------------------------------------------------------- one clip


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """The window that every model reads: frames and sound over exactly the same time."""

    num_frames: int = 16
    """Video frames per clip."""
    frames_per_second: float = 5.0
    """Rate of those frames; 16 at 5 per second span 3.2 s."""
    image_size: int = 224
    """Height and width in pixels that the model sees."""
    sample_rate_hz: int = 16000
    """Rate of the stored sound; shards always hold 16 kHz mono."""
    hop_samples: int = 50
    """Samples between spectrogram frames; 50 gives 1024 frames in 3.2 s, so that slices line up exactly."""
    window_samples: int = 400
    """Length of the Hann window (25 ms)."""
    fft_samples: int = 1024
    """FFT length; below 1024 some of 128 mel bins are empty."""
    num_mel_bins: int = 128
    mel_low_hz: float = 20.0
    mel_high_hz: float = 8000.0
    mel_mean: float = -5.081
    """Mean of the log-mel that normalisation subtracts (natural log of power)."""
    mel_std: float = 4.4849
    """Standard deviation that normalisation divides by."""
    num_slices: int = 8
    """K equal runs of time, the unit that complementary masking hides."""

    def __post_init__(self) -> None:
        for name in ("num_frames", "image_size", "hop_samples", "window_samples", "num_mel_bins", "num_slices"):
            _require(getattr(self, name) > 0, f"clip.{name} is {getattr(self, name)}; it has to be positive")
        _require(
            self.frames_per_second > 0, f"clip.frames_per_second is {self.frames_per_second}; it has to be positive"
        )
        _require(self.sample_rate_hz == 16000, f"clip.sample_rate_hz is {self.sample_rate_hz}; shards hold 16000")
        _require(self.mel_std > 0, f"clip.mel_std is {self.mel_std}; it has to be positive")
        _require(
            self.window_samples <= self.fft_samples,
            f"clip.window_samples {self.window_samples} is longer than clip.fft_samples {self.fft_samples}",
        )
        _require(
            self.hop_samples <= self.window_samples,
            f"clip.hop_samples {self.hop_samples} is longer than clip.window_samples {self.window_samples}; "
            "sound between two windows would be lost",
        )
        _require(
            self.num_slices % 2 == 0,
            f"clip.num_slices is {self.num_slices}; it has to be even, for exactly half of the slices is hidden",
        )
        exact = self.num_frames / self.frames_per_second * self.sample_rate_hz
        _require(
            abs(exact - round(exact)) < 1e-6,
            f"clip: {self.num_frames} frames at {self.frames_per_second} per second last {exact} audio samples, "
            "not a whole number; change clip.num_frames or clip.frames_per_second",
        )
        _require(
            self.num_samples % self.hop_samples == 0,
            f"clip.hop_samples {self.hop_samples} does not divide the clip's {self.num_samples} samples; "
            f"divisors are {_divisors(self.num_samples)}",
        )

    @property
    def duration_seconds(self) -> float:
        return self.num_frames / self.frames_per_second

    @property
    def num_samples(self) -> int:
        """Audio samples per clip."""
        return round(self.num_frames / self.frames_per_second * self.sample_rate_hz)

    @property
    def num_mel_frames(self) -> int:
        return self.num_samples // self.hop_samples

    @property
    def load_size(self) -> int:
        """Side in pixels of the squares that the loader hands over: room for random crops, 256 for 224."""
        return math.ceil(self.image_size * 8 / 7 / 16) * 16


# ------------------------------------------------------------------------------------------- model


@dataclass(frozen=True, kw_only=True)
class TransformerSize:
    """Width and depth of one transformer stack."""

    width: int
    depth: int
    heads: int


MODEL_SIZES: dict[str, tuple[TransformerSize, TransformerSize]] = {
    # name: (both encoders, both decoders)
    "tiny": (TransformerSize(width=96, depth=4, heads=3), TransformerSize(width=64, depth=2, heads=2)),
    "small": (TransformerSize(width=384, depth=12, heads=6), TransformerSize(width=192, depth=4, heads=3)),
    "base": (TransformerSize(width=768, depth=12, heads=12), TransformerSize(width=384, depth=4, heads=6)),
    "large": (TransformerSize(width=1024, depth=24, heads=16), TransformerSize(width=512, depth=4, heads=8)),
}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """AVFF's networks (docs/method.md); patch sizes and `size` fix every shape."""

    size: Literal["tiny", "small", "base", "large"] = "base"
    """`base` is the paper's ViT-B; `tiny` is for tests and the demo."""
    patch_size: int = 16
    """Height and width of a video patch in pixels."""
    tubelet_frames: int = 2
    """Video frames per tubelet."""
    mel_patch_bins: int = 16
    """Mel bins per audio patch."""
    mel_patch_frames: int = 16
    """Spectrogram frames per audio patch."""
    decoder_size: Literal["", "tiny", "small", "base", "large"] = ""
    """Decoders (and stage 3's pools) of this named size; empty: those of `size`."""
    video_layer_norm_eps: float = 1e-6
    """Of the video encoder and decoder. Part of a checkpoint: 1e-6 for VideoMAE and MAE, 1e-5 for MARLIN and Open-AVFF."""
    audio_layer_norm_eps: float = 1e-6
    """Of the audio encoder and decoder: 1e-6 for AudioMAE, 1e-5 for CAV-MAE and Open-AVFF."""
    fusion_layer_norm_eps: float = 1e-6
    """Of A2V, V2A and stage 3's pools."""
    drop_path: float = 0.0
    """Stochastic depth of the last encoder block, growing linearly from 0 at the first."""
    critic_width: int = 1536
    """Hidden width of the two critics (MARLIN's)."""
    activation_checkpointing: ActivationCheckpointing = "none"
    """What the backward pass computes again instead of keeping it: `none`; `cheap` norms, GELU and casts but no matrix
    product, a third less memory for a few percent more time; `blocks` whole blocks, least memory, a third more work."""

    def __post_init__(self) -> None:
        _require(0 <= self.drop_path < 1, f"model.drop_path is {self.drop_path}; it has to be in [0, 1)")
        for name in ("video_layer_norm_eps", "audio_layer_norm_eps", "fusion_layer_norm_eps"):
            _require(getattr(self, name) > 0, f"model.{name} is {getattr(self, name)}; it has to be positive")

    @property
    def encoder(self) -> TransformerSize:
        return MODEL_SIZES[self.size][0]

    @property
    def decoder(self) -> TransformerSize:
        return MODEL_SIZES[self.decoder_size or self.size][1]

    def layer_norm_eps(self, modality: Modality) -> float:
        """Returns that of the modality's encoder and decoder."""
        return self.video_layer_norm_eps if modality == "video" else self.audio_layer_norm_eps


# ------------------------------------------------------------------------------------------- objectives


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Stages 1 and 2: contrast, complementary masking, reconstruction, critics (docs/method.md)."""

    mask_input: bool = False
    """False masks encoder outputs (the paper); True drops tokens before the encoders, 2 times cheaper."""
    reconstruction_weight: float = 1.0
    contrastive_weight: float = 0.01
    """`unverified`: Open-AVFF uses 0.05, HAVIC 0.01."""
    adversarial_weight: float = 0.1
    """`unverified`: MARLIN uses 0.01; 0 builds no critics."""
    contrastive_level: ContrastiveLevel = "slice"
    """Means of tokens that are contrasted: per slice (the paper), per slice less the clip's mean over time, or per
    clip. On few people `slice` can be solved by remembering who speaks; `centered_slice` cannot. `mask_input` permits
    `clip` only, for no slice is visible in both modalities."""
    contrastive_group_size: int = 32
    """Clips that one positive is compared against; independent of ranks and accumulation. Where it
    exceeds the clips of one forward pass over all ranks, embeddings are computed twice: same loss, less speed."""
    temperature: float = 0.1
    """Start value of the learnable temperature. `unverified`."""
    temperature_min: float = 0.01
    gradient_penalty_weight: float = 1.0
    """WGAN-GP weight of the critics' loss; 0 turns it off (MARLIN's effective setting)."""

    def __post_init__(self) -> None:
        for name in ("reconstruction_weight", "contrastive_weight", "adversarial_weight", "gradient_penalty_weight"):
            _require(getattr(self, name) >= 0, f"pretrain.{name} is {getattr(self, name)}; it cannot be negative")
        _require(
            not (self.mask_input and self.contrastive_level != "clip" and self.contrastive_weight > 0),
            "pretrain.mask_input hides a slice from one modality before its encoder, so no slice is visible in both; "
            "set pretrain.contrastive_level=clip",
        )
        _require(
            0 < self.temperature_min < self.temperature,
            f"pretrain.temperature {self.temperature} has to be above pretrain.temperature_min {self.temperature_min} > 0",
        )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Stage 3: three binary heads, each trained where its label is known."""

    overall_weight: float = 1.0
    video_weight: float = 1.0
    audio_weight: float = 1.0
    label_smoothing: float = 0.0
    head_dropout: float = 0.0
    """Dropout on the pooled embeddings, keyed by the clip's seed."""
    modality_dropout: float = 0.0
    """Chance that a clip trains the overall head on one modality only."""
    encoders: EncoderTraining = "train"
    """What of both encoders learns: `train` all of it, `freeze` nothing but `trained_blocks`, `lora` low-rank changes of
    the attention matrices (Hu et al. 2021). What does not learn keeps its values to the bit and costs no backward pass."""
    trained_blocks: int = 0
    """With `freeze`: the last so many blocks of each encoder and its final norm learn all the same; 0: nothing."""
    lora_rank: int = 8
    """With `lora`: rank of each change."""
    lora_alpha: float = 16.0
    """With `lora`: a change is scaled by `lora_alpha / lora_rank`, so that its size does not follow the rank."""

    def __post_init__(self) -> None:
        for name in ("label_smoothing", "head_dropout", "modality_dropout"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"finetune.{name} is {value}; it has to be in [0, 1)")
        _require(
            self.trained_blocks >= 0,
            f"finetune.trained_blocks is {self.trained_blocks}; 0 trains no block of a frozen encoder",
        )
        _require(
            self.trained_blocks == 0 or self.encoders == "freeze",
            f"finetune.trained_blocks is {self.trained_blocks}, but finetune.encoders is {self.encoders!r}; blocks are "
            "chosen with finetune.encoders=freeze only",
        )
        for name in ("lora_rank", "lora_alpha"):
            _require(getattr(self, name) > 0, f"finetune.{name} is {getattr(self, name)}; it has to be positive")


# ------------------------------------------------------------------------------------------- data


@dataclass(frozen=True, kw_only=True)
class ShardSource:
    """One shard directory and its share of the mixture."""

    path: str
    weight: float = 1.0
    """Multiplies how often each sample of this directory comes per epoch; 1 is once."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Training-time changes that keep sound and picture in step; none of them is applied in evaluation."""

    flip_probability: float = 0.5
    """Mirror image, all frames of a clip alike."""
    crop_scale_min: float = 0.8
    """Smallest side of the random square crop as a share of the frame; 1 turns it off."""
    brightness: float = 0.2
    contrast: float = 0.2
    volume_db: float = 6.0
    """Loudness is changed by up to this many decibels either way."""
    audio_noise_std: float = 0.0
    """Standard deviation of white noise added to the waveform."""

    def __post_init__(self) -> None:
        _require(
            0 <= self.flip_probability <= 1, f"data.augment.flip_probability is {self.flip_probability}, not in [0, 1]"
        )
        _require(0 < self.crop_scale_min <= 1, f"data.augment.crop_scale_min is {self.crop_scale_min}, not in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which samples are read, in which order and how they are decoded."""

    train: tuple[ShardSource, ...] = ()
    """Shard directories to train on."""
    validation: tuple[ShardSource, ...] = ()
    """Shard directories to validate on; weights are ignored there, every clip comes once."""
    train_split: str = "train"
    """Split read for training; an empty string reads all but `test`."""
    validation_split: str = "val"
    labels: Literal["real", "real_or_unknown", "known", "any"] = "real"
    """Which clips may be trained on. Pretraining takes `real` or `real_or_unknown`; finetuning `known` or `any`."""
    balance_column: str = ""
    """Index column whose values are drawn equally often, such as `category` or `is_fake`; empty for none."""
    column_weights: dict[str, float] = field(default_factory=dict)
    """Extra sampling weight per value of `balance_column`, such as {RVRA: 2.0}."""
    shuffle_window_shards: int = 8
    """Shards whose samples are shuffled together."""
    num_runs: int = 0
    """How many places of the epoch are read at once; divides the samples of a step. 0: as many as those."""
    windows_per_sample: int = 1
    """Clips that each sample read gives a step: so many windows, crops and masks of one decode. A step then holds
    `engine.global_batch_size / windows_per_sample` distinct samples, and an epoch every sample once, in so many clips."""
    num_workers: int = 4
    """Loader processes per rank; 0 decodes in the training process. No effect on the order."""
    prefetch_steps: int = 4
    """Steps that each worker prepares ahead, 1 to 64."""
    decoder: DecoderChoice = "auto"
    """Library that decodes stored video; all give the same frames. `auto`: the fastest of those that every rank has, timed
    on samples of the run when it is created; a run that is continued keeps it."""
    accept_plan: str = ""
    """Go on although the shards changed: the first characters (8 or more) of the new plan's hash, which the refusal
    prints. A run whose shards did not change ignores it."""
    max_validation_clips: int = 0
    """Validate on the first so many clips of a fixed shuffle; 0 takes all."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        _require(self.num_workers >= 0, f"data.num_workers is {self.num_workers}; 0 decodes in the training process")
        _require(
            1 <= self.prefetch_steps <= 64, f"data.prefetch_steps is {self.prefetch_steps}; it has to be from 1 to 64"
        )
        _require(
            self.windows_per_sample > 0,
            f"data.windows_per_sample is {self.windows_per_sample}; 1 gives each sample one clip",
        )


# ------------------------------------------------------------------------------------------- optimisation, engine


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with warm-up and cosine decay."""

    learning_rate: float = 1.5e-4
    new_layer_factor: float = 1.0
    """Learning rate of layers that `engine.init_weights` did not fill, as a multiple of `learning_rate`."""
    layer_decay: float = 1.0
    """Learning rate of an encoder's block as a multiple of the one above it (BEiT); 1: all learn alike. Block i of N has
    layer_decay**(N + 1 - i), embeddings have i = 0, and whatever is not an encoder learns at the full rate."""
    weight_decay: float = 0.05
    """Not applied to biases, norms, position tables, other one-dimensional parameters, and the critics."""
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    num_steps: int = 100_000
    """Optimizer updates of the whole run."""
    warmup_steps: int = 10_000
    min_learning_rate_factor: float = 0.01
    """Where the cosine ends, as a share of the peak."""
    clip_gradient_norm: float = 1.0
    """0 turns clipping off."""
    ema_decay: float = 0.999
    """Moving average of the fp32 weights that evaluation uses; 0 keeps none."""
    critic_learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        _require(self.num_steps > 0, f"optim.num_steps is {self.num_steps}; it has to be positive")
        _require(
            0 <= self.warmup_steps <= self.num_steps,
            f"optim.warmup_steps {self.warmup_steps} is not within optim.num_steps {self.num_steps}",
        )
        _require(0 <= self.ema_decay < 1, f"optim.ema_decay is {self.ema_decay}; it has to be in [0, 1)")
        _require(self.learning_rate > 0, f"optim.learning_rate is {self.learning_rate}; it has to be positive")
        _require(0 < self.layer_decay <= 1, f"optim.layer_decay is {self.layer_decay}; it has to be in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How the steps are carried out: batch, precision, DeepSpeed, checkpoints."""

    global_batch_size: int = 64
    """Clips per optimizer update over all ranks."""
    micro_batch_size: int = 8
    """Clips per rank and forward pass; accumulation steps follow from it."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO: 0 replicates, 1 shards optimizer state, 2 gradients too, 3 weights too."""
    precision: Literal["fp32", "bf16"] = "bf16"
    compile: bool = False
    """torch.compile each transformer block; pays on GPUs."""
    deterministic: bool = False
    """Ask torch for deterministic kernels: bit-identical resume on GPUs, some speed lost."""
    init_weights: str = ""
    """`.safetensors` to start from (tools/adapt_weights.py makes it); empty starts from scratch."""
    validate_every_steps: int = 1000
    checkpoint_every_steps: int = 1000
    keep_checkpoints: int = 3
    """Newest checkpoints kept, besides the best by validation."""
    keep_every_steps: int = 0
    """Also keep for good each checkpoint whose step is a multiple of this; 0 keeps none for good."""
    overlap_saving: bool = True
    """Write checkpoints in the background while training goes on; costs their size in CPU memory."""
    time_limit_minutes: float = 0.0
    """Save and stop with code 75 in time before this process has run so long; 0 sets no limit."""
    grace_seconds: float = 30.0
    """What torchrun or the scheduler leaves between a signal and the kill; a save that takes longer is warned about."""
    num_threads: int = 0
    """CPU threads per rank; 0 shares the cores among local ranks."""

    def __post_init__(self) -> None:
        for name in (
            "global_batch_size",
            "micro_batch_size",
            "validate_every_steps",
            "checkpoint_every_steps",
            "keep_checkpoints",
            "grace_seconds",
        ):
            _require(getattr(self, name) > 0, f"engine.{name} is {getattr(self, name)}; it has to be positive")
        for name in ("keep_every_steps", "time_limit_minutes"):
            _require(getattr(self, name) >= 0, f"engine.{name} is {getattr(self, name)}; 0 turns it off")


@dataclass(frozen=True, kw_only=True)
class FaultsConfig:
    """What a run puts up with and when it stops instead; without a fault none of it has an effect (docs/guarantees.md)."""

    max_substituted_fraction: float = 0.001
    """Share of unreadable samples after which training stops and names the shard."""
    decode_timeout_seconds: float = 60.0
    """Longest that one sample may take to be read and decoded. Its process is then killed and the sample tried once
    more; after that it is replaced and goes on the run's quarantine list."""
    max_nonfinite_steps: int = 3
    """Consecutive updates skipped for non-finite numbers before the run stops."""
    spike_factor: float = 0.0
    """A loss so many robust standard deviations above the median of the window is a spike; 0 looks for none."""
    spike_window_steps: int = 100
    """Updates that a loss is compared with."""
    rewind_steps: int = 0
    """At a spike, go back to the newest checkpoint at least so many steps old and leave out the clips read since then;
    0 only records spikes."""
    max_rewinds: int = 3
    """Rewinds of the whole run before it stops."""
    hang_seconds: float = 600.0
    """A rank without progress for so long is named and the run ends; collectives time out after twice as long."""
    max_failed_starts: int = 5
    """Starts in a row that left no new checkpoint (crashed, hung, killed, told to stop) after which another is refused."""

    def __post_init__(self) -> None:
        fraction = self.max_substituted_fraction
        _require(0 <= fraction <= 1, f"faults.max_substituted_fraction is {fraction}, not in [0, 1]")
        for name in ("decode_timeout_seconds", "max_nonfinite_steps", "hang_seconds", "max_failed_starts"):
            _require(getattr(self, name) > 0, f"faults.{name} is {getattr(self, name)}; it has to be positive")
        for name in ("spike_factor", "rewind_steps", "max_rewinds"):
            _require(getattr(self, name) >= 0, f"faults.{name} is {getattr(self, name)}; it cannot be negative")
        _require(
            self.spike_window_steps >= 10, f"faults.spike_window_steps is {self.spike_window_steps}; use 10 or more"
        )
        _require(
            not self.rewind_steps or self.spike_factor > 0,
            f"faults.rewind_steps is {self.rewind_steps}, but faults.spike_factor 0 finds no spike; set it to 10, say",
        )


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """What is written and how often; `metrics.jsonl` is the truth, wandb shows the same numbers."""

    log_every_steps: int = 10
    panel_every_steps: int = 1000
    """Steps between reconstruction panels (pretraining); 0 draws none."""
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """`auto`: online when logged in, else offline."""
    wandb_project: str = "avff"
    wandb_group: str = ""
    """Runs that wandb shows together; empty: the name of `runs_dir`. The stage is the job type."""
    system_every_seconds: float = 30.0
    """Seconds between samples of each node's load and GPUs in `system/<host>.jsonl`; 0 takes none."""
    progress: bool = True
    """Live progress bar on rank 0."""

    def __post_init__(self) -> None:
        _require(self.log_every_steps > 0, f"logging.log_every_steps is {self.log_every_steps}; it has to be positive")
        _require(
            self.panel_every_steps >= 0, f"logging.panel_every_steps is {self.panel_every_steps}; 0 draws no panel"
        )
        _require(
            self.system_every_seconds >= 0,
            f"logging.system_every_seconds is {self.system_every_seconds}; 0 measures no node",
        )


# ------------------------------------------------------------------------------------------- one experiment


@dataclass(frozen=True, kw_only=True)
class Config:
    """One experiment: what `avff train` reads from a YAML file."""

    name: str
    """Run name; the run folder is `runs_dir/name`."""
    stage: Stage
    """`pretrain` for stages 1 and 2, `finetune` for stage 3."""
    runs_dir: str = "runs"
    seed: int = 0
    clip: ClipConfig = field(default_factory=ClipConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    faults: FaultsConfig = field(default_factory=FaultsConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def __post_init__(self) -> None:
        clip, model = self.clip, self.model
        _require(bool(self.name) and "/" not in self.name, f"name {self.name!r} has to be a plain folder name")
        allowed = {"pretrain": ("real", "real_or_unknown"), "finetune": ("known", "any")}[self.stage]
        _require(
            self.data.labels in allowed,
            f"data.labels is {self.data.labels!r}, but stage {self.stage!r} trains on {' or '.join(map(repr, allowed))} clips only",
        )
        _require(
            clip.image_size % model.patch_size == 0,
            f"model.patch_size {model.patch_size} does not divide clip.image_size {clip.image_size}",
        )
        _require(
            clip.num_mel_bins % model.mel_patch_bins == 0,
            f"model.mel_patch_bins {model.mel_patch_bins} does not divide clip.num_mel_bins {clip.num_mel_bins}",
        )
        video_unit, audio_unit = clip.num_slices * model.tubelet_frames, clip.num_slices * model.mel_patch_frames
        _require(
            clip.num_frames % video_unit == 0,
            f"clip.num_frames {clip.num_frames} has to be a multiple of num_slices x tubelet_frames = {video_unit}, "
            "so that every slice holds whole tubelets",
        )
        _require(
            clip.num_mel_frames % audio_unit == 0,
            f"the clip has {clip.num_mel_frames} spectrogram frames, not a multiple of num_slices x mel_patch_frames = "
            f"{audio_unit}; change clip.hop_samples",
        )
        self._check_batch()
        self._check_encoders()
        reach = self.engine.keep_checkpoints * self.engine.checkpoint_every_steps
        _require(
            self.faults.rewind_steps <= reach,
            f"faults.rewind_steps {self.faults.rewind_steps} is further back than the kept checkpoints reach: "
            f"engine.keep_checkpoints x engine.checkpoint_every_steps = {reach}; raise one of them",
        )

    def _check_batch(self) -> None:
        """Refuses a batch that windows, contrastive groups or runs do not tile."""
        batch, windows = self.engine.global_batch_size, self.data.windows_per_sample
        _require(
            batch % windows == 0,
            f"data.windows_per_sample {windows} does not divide engine.global_batch_size {batch}; "
            f"divisors are {_divisors(batch)}",
        )
        samples, group, runs = self.samples_per_step, self.pretrain.contrastive_group_size, self.data.num_runs
        divisors = f"{self._step_in_words}; divisors are {_divisors(samples)}"
        if self._contrasts:
            _require(samples % group == 0, f"pretrain.contrastive_group_size {group} does not divide {divisors}")
        if runs:
            _require(samples % runs == 0, f"data.num_runs {runs} does not divide {divisors}")

    def _check_encoders(self) -> None:
        finetune, depth = self.finetune, self.model.encoder.depth
        _require(
            not (self.engine.compile and self.engine.zero_stage == 3 and finetune.encoders != "train"),
            f"engine.compile with engine.zero_stage 3 needs finetune.encoders=train, found {finetune.encoders!r}: DeepSpeed "
            "takes weights away in the middle of a compiled block whose input is frozen; set engine.zero_stage=1, for "
            "what is frozen has no gradient and no optimizer state to share out",
        )
        _require(
            self.stage == "finetune" or finetune.encoders == "train",
            f"finetune.encoders is {finetune.encoders!r}, but stage 'pretrain' trains whole encoders; it is a choice of "
            "stage 'finetune'",
        )
        _require(
            finetune.trained_blocks <= depth,
            f"finetune.trained_blocks is {finetune.trained_blocks}, but encoders of model.size {self.model.size!r} have "
            f"{depth} blocks; use finetune.encoders=train to train all",
        )

    @property
    def run_dir(self) -> Path:
        return Path(self.runs_dir) / self.name

    @property
    def samples_per_step(self) -> int:
        """Distinct samples of a global batch."""
        return self.engine.global_batch_size // self.data.windows_per_sample

    @property
    def _step_in_words(self) -> str:
        batch = f"engine.global_batch_size {self.engine.global_batch_size}"
        if self.data.windows_per_sample == 1:
            return batch
        return f"the {self.samples_per_step} samples of a step ({batch} / data.windows_per_sample {self.data.windows_per_sample})"

    @property
    def num_runs(self) -> int:
        return self.data.num_runs or self.samples_per_step

    @property
    def _contrasts(self) -> bool:
        return self.stage == "pretrain" and self.pretrain.contrastive_weight > 0

    @property
    def group_size(self) -> int:
        """Clips that must be spread evenly over ranks: the contrastive group, or where nothing is contrasted all samples."""
        if self._contrasts:
            return self.pretrain.contrastive_group_size
        return self.samples_per_step

    def accumulation_steps(self, world_size: int) -> int:
        """Forward passes per update; raises ConfigError with the numbers that would work."""
        total, micro = self.engine.global_batch_size, self.engine.micro_batch_size
        if self.samples_per_step % world_size:
            raise ConfigError(
                f"{self._step_in_words} does not divide over {world_size} ranks; use a rank count among "
                f"{_divisors(self.samples_per_step)} or change the batch"
            )
        if (total // world_size) % micro:
            raise ConfigError(
                f"engine.micro_batch_size {micro} does not divide the {total // world_size} clips of each of "
                f"{world_size} ranks (global batch {total}); use one of {_divisors(total // world_size)}"
            )
        if self._contrasts:
            self._check_group(world_size)
        return total // (world_size * micro)

    def passes_per_group(self, world_size: int) -> int:
        """Forward passes that together hold one contrastive group; above 1 it takes two passes."""
        clips_per_pass = self.engine.micro_batch_size * world_size
        return max(1, self.pretrain.contrastive_group_size // clips_per_pass) if self._contrasts else 1

    def _check_group(self, world_size: int) -> None:
        group, micro = self.pretrain.contrastive_group_size, self.engine.micro_batch_size
        if group % world_size:
            raise ConfigError(
                f"pretrain.contrastive_group_size {group} does not divide over {world_size} ranks, which take an "
                f"equal run of every group; use a group that is a multiple of {world_size}"
            )

        def fits(micro: int) -> bool:
            return group % (micro * world_size) == 0 or (micro * world_size) % group == 0

        clips_per_rank = self.engine.global_batch_size // world_size
        if not fits(micro):
            working = [d for d in range(1, clips_per_rank + 1) if clips_per_rank % d == 0 and fits(d)]
            raise ConfigError(
                f"pretrain.contrastive_group_size {group} is neither a divisor nor a multiple of the {micro * world_size} "
                f"clips of one forward pass over all ranks (micro batch {micro} x {world_size} ranks); use an "
                f"engine.micro_batch_size among {', '.join(map(str, working))}"
            )


# ------------------------------------------------------------------------------------------- files


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file and `section.key=value` overrides into a checked Config.

    Raises:
        ConfigError: file missing or not YAML, unknown key, wrong type, bad choice, or an impossible combination;
            all unknown keys and type errors of one file are reported together.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such config file")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, found {type(values).__name__}")
    for override in overrides:
        apply_override(values, override)
    return from_dict(Config, values, where=str(path))


def save_config(config: Config, path: str | Path) -> None:
    """Writes the resolved config, every field included."""
    Path(path).write_text(yaml.safe_dump(to_dict(config), sort_keys=False))
