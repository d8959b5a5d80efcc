"""Fine-tuning of any workload: ``run`` trains one, ``finetune`` a configuration."""

from meta_opt.finetuning.runs import FinishedRun, RunConfig, finetune, run

__all__ = ["FinishedRun", "RunConfig", "finetune", "run"]
