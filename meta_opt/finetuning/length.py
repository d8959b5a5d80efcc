"""Default length and batch size of a run, from the number of examples."""

import dataclasses
import math

from meta_opt.finetuning.loop_config import LoopConfig

_LARGEST_BATCH = 32
_STEPS_PER_EPOCH = 8
_EPOCHS = 20
_STEPS = (100, 2000)


def with_length(config: LoopConfig, examples: int, unit: int = 1) -> LoopConfig:
    """Fills in ``num_steps`` and ``batch_size`` where they are 0.

    The batch size is 32, or less if an epoch would have fewer than 8 steps; the run has
    20 epochs, but at least 100 and at most 2,000 steps.

    Args:
        config: settings of the loop; all others are kept.
        examples: number of training examples.
        unit: factor that the batch size is a multiple of, see
            `meta_opt.parallel.mesh.check_batch_size`.

    >>> config = LoopConfig(num_steps=0, batch_size=0)
    >>> [with_length(config, n).batch_size for n in (20, 200, 100_000)]
    [2, 16, 32]
    >>> [with_length(config, n).num_steps for n in (20, 200, 100_000)]
    [200, 250, 2000]
    """
    batch_size = config.batch_size
    if not batch_size:
        batch_size = _LARGEST_BATCH
        while batch_size > 1 and examples < _STEPS_PER_EPOCH * batch_size:
            batch_size //= 2
        batch_size = unit * math.ceil(batch_size / unit)
    num_steps = config.num_steps
    if not num_steps:
        least, most = _STEPS
        num_steps = math.ceil(_EPOCHS * examples / batch_size)
        num_steps = min(max(num_steps, least), most)
    return dataclasses.replace(config, num_steps=num_steps, batch_size=batch_size)
