"""Provenance of stored results: configuration, code, versions and machine.

Every writer of results adds `provenance`. Older records may lack fields, which are not
filled in afterwards: `describe_provenance` reports them as not recorded.
"""

from collections.abc import Mapping
from typing import Any

from meta_opt.run_log import describe_environment, settings_digest

NOT_RECORDED = "not recorded"
FIELDS = ("config", "revision", "versions", "machine")
"""Fields of `describe_provenance`."""


def provenance(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of a record: ``digest`` of its settings, and ``environment``.

    Args:
        settings: all settings that the result depends on, as JSON values.
    """
    return {
        "digest": settings_digest(settings),
        "environment": describe_environment(),
    }


def describe_provenance(record: Mapping[str, Any]) -> dict[str, str]:
    """Describes a record's provenance; `NOT_RECORDED` for missing fields.

    Args:
        record: record of any study. Reports have digest and revision in their
            ``facts``.

    Returns:
        A text for each of `FIELDS`.

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
    # The form of one record that was measured manually.
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
