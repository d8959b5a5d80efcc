"""Energy in joules, from the hardware counters of a machine.

CPUs: the RAPL counters that Linux has below ``/sys/class/powercap``, one for each
package (its cores and, on most machines, not its memory). Since 2020 only root may read
them. GPUs: NVIDIA's counters through NVML, if the package ``nvidia-ml-py`` is
installed. Without counters the energy is None: it is never estimated.
"""

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

_log = logging.getLogger(__name__)

POWERCAP = Path("/sys/class/powercap")
# Matches packages only: their counts include their parts, such as intel-rapl:0:0.
_PACKAGE = re.compile(r"intel-rapl:\d+")


class Counter(NamedTuple):
    """A monotonic energy counter that wraps around.

    Attributes:
        read: function that returns joules; raises OSError if it cannot be read.
        range: joules at which it wraps around; None if it does not.
    """

    read: Callable[[], float]
    range: float | None = None


class EnergyMeter:
    """Measures joules since its creation.

    Under load RAPL counters wrap around within minutes to hours. Only a single wrap
    between two readings is corrected, so read the meter more often than that.

    Args:
        counters: counters by name; None uses those of `find_counters`.

    Attributes:
        sources: sorted names of the counters.

    Example:
        >>> joules = iter((5.0, 9.0, 2.0))
        >>> meter = EnergyMeter({"package": Counter(lambda: next(joules), 10.0)})
        >>> meter.joules(), meter.joules()
        (4.0, 7.0)
    """

    def __init__(self, counters: Mapping[str, Counter] | None = None) -> None:
        self._counters = dict(find_counters() if counters is None else counters)
        self._last = {name: each.read() for name, each in self._counters.items()}
        self._total = 0.0
        self.sources = tuple(sorted(self._counters))

    def joules(self) -> float | None:
        """Returns the total over all sources; None without sources, or if one fails."""
        if not self._counters:
            return None
        for name, counter in self._counters.items():
            try:
                now = counter.read()
            except OSError as error:
                _log.warning("energy of %s can no longer be read: %s", name, error)
                self._counters = {}
                return None
            spent = now - self._last[name]
            if spent < 0 and counter.range is not None:
                spent += counter.range
            self._total += spent
            self._last[name] = now
        return self._total


def find_counters(powercap: Path = POWERCAP) -> dict[str, Counter]:
    """Returns the readable counters of this machine by name.

    Args:
        powercap: folder of RAPL's counters.
    """
    return {**_rapl(powercap), **_nvml()}


def _rapl(powercap: Path) -> dict[str, Counter]:
    found = {}
    for folder in sorted(powercap.glob("intel-rapl:*")):
        if not _PACKAGE.fullmatch(folder.name):
            continue
        energy = folder / "energy_uj"

        def read(energy: Path = energy) -> float:
            return int(energy.read_text()) / 1e6

        try:
            read()
            limit = int((folder / "max_energy_range_uj").read_text()) / 1e6
        except (OSError, ValueError) as error:
            _log.info("no energy of %s: %s", folder.name, error)
            continue
        found[folder.name] = Counter(read, limit)
    return found


def _nvml() -> dict[str, Counter]:
    try:
        import pynvml
    except ImportError:
        return {}
    try:
        pynvml.nvmlInit()
        devices = range(pynvml.nvmlDeviceGetCount())
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in devices]
        found = {f"gpu:{i}": _gpu(pynvml, handle) for i, handle in enumerate(handles)}
        for counter in found.values():
            counter.read()
    # There is no driver, or the GPU predates Volta and has no counter.
    except (pynvml.NVMLError, OSError) as error:
        _log.info("no energy of GPUs: %s", error)
        return {}
    return found


def _gpu(pynvml: ModuleType, handle: object) -> Counter:
    def read() -> float:
        try:
            return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
        except pynvml.NVMLError as error:
            raise OSError(str(error)) from None

    return Counter(read)
