"""webdataset's own pipeline on our shards: its shard list, tar reader, shuffle buffer and loader.

Decoding and batches are avff's, so that what differs is how samples come to them: no plan, no index, no exact resume.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import webdataset

from avff.data.samples import Sample
from avff.data.views import AVView
from avff.schema import from_json
from avff.seeding import derive_seed

_SHUFFLED_SAMPLES = 100


def webdataset_batches(
    shards: Sequence[Path], view: AVView, *, num_batches: int, batch_size: int, num_workers: int
) -> Iterator[Any]:
    """Yields `num_batches` AVBatches of shards drawn at random; workers have to share them evenly."""

    def decoded(stored: dict[str, Any]) -> Any:
        members = {name: data for name, data in stored.items() if not name.startswith("__")}
        metadata = from_json(members.pop("json"), stored["__url__"])
        return view.train_clips(Sample(metadata, members), [derive_seed(stored["__key__"])])[0]

    dataset = (
        webdataset.WebDataset([str(path) for path in shards], resampled=True, shardshuffle=False)
        .select(_is_usable)
        .shuffle(_SHUFFLED_SAMPLES)
        .map(decoded)
        .batched(batch_size, collation_fn=view.collate)
        .with_epoch(num_batches // max(1, num_workers))
    )
    yield from webdataset.WebLoader(dataset, batch_size=None, num_workers=num_workers)


def _is_usable(stored: dict[str, Any]) -> bool:
    return from_json(stored["json"], stored["__url__"]).status == ["OK"]
