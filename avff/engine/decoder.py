"""The library that decodes a run's video: settled once, then the run's own (`data.decoder`)."""

import dataclasses
import logging

from avff import distributed
from avff.config import Config, DecoderName
from avff.data.decoder_choice import time_decoders
from avff.data.decoders import DEFAULT_DECODER, installed_decoders, require_decoder
from avff.engine import agreement, run_state

logger = logging.getLogger(__name__)


def settle_decoder(config: Config) -> Config:
    """Returns the config with a decoder that every rank has, and stores a new choice in the run's config; a collective.

    Raises:
        ConfigError: a rank cannot import the decoder that the run was started with, or that the config names.
        ShardError: the training data, on which decoders are timed, cannot be read.
    """
    stated = config.data.decoder
    if stated != "auto":
        agreement.everywhere(lambda: require_decoder(stated))
        return config
    candidates = set.intersection(*map(set, distributed.gather_objects(installed_decoders())))
    chosen = agreement.on_main(lambda: _fastest(config, sorted(candidates)))
    settled = dataclasses.replace(config, data=dataclasses.replace(config.data, decoder=chosen))
    agreement.on_main(lambda: run_state.store_config(settled))
    return settled


def _fastest(config: Config, candidates: list[DecoderName]) -> DecoderName:
    if len(candidates) == 1:
        return candidates[0]
    times = time_decoders(
        config.data.train, config.clip, candidates, timeout_seconds=config.faults.decode_timeout_seconds
    )
    chosen = times.fastest or DEFAULT_DECODER
    measured = ", ".join(f"{name} {milliseconds:.1f} ms" for name, milliseconds in times.milliseconds.items())
    logger.info("video is decoded by %s (per clip and core: %s)", chosen, measured or "nothing could be measured")
    return chosen
