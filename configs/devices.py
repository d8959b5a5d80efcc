"""One short run on several numbers of devices: ``nano`` is reported; and ``smoke``."""

import ml_collections

from configs import common, finetune


def nano() -> ml_collections.ConfigDict:
    """Twenty steps of nano on clip art on 1, 2 and 8 virtual CPU devices."""
    run = finetune.nano_clipart()
    run.num_steps = 20
    run.batch_size = 32
    run.loop.eval_every = 5
    run.loop.progress = False
    config = ml_collections.ConfigDict()
    config.run = run
    config.cases = {
        "data_1": dict(devices=1, mesh=dict(data=-1)),
        "data_2": dict(devices=2, mesh=dict(data=-1)),
        "data_8": dict(devices=8, mesh=dict(data=-1)),
        "fsdp_8": dict(devices=8, mesh=dict(data=1, fsdp=-1)),
    }
    # What the others are compared with.
    config.reference = "data_1"
    config.results = "results/devices"
    return config


def smoke() -> ml_collections.ConfigDict:
    """Two steps of an untrained model on 1 and 2 devices."""
    config = nano()
    config.run = finetune.smoke()
    config.run.num_steps = 2
    config.run.loop.eval_every = 1
    config.run.loop.progress = False
    for name in ("data_8", "fsdp_8"):
        del config.cases[name]
    config.results = "runs/devices/smoke"
    return config


def get_config(arg: str = "nano") -> ml_collections.ConfigDict:
    """Returns the variant of that name."""
    return common.choose(arg, {v.__name__: v for v in (nano, smoke)})
