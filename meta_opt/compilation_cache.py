"""Compiled programs in the user's cache folder, so that later calls need not compile.

The compiled step of the learned optimizer takes longer than many a short run.
"""

import logging
import os
from pathlib import Path
from typing import Any

import jax

_log = logging.getLogger(__name__)

VARIABLE = "META_OPT_CACHE_DIR"
"""Names the folder; set to nothing, no program is stored."""
MAX_BYTES = 2**30
"""Of all stored programs; beyond it JAX removes those that were not used longest."""
_MIN_SECONDS = 0.2
"""Compilation time below which a program is not stored."""


def cache_folder() -> Path | None:
    """The folder of compiled programs.

    Returns:
        ``$META_OPT_CACHE_DIR``, else ``meta_opt/compiled`` in ``$XDG_CACHE_HOME`` or
        ``~/.cache``; None where ``$META_OPT_CACHE_DIR`` is set and empty.
    """
    given = os.environ.get(VARIABLE)
    if given is not None:
        return Path(given).expanduser().absolute() if given.strip() else None
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root).absolute() / "meta_opt" / "compiled"


def use_compilation_cache() -> Path | None:
    """Turns on JAX's persistent compilation cache for the rest of the process.

    JAX's own settings come first: a process that has a cache already, or has caching
    disabled, is left as it is. Stored programs are code that later processes run, so
    a folder that is created here is open to its owner only.

    Returns:
        The folder that is used now; None for none.
    """
    config: Any = jax.config  # Its settings have no types.
    if config.jax_compilation_cache_dir is not None:
        return Path(config.jax_compilation_cache_dir)
    folder = cache_folder()
    if folder is None or not config.jax_enable_compilation_cache:
        return None
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        _log.warning(
            "%s is not writable, so compiled programs are not stored; set $%s to a "
            "folder that is, or to nothing",
            folder,
            VARIABLE,
        )
        return None
    config.update("jax_compilation_cache_dir", str(folder))
    for name, default, value in (
        ("jax_compilation_cache_max_size", -1, MAX_BYTES),
        ("jax_persistent_cache_min_compile_time_secs", 1.0, _MIN_SECONDS),
    ):
        if name.upper() not in os.environ and getattr(config, name) == default:
            config.update(name, value)
    return folder
