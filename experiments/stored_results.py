"""Results stored in files with their setup, so that nothing is measured twice."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meta_opt.leases import Lease
from meta_opt.provenance import provenance
from meta_opt.run_log import settings_digest
from meta_opt.text_files import read_json, write_json


@dataclasses.dataclass(frozen=True, eq=False)
class StoredResult:
    """A result that is stored in a file.

    Attributes:
        path: path of the JSON file.
        setup: everything that the result depends on, JSON values.
    """

    path: Path
    setup: dict[str, Any]

    @property
    def digest(self) -> str:
        """Digest of the setup; a file with another digest is stale."""
        return settings_digest(self.setup)

    def lease_name(self, name: str) -> str:
        """Returns the name of the lease on work ``name`` with this setup.

        See `meta_opt.leases.Leases`.
        """
        return f"{name}, {self.digest[:8]}"

    def stored(self) -> dict[str, Any] | None:
        """Returns the stored result; None if there is none or it is stale.

        Raises:
            ValueError: the file is not a result.
        """
        if not self.path.is_file():
            return None
        again = "delete it to measure it again"
        try:
            record = read_json(self.path)
        except ValueError as error:
            raise ValueError(f"{error}; {again}") from None
        if "digest" not in record:
            raise ValueError(f"{self.path} is not a result; {again}")
        return record if record["digest"] == self.digest else None

    def write(self, found: Mapping[str, Any], lease: Lease | None = None) -> None:
        """Stores a result with its digest and environment.

        Args:
            found: the result.
            lease: lease on the work, if it is shared.

        Raises:
            LeaseLostError: another process has taken the work; nothing is written.
        """
        record = {**provenance(self.setup), **found}
        if lease is not None:
            lease.check()
        write_json(self.path, record, indent=1)
