"""Chooses the devices of a fit."""

import jax

from meta_opt.predictor.decision import Decision


def choose_devices(
    batch_size: int, wanted: int | None, *, present: bool = True
) -> tuple[int, list[Decision]]:
    """The number of devices to divide a batch over.

    Args:
        batch_size: B; the number of devices divides it.
        wanted: at most so many; None for all accelerators of this process, or one CPU.
        present: whether the devices must be there; for a plan they need not.

    Returns:
        The number, and the decision about it unless there is only one to have.

    Raises:
        ValueError: fewer than one, more than there are, or several processes.

    >>> count, decisions = choose_devices(12, 8, present=False)
    >>> print(count, decisions[0])
    6 devices = 6: the most of 8 that divide a batch of 12 samples
    """
    if wanted is not None and wanted < 1:
        raise ValueError(f"devices={wanted} must be at least 1")
    local = jax.local_device_count()
    if present:
        if jax.process_count() > 1:
            raise ValueError(
                f"fit runs in one process, and there are {jax.process_count()}: start "
                "it on one machine, or train with experiments.finetune"
            )
        if wanted is not None and wanted > local:
            raise ValueError(f"devices={wanted}, and there are {local}")
    if wanted is None:
        wanted = 1 if jax.default_backend() == "cpu" else local
    count = max(n for n in range(1, wanted + 1) if batch_size % n == 0)
    if wanted == 1:
        return 1, []
    reason = f"the most of {wanted} that divide a batch of {batch_size} samples"
    return count, [Decision("devices", count, reason)]
