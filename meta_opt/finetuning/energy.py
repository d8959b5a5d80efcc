"""Joules that a machine says it spent, where it says so.

Processors: the counters of RAPL that Linux shows below ``/sys/class/powercap``, a
package each (its cores and, on most, not its memory). Since 2020 only root may read
them. GPUs: NVIDIA's counters by NVML, if the package ``nvidia-ml-py`` is there. Of a
machine with neither the energy is None: nothing is estimated.
"""

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

_log = logging.getLogger(__name__)

POWERCAP = Path("/sys/class/powercap")
# A package; its parts, intel-rapl:0:0, are in its count.
_PACKAGE = re.compile(r"intel-rapl:\d+")


class Counter(NamedTuple):
    """A count of energy that only rises, but for wrapping round.

    Attributes:
        read: gives joules; raises OSError where it cannot.
        range: joules at which it begins anew; None if it does not.
    """

    read: Callable[[], float]
    range: float | None = None


class EnergyMeter:
    """Joules since it was made.

    Counters of RAPL wrap round within minutes to hours under load; one wrap is
    corrected, so read it more often than that.

    Args:
        counters: by name; None for those that `find_counters` finds.

    Attributes:
        sources: names of what is counted, sorted.

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
        """All sources together; None if there is none, or one can no longer be read."""
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
    """The counters of this machine that can be read, by name.

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
    # No driver, or GPUs before Volta, which do not count.
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
