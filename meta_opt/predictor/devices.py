"""Chooses the devices of a fit."""

import jax

from meta_opt.predictor.decision import Decision


def choose_devices(
    batch_size: int, wanted: int | None, *, present: bool = True
) -> tuple[int, list[Decision]]:
    """Chooses the number of devices to divide a batch over.

    Args:
        batch_size: B, a multiple of the returned number of devices.
        wanted: maximum number of devices; None for all accelerators, or one CPU.
            Several processes always use all of their devices.
        present: whether the devices must exist on this machine; False for a plan.

    Returns:
        The number of devices, and the decision about it if there was a choice.

    Raises:
        ValueError: ``wanted`` is below 1 or above the number of devices, or the batch
            cannot be divided over the devices of several processes.

    >>> count, decisions = choose_devices(12, 8, present=False)
    >>> print(count, decisions[0])
    6 devices = 6: the most of 8 that divide a batch of 12 samples
    """
    if wanted is not None and wanted < 1:
        raise ValueError(f"devices={wanted} must be at least 1")
    if present and jax.process_count() > 1:
        return _of_all_processes(batch_size, wanted)
    local = jax.local_device_count()
    if present and wanted is not None and wanted > local:
        raise ValueError(f"devices={wanted}, but there are only {local}")
    if wanted is None:
        wanted = 1 if jax.default_backend() == "cpu" else local
    count = max(n for n in range(1, wanted + 1) if batch_size % n == 0)
    if wanted == 1:
        return 1, []
    reason = f"the most of {wanted} that divide a batch of {batch_size} samples"
    return count, [Decision("devices", count, reason)]


def _of_all_processes(
    batch_size: int, wanted: int | None
) -> tuple[int, list[Decision]]:
    """Returns the number of devices of all processes; each takes part of the batch."""
    count, processes = jax.device_count(), jax.process_count()
    if wanted is not None and wanted != count:
        raise ValueError(
            f"devices={wanted}, but {processes} processes with {count} devices always "
            "use all of them: leave devices out, or start fewer processes"
        )
    if batch_size % count:
        raise ValueError(
            f"a batch of {batch_size} samples, chosen by the call that this one "
            f"resumes, cannot be divided over {count} devices of {processes} "
            "processes: start as many processes as before, or use another workdir"
        )
    return count, [Decision("devices", count, f"all of {processes} processes")]
