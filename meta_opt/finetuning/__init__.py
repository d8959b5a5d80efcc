"""Fine-tuning of any workload: ``run`` trains one, ``finetune`` a configuration."""

from meta_opt.finetuning.run_config import RunConfig
from meta_opt.finetuning.runs import FinishedRun, finetune, run

__all__ = ["FinishedRun", "RunConfig", "finetune", "run"]
