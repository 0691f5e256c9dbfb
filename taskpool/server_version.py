"""Which server this is, Redis or Valkey, in which version, and which known security holes that version has."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from typing import Final, NamedTuple, Self

Version = tuple[int, ...]


class ServerVersion(NamedTuple):
    """The name and version that a server gives itself."""

    name: str
    version: str

    @classmethod
    def from_info(cls, info: Mapping[str, object]) -> Self:
        """That of the fields of INFO. Valkey's `redis_version` is only the version it is compatible with."""
        if own := info.get("valkey_version"):
            return cls("Valkey", str(own))
        return cls("Redis", str(info.get("redis_version", "?")))

    @classmethod
    def from_program(cls, path: str) -> Self:
        """That of a server program, as `--version` says it: `Valkey server v=9.1.2 sha=...`."""
        said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
        found = re.search(r"(Redis|Valkey) server v=(\S+)", said)
        return cls(*found.groups()) if found else cls("Redis", "?")

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    @property
    def parts(self) -> Version:
        """The numbers of the version."""
        return _parts(self.version)

    def can_read_files_of(self, writer: ServerVersion) -> bool:
        """Whether data files that `writer` wrote can be opened by this server.

        Each server reads those of its older releases. Valkey comes from Redis 7.2 and reads up to that. The formats
        of Valkey 9 and of Redis 7.4 and later are their own.
        """
        if self.name == writer.name:
            return self.parts[:2] >= writer.parts[:2]
        return self.name == "Valkey" and writer.parts < (7, 4)

    @property
    def security_warning(self) -> str | None:
        """A sentence for those who run it when this version has holes that are known, by its number alone."""
        fixed = FIXED.get(self.name, ())
        if self.parts and _is_older_than_its_fix(self.parts, [_parts(version) for version in fixed]):
            return (
                f"{self} has known security holes in its Lua scripting ({HOLES}), fixed in {self.name} "
                f"{', '.join(fixed)}: upgrade it, unless it is a package of a distribution that has these fixes"
            )
        return None


# The four advisories on Lua scripting of October 2025: https://github.com/redis/redis/releases/tag/8.2.2 and
# https://github.com/valkey-io/valkey/releases/tag/8.1.4, and the releases of the same day. Series that are missing
# got no fix when they are older than the last one here, and were made with the fix when they are newer.
HOLES: Final = "CVE-2025-49844, CVE-2025-46817, CVE-2025-46818, CVE-2025-46819"
FIXED: Final = {
    "Redis": ("6.2.20", "7.2.11", "7.4.6", "8.0.4", "8.2.2"),
    "Valkey": ("7.2.11", "8.0.6", "8.1.4"),
}


def _is_older_than_its_fix(version: Version, fixes: list[Version]) -> bool:
    return next((version < fix for fix in fixes if fix[:2] == version[:2]), version < fixes[-1]) if fixes else False


def _parts(version: str) -> Version:
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()
