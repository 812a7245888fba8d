"""How often each sample comes per epoch: directory weights, and balance over the values of any index column."""

import math
from collections.abc import Sequence

import numpy as np

from avff.config import DataConfig
from avff.data.index import IndexRow
from avff.data.selection import StoredSample
from avff.data.shards import ShardDirectory
from avff.errors import ConfigError

BALANCE_COLUMNS = tuple(name for name in IndexRow._fields if name not in ("key", "offset", "length", "members"))


def check_weights(data: DataConfig) -> None:
    """Refuses weights that make no sense whatever the samples are.

    Raises:
        ConfigError: unknown column, weights without a column, a negative weight, a directory twice.
    """
    if data.balance_column and data.balance_column not in BALANCE_COLUMNS:
        raise ConfigError(f"data.balance_column {data.balance_column!r} is none of {', '.join(BALANCE_COLUMNS)}")
    if data.column_weights and not data.balance_column:
        raise ConfigError("data.column_weights needs data.balance_column, which names the column of those values")
    paths = [source.path for source in data.train]
    if len(set(paths)) < len(paths):
        raise ConfigError(f"data.train lists a directory twice: {', '.join(sorted(paths))}; raise its weight instead")
    weights = {f"data.train {source.path} weight": source.weight for source in data.train}
    weights |= {f"data.column_weights.{value}": weight for value, weight in data.column_weights.items()}
    if negative := {name: weight for name, weight in weights.items() if not 0 <= weight < math.inf}:
        raise ConfigError("; ".join(f"{name} is {weight}; it has to be 0 or more" for name, weight in negative.items()))


def sampling_weights(data: DataConfig, train: Sequence[ShardDirectory], samples: Sequence[StoredSample]) -> np.ndarray:
    """Returns how often each sample comes per epoch, float64; 0 for samples that never come.

    Directory weights multiply; balancing then keeps their sum and shares it over the column's values.

    Args:
        train: the directories of `data.train`, in that order.
        samples: from those directories.

    Raises:
        ConfigError: `data.column_weights` names a value that no sample has.
    """
    of_directory = {id(directory): source.weight for directory, source in zip(train, data.train, strict=True)}
    weight_M = np.array([of_directory[id(sample.directory)] for sample in samples], dtype=np.float64)
    if not data.balance_column:
        return weight_M
    value_M = [column_text(getattr(sample.row, data.balance_column)) for sample in samples]
    if unknown := data.column_weights.keys() - set(value_M):
        raise ConfigError(
            f"data.column_weights names {', '.join(sorted(unknown))}; {data.balance_column} of the samples to train on "
            f"is {', '.join(sorted(set(value_M))[:20])}"
        )
    return balanced_weights(weight_M, value_M, data.column_weights)


def balanced_weights(base_M: np.ndarray, value_M: list[str], factors: dict[str, float]) -> np.ndarray:
    """Returns weights that draw every value of a column equally often, times its factor; their sum stays.

    Args:
        base_M: float64 weight of each sample before balancing.
        value_M: the column's value of each sample.
        factors: extra weight per value; 1 where a value is not named, 0 leaves its samples out.
    """
    values, code_M = np.unique(value_M, return_inverse=True)
    factor = np.array([factors.get(str(value), 1.0) for value in values])
    base_M = base_M * (factor > 0)[code_M]
    total = np.bincount(code_M, weights=base_M, minlength=len(values))
    factor[total == 0] = 0.0
    if not factor.any():
        return base_M
    # fsum is exact, so that the weights, and with them the order, are the same on every machine.
    share = factor / math.fsum(factor) * math.fsum(base_M)
    per_unit = np.divide(share, total, out=np.zeros_like(share), where=total > 0)
    return base_M * per_unit[code_M]


def column_text(value: object) -> str:
    """Returns a column's value as it is written in `data.column_weights`."""
    if value is None:
        return "unknown"
    return ";".join(map(str, value)) if isinstance(value, tuple) else str(value)
