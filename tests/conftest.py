"""Eight virtual CPU devices; a rank promotion is an error; cheap, cached compilation.

Nearly all that the tests cost is compilation of programs that then run for
milliseconds, so XLA is asked to compile them quickly rather than well. What is compiled
once is loaded by other tests, by the programs that tests start and by later runs, from
``.cache/jax`` in the checkout or from where ``JAX_COMPILATION_CACHE_DIR`` says.
"""

import os
from pathlib import Path

# Before jax reads them; workers and programs inherit them. Flags that are already set
# come last: they win.
FAST_COMPILATION = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)
if FAST_COMPILATION[0] not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = " ".join(
        [*FAST_COMPILATION, os.environ.get("XLA_FLAGS", "")]
    )
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    cache = Path(__file__).parents[1] / ".cache" / "jax"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
