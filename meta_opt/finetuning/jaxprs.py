"""Nested jaxprs of an equation: the bodies of loops, branches and calls."""

from collections.abc import Iterator, Mapping
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr


def inner_jaxprs(params: Mapping[str, Any]) -> Iterator[Jaxpr]:
    """Yields the jaxprs among an equation's parameters, also those in sequences.

    Equivalent to `jax.extend.core.jaxprs_in_params`, which JAX 0.7 lacks.

    Args:
        params: parameters of a `jax.extend.core.JaxprEqn`.

    >>> import jax
    >>> program = jax.make_jaxpr(lambda x: jax.lax.fori_loop(0, 3, lambda i, y: y, x))
    >>> (equation,) = program(1.0).jaxpr.eqns
    >>> len(list(inner_jaxprs(equation.params)))
    1
    """
    for value in params.values():
        for inner in value if isinstance(value, tuple | list) else (value,):
            if isinstance(inner, ClosedJaxpr):
                yield inner.jaxpr
            elif isinstance(inner, Jaxpr):
                yield inner
