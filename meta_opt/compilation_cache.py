"""Persistent compilation cache in the user's cache folder.

Compiling the step of the learned optimizer can take longer than a short run.
"""

import logging
import os
from pathlib import Path
from typing import Any

import jax

_log = logging.getLogger(__name__)

VARIABLE = "META_OPT_CACHE_DIR"
"""Environment variable of the folder; empty to disable the cache."""
MAX_BYTES = 2**30
"""Largest size of the cache; beyond it JAX evicts the least recently used programs."""
_MIN_SECONDS = 0.2
"""Compilation time below which a program is not stored."""


def cache_folder() -> Path | None:
    """The folder of compiled programs.

    Returns:
        ``$META_OPT_CACHE_DIR``, else ``meta_opt/compiled`` in ``$XDG_CACHE_HOME`` or
        ``~/.cache``; None if ``$META_OPT_CACHE_DIR`` is set and empty.
    """
    given = os.environ.get(VARIABLE)
    if given is not None:
        return Path(given).expanduser().absolute() if given.strip() else None
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root).absolute() / "meta_opt" / "compiled"


def use_compilation_cache() -> Path | None:
    """Turns on JAX's persistent compilation cache for the rest of the process.

    JAX's own settings have precedence: a process that already has a cache, or has
    disabled it, is not changed. Stored programs are code that later processes run, so a
    folder that is created here is open to its owner only.

    Returns:
        The folder in use; None for none.
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
