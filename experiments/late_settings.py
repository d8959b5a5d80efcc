"""Command-line settings that ml_collections cannot parse.

ml_collections parses a value by the type of the setting in the config file. This fails
for None in place of a number, and for sections that the file leaves out.
"""

import ast
import re
import runpy
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from meta_opt.types import near_match

_SETTING = re.compile(r"--?config\.([\w.]+)=(.*)", re.DOTALL)
_KEY = re.compile(r"--?config\.[\w.]+")
_FILE = re.compile(r"--?config(?:=(.*))?")
_WORDS: Mapping[str, Any] = {"None": None, "true": True, "false": False}


def split_late(
    argv: Sequence[str], default: str | None, partial: bool
) -> tuple[list[str], dict[str, Any]]:
    """Splits these settings off the arguments.

    Args:
        argv: arguments of the command.
        default: config file and variant if there is no ``--config``; None for none.
        partial: whether the command line may add sections that the file lacks.

    Returns:
        The remaining arguments, and the value of each setting.
    """
    argv = _joined(argv)
    # Read the config only if a section may be missing, since that executes the file.
    nested = any((x := _SETTING.fullmatch(a)) and "." in x[1] for a in argv)
    config = _read_config(argv, default) if partial and nested else None
    kept, late = [], {}
    for argument in argv:
        found = _SETTING.fullmatch(argument)
        if found and (found[2] == "None" or _lacks_section(config, found[1])):
            late[found[1]] = parse_value(found[2])
        else:
            kept.append(argument)
    return kept, late


def set_late(config: ConfigDict, settings: Mapping[str, Any]) -> None:
    """Applies the settings; sections are added unless the config is locked.

    Args:
        config: config that ml_collections parsed.
        settings: settings that `split_late` returned.

    Raises:
        ValueError: an unknown setting, or one in a setting that is not a section.
    """
    for key, value in settings.items():
        node: Any = config
        *sections, name = key.split(".")
        for section in sections:
            if section not in node and not node.is_locked:
                node[section] = {}
            node = _known(node, section, key, value)
            if not isinstance(node, ConfigDict):
                raise ValueError(
                    f"--config.{key}={value}: {section!r} is a setting, {node!r}, and "
                    "has no settings of its own"
                )
        if node.is_locked:
            _known(node, name, key, value)
        with node.ignore_type():
            node[name] = value


def _joined(argv: Sequence[str]) -> list[str]:
    """Rewrites ``--config.KEY VALUE`` as ``--config.KEY=VALUE``.

    >>> _joined(["--config.a.b", "1", "--config", "file.py", "--config.c"])
    ['--config.a.b=1', '--config', 'file.py', '--config.c']
    """
    joined: list[str] = []
    for argument in argv:
        if joined and _KEY.fullmatch(joined[-1]) and not argument.startswith("--"):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _known(node: Any, name: str, key: str, value: Any) -> Any:
    if name not in node:
        near = near_match(name, node)
        raise ValueError(f"--config.{key}={value}: no setting {name!r}{near}")
    return node[name]


def _read_config(argv: Sequence[str], default: str | None) -> ConfigDict | None:
    """Reads the config file; returns None on an error, which is reported later."""
    named = default
    for argument, following in zip(argv, [*argv[1:], None], strict=True):
        if found := _FILE.fullmatch(argument):
            named = following if found[1] is None else found[1]
    if not named:
        return None
    path, _, variant = named.partition(":")
    try:
        get_config = runpy.run_path(path)["get_config"]
        return get_config(variant) if variant else get_config()
    except Exception:  # ml_collections reads the file again and reports its errors.
        return None


def _lacks_section(config: ConfigDict | None, key: str) -> bool:
    node: Any = config
    for section in key.split(".")[:-1]:
        if not isinstance(node, ConfigDict):
            return False
        if section not in node:
            return True
        node = node[section]
    return False


def parse_value(text: str) -> Any:
    """Parses a Python literal; returns any other text unchanged.

    >>> [parse_value(x) for x in ("0.5", "(1, 2)", "gradnorm", "true")]
    [0.5, (1, 2), 'gradnorm', True]
    """
    if text in _WORDS:
        return _WORDS[text]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
