"""Checks of a configuration's fields, with errors that name the field and its value."""

from meta_opt.types import near_match


def check_divides(config: object, small: str, large: str) -> None:
    """Raises ValueError unless one field divides another.

    Args:
        config: has both as attributes.
        small: name of the one that divides.
        large: name of the one that is divided.

    >>> import types
    >>> check_divides(types.SimpleNamespace(heads=3, width=16), "heads", "width")
    Traceback (most recent call last):
    ValueError: heads=3 must divide width=16
    """
    if getattr(config, large) % getattr(config, small):
        raise ValueError(
            f"{small}={getattr(config, small)} must divide "
            f"{large}={getattr(config, large)}"
        )


def check_names(config: object, **known_by_field: tuple[str, ...]) -> None:
    """Raises ValueError for a field whose value is none of those known.

    Args:
        config: has the fields as attributes.
        **known_by_field: the values that each may have.

    >>> import types
    >>> check_names(types.SimpleNamespace(remat="fulll"), remat=("none", "full"))
    Traceback (most recent call last):
    ValueError: remat='fulll' is not one of none, full; did you mean 'full'?
    """
    for name, known in known_by_field.items():
        if (value := getattr(config, name)) not in known:
            raise ValueError(
                f"{name}={value!r} is not one of {', '.join(known)}"
                f"{near_match(str(value), known)}"
            )
