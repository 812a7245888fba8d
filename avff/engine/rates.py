"""How fast a run goes: clips per second, data wait, MFU, memory, goodput."""

import time
from dataclasses import dataclass, field

import torch

from avff import distributed

PEAK_FLOPS = {
    # Dense bf16 peak of one device, by a part of its name as torch gives it.
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10": 125e12,
    "V100": 125e12,
}


def peak_flops(device: torch.device) -> float | None:
    """Returns the device's peak, None for a CPU or an unknown GPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


@dataclass
class Rates:
    """Times between two log lines.

    Attributes:
        flops_per_clip: forward and backward of the whole objective.
        first_start_unix: when the run's first process started.
        productive_seconds: spent in updates that count, over all processes of the run so far.
        longest_step_seconds: of this process, the first step aside.
    """

    device: torch.device
    flops_per_clip: float
    first_start_unix: float
    productive_seconds: float = 0.0
    longest_step_seconds: float = 0.0
    _mark: float = field(default_factory=time.monotonic)
    _data_wait_seconds: float = 0.0
    _clips: int = 0
    _steps: int = 0
    _num_counted: int = 0

    def count(self, clips: int, data_wait_seconds: float, step_seconds: float) -> None:
        """Adds one step."""
        if self._num_counted:  # the first one warms up, or compiles
            self.longest_step_seconds = max(self.longest_step_seconds, step_seconds)
        self._num_counted += 1
        self._clips += clips
        self._steps += 1
        self._data_wait_seconds += data_wait_seconds
        self.productive_seconds += step_seconds

    def restart_window(self) -> None:
        """Begins a new window, so that validating and saving do not count as slow training."""
        self._mark, self._data_wait_seconds, self._clips, self._steps = time.monotonic(), 0.0, 0, 0

    def summary(self) -> dict[str, float | None]:
        """Returns the numbers of the window that ends now."""
        seconds = max(time.monotonic() - self._mark, 1e-9)
        clips_per_second = self._clips / seconds
        peak = peak_flops(self.device)
        used = clips_per_second * self.flops_per_clip / distributed.world_size()
        return {
            "time_unix": time.time(),
            "clips_per_second": clips_per_second,
            "step_seconds": seconds / max(1, self._steps),
            "data_wait_seconds": self._data_wait_seconds / max(1, self._steps),
            "mfu": used / peak if peak else None,
            "memory_gib": _memory_gib(self.device),
            "goodput": self.productive_seconds / max(time.time() - self.first_start_unix, 1e-9),
        }


def _memory_gib(device: torch.device) -> float:
    """Most memory that this rank has held: allocated on the GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
