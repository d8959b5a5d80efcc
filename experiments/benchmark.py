"""Benchmarks of the learned optimizer: medians and ratios measured in one run.

    python -m experiments.benchmark [--only update,step,compile,memory,import,meta]
    python -m experiments.benchmark --only step,input --size B/16 --batch_size 32
    python -m experiments.benchmark --only hlo_bytes --topology v5e:2x2
    python -m experiments.benchmark --only convnets --network resnet50 --pixels 100

Alternatives take turns within each round, so that drifts in the machine's speed affect
them equally; ratios are of medians. The numbers depend on the machine's load.
"""

from absl import flags

from experiments import cli
from experiments.benchmarks import convnets, meta, steps, updates
from meta_opt.types import near_match

_BENCHES = {
    "update": updates.bench_update,
    "step": steps.bench_step,
    "compile": updates.bench_compile,
    "memory": steps.bench_memory,
    "import": updates.bench_import,
    "meta": meta.bench_meta,
    "input": steps.bench_input,
    "hlo_bytes": updates.bench_hlo_bytes,
    "convnets": convnets.bench_convnets,
}
_ONLY = flags.DEFINE_list(
    "only", list(_BENCHES), f"Benchmarks to run, of {', '.join(_BENCHES)}."
)


def main() -> None:
    """Runs the selected benchmarks and prints a line for each ratio."""
    for name in _ONLY.value:
        if name not in _BENCHES:
            known = ", ".join(_BENCHES)
            near = near_match(name, _BENCHES)
            raise ValueError(
                f"--only: unknown benchmark {name!r}{near}; available: {known}"
            )
    print(f"{'':56} {'ours':>9} {'theirs':>9} {'':8} {'ratio':>6} target")
    for name in _ONLY.value:
        for what, ours, theirs, unit, target in _BENCHES[name]():
            bound = ">=" if unit.endswith("/s") else "<="
            wanted = "" if target is None else f"{bound} {target:g}"
            numbers = f"{ours:9.2f} {theirs:9.2f} {unit:8} {ours / theirs:6.2f}"
            print(f"{what:56} {numbers} {wanted}", flush=True)


if __name__ == "__main__":
    cli.run(main)
