"""Where a stored result comes from: its configuration, code, versions and machine.

Whatever writes a result adds `provenance` to it. Records that are older than a field
lack it, and nothing is filled in afterwards: `describe_provenance` says so.
"""

from collections.abc import Mapping
from typing import Any

from meta_opt.run_log import describe_environment, settings_digest

NOT_RECORDED = "not recorded"
FIELDS = ("config", "revision", "versions", "machine")
"""What `describe_provenance` gives."""


def provenance(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of a record: ``digest`` of its settings, and ``environment``.

    Args:
        settings: all that the result depends on, JSON values.
    """
    return {
        "digest": settings_digest(settings),
        "environment": describe_environment(),
    }


def describe_provenance(record: Mapping[str, Any]) -> dict[str, str]:
    """What a record says of its origin, in words; `NOT_RECORDED` where it is silent.

    Args:
        record: of any study. Reports have the digest and the revision among their
            ``facts``.

    Returns:
        By each of `FIELDS`, a text.

    Example:
        >>> record = {"environment": {"git": "abc", "versions": {"jax": "0.10.2"}}}
        >>> describe_provenance(record)["versions"]
        'jax 0.10.2'
        >>> describe_provenance(record)["machine"]
        'not recorded'
    """
    environment = record.get("environment") or {}
    facts = record.get("facts") or {}
    versions = environment.get("versions") or {}
    # As one record that was measured by hand has it.
    if not versions and "jax" in environment:
        versions = {"jax": environment["jax"]}
    machine = [
        environment[name]
        for name in ("platform", "processor", "device")
        if environment.get(name)
    ]
    found = {
        "config": record.get("digest") or facts.get("config"),
        "revision": environment.get("git")
        or facts.get("revision")
        or facts.get("revision of the report"),
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items() if v),
        "machine": ", ".join(machine),
    }
    return {name: str(found[name] or NOT_RECORDED) for name in FIELDS}
