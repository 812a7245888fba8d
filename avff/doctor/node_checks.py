"""Which checks a node makes, in which order. Rooms are imported by the check that needs them, so that a missing
package is that check's answer and not the end of all."""

from functools import partial
from pathlib import Path

from avff.config import Config
from avff.doctor import gpus, machine, network, run_folder, services, software
from avff.doctor.check import Check, CheckFunction

SHARED_MEMORY = Path("/dev/shm")


def node_checks(
    config: Config | None, *, number: int, num_nodes: int, num_ranks_here: int, world_size: int, main_address: str
) -> dict[str, CheckFunction]:
    """Returns the checks of one node by name.

    Args:
        number: of the node; only the first one talks to wandb.
        main_address: where rank 0 listens; empty for a plain process.
    """
    needs_gpu = config is not None and config.model.size != "tiny"
    checks: dict[str, CheckFunction] = {
        "python": software.python,
        "packages": software.packages,
        "sources": software.sources,
        **gpus.gpu_checks(num_ranks_here, needs_gpu),
        "shared memory": partial(machine.shared_memory, SHARED_MEMORY, num_ranks_here),
        "open files": partial(machine.open_files, config, num_ranks_here),
        "processes": partial(machine.processes, config, num_ranks_here),
        "locked memory": machine.locked_memory,
        "SLURM": partial(services.slurm_job, config),
    }
    if main_address:
        checks["host name"] = partial(network.host_name, num_nodes, main_address)
        checks["main address"] = partial(network.main_address, main_address, num_nodes)
        checks["interfaces"] = network.interfaces
    if config is not None:
        checks |= _config_checks(config, number, num_ranks_here, world_size)
    return checks


def _config_checks(config: Config, number: int, num_ranks_here: int, world_size: int) -> dict[str, CheckFunction]:
    checks: dict[str, CheckFunction] = {"memory": partial(machine.memory, config, num_ranks_here, world_size)}
    if config.engine.compile:
        checks["compiler"] = software.compiler
    sources = {"train": config.data.train, "validation": config.data.validation}
    names: dict[str, str] = {}
    for use, of_use in sources.items():
        for place, source in enumerate(of_use):
            names.setdefault(source.path, f"data.{use}[{place}]")  # once, where it is used for both
    checks |= {name: partial(_shard_directory, path, number) for path, name in names.items()}
    if config.data.train:
        checks["decoding"] = partial(_decoding, config)
    if config.engine.init_weights:
        checks["init weights"] = partial(_init_weights, config.engine.init_weights)
    if number == 0:
        checks["wandb"] = partial(services.wandb, config)
    return checks


def folder_checks(folder: Path, rank: int, config: Config, num_nodes: int) -> dict[str, CheckFunction]:
    """Returns the checks of the run folder's place, to be made once the probe of rank 0 is seen there."""
    return {
        "locks": partial(run_folder.lock, folder, rank),
        "free space": partial(run_folder.free_space, folder, config),
        "write speed": partial(run_folder.write_speed, folder, config, num_nodes),
    }


def _shard_directory(path: str, number: int) -> Check:
    from avff.doctor.shards import shard_directory

    return shard_directory(path, number)


def _decoding(config: Config) -> Check:
    from avff.doctor.shards import decoding

    return decoding(config.data.train[0].path, config.clip)


def _init_weights(path: str) -> Check:
    from avff.doctor.shards import init_weights

    return init_weights(path)
