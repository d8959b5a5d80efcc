"""Compiled programs are stored where the user says; settings of JAX come first."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from meta_opt.compilation_cache import MAX_BYTES, cache_folder

PROGRAM = """
import json

import jax
from meta_opt.compilation_cache import use_compilation_cache
folder = use_compilation_cache()
config = jax.config
print(json.dumps([
    folder and str(folder),
    config.jax_compilation_cache_dir,
    config.jax_compilation_cache_max_size,
]))
"""


def found(**variables):
    """Folder, JAX's folder and JAX's bound, in a process of their own."""
    env = {k: v for k, v in os.environ.items() if "CACHE" not in k}
    env |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **variables}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout), run.stderr


def test_the_folder_is_the_users(monkeypatch, tmp_path):
    monkeypatch.delenv("META_OPT_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "meta_opt" / "compiled"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "meta_opt" / "compiled"
    monkeypatch.setenv("META_OPT_CACHE_DIR", "~/mine")
    assert cache_folder() == tmp_path / "home" / "mine"
    monkeypatch.setenv("META_OPT_CACHE_DIR", "")
    assert cache_folder() is None


def test_a_bounded_cache_is_turned_on(tmp_path):
    folder = tmp_path / "new" / "cache"
    (used, of_jax, bound), _ = found(META_OPT_CACHE_DIR=str(folder))
    assert used == of_jax == str(folder) and bound == MAX_BYTES
    assert Path(folder).stat().st_mode & 0o077 == 0


def test_what_jax_is_set_to_stays(tmp_path):
    own = str(tmp_path / "own")
    (used, of_jax, bound), _ = found(
        META_OPT_CACHE_DIR=str(tmp_path / "other"), JAX_COMPILATION_CACHE_DIR=own
    )
    assert used == of_jax == own and bound == -1
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("value", ["", "file/below"])
def test_none_where_it_is_off_or_cannot_be_written(tmp_path, value):
    (tmp_path / "file").write_text("")
    given = str(tmp_path / value) if value else ""
    (used, of_jax, _), error = found(META_OPT_CACHE_DIR=given)
    assert used is None and of_jax is None
    assert ("is not writable" in error) == bool(value)
