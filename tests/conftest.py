"""Eight virtual CPU devices; a rank promotion is an error; cheap, cached compilation.

Nearly all that the tests cost is compilation of programs that then run for
milliseconds, so XLA is asked to compile quickly rather than well. What is compiled once
is loaded by other tests, by the programs that tests start and by later runs, from
``.cache/jax`` in the checkout or from where ``JAX_COMPILATION_CACHE_DIR`` says.
"""

import functools
import gc
import logging
import os
from importlib.metadata import version
from pathlib import Path

# Before jax reads them; workers and programs inherit them.
if "XLA_FLAGS" not in os.environ:
    flags = [
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_parallel_codegen_split_count=1",
    ]
    # MLIR's pipeline for every fusion. XLA aborts on flags that it does not know, and
    # later versions do not know this one.
    if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
        flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join(flags)
# A collective holds a thread of XLA's pool until all devices have come. The pool has as
# many threads as devices, so that two collectives that do not wait for one another can
# take all of it and stop the program for good.
os.environ.setdefault("NPROC", "64")
# There are as many workers as cores: more threads would only wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    cache = Path(__file__).parents[1] / ".cache" / "jax"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

import jax
import numpy as np
import pytest
from toy_roots import clips_root as clips_root
from toy_roots import root as root

# Inner parts of JAX, which other versions need not have: then tests only take longer.
try:
    from jax._src.interpreters import mlir
    from jax._src.lax import lax
except ImportError:
    mlir = lax = None

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# A fifth of the time: tracing makes millions of objects that live on, which are
# collected in vain, and notes where each operation was written.
jax.config.update("jax_traceback_in_locations_limit", 0)
gc.set_threshold(200_000, 20, 50)


def copy_unchanged(primitive):
    """Spares the program of a primitive that leaves a NumPy array as it is.

    For ``jnp.asarray`` JAX compiles an identity for every shape; the array is copied to
    the device instead. Scalars, which are few shapes, and arrays on a mesh are left.
    """
    compute = primitive.impl

    def impl(x, **settings):
        unchanged = (
            isinstance(x, np.ndarray)
            and x.ndim > 0
            and settings.get("new_dtype", x.dtype) == x.dtype
            and not settings.get("weak_type")
            and settings.get("sharding") is None
            and jax.sharding.get_abstract_mesh().empty
        )
        return jax.device_put(np.array(x)) if unchanged else compute(x, **settings)

    primitive.def_impl(impl)


for name in ("stage_p", "convert_element_type_p"):
    if hasattr(lax, name):
        copy_unchanged(getattr(lax, name))

LONGEST_FIRST = (
    "test_meta_training",
    "test_meta_loss",
    "test_multimodal",
    "test_contract",
    "test_own_data",
    "test_planning",
    "test_demo",
)


def pytest_collection_modifyitems(items):
    """Puts the longest files first: no worker is left alone with one in the end."""
    order = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def pytest_collection_finish():
    """Takes the modules that are loaded by now out of every later collection."""
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def bounded_memory():
    """Lets go of what a file compiled: the next one needs little of it.

    All programs of a file are lowered in one MLIR context. JAX makes one for each, and
    to load its dialects takes longer than to lower one operation.
    """
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(mlir, "make_ir_context"):
            shared = functools.cache(mlir.make_ir_context)
            patch.setattr(mlir, "make_ir_context", shared)
        yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def log_level():
    """Commands that a test runs in its own process change what is logged."""
    logger = logging.getLogger("meta_opt")
    before = logger.level
    yield
    logger.setLevel(before)
