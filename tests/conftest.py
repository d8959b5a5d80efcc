"""Eight virtual CPU devices; a rank promotion is an error; programs compiled once.

What one test compiles, another, another worker and the programs that tests start load
from a folder that the run of tests makes and removes. Where
``JAX_COMPILATION_CACHE_DIR`` names one, that is used and kept.
"""

import atexit
import os
import shutil
import tempfile

# Before jax reads them; workers and programs inherit them.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.mkdtemp(prefix="jax_tests_")
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
