"""Certificates for tests that speak TLS, made when they run: nothing secret is kept in the tree.

`openssl` makes them: wherever Python finds certificates at all, it is there too (Debian's `ca-certificates` needs it).
"""

from __future__ import annotations

import subprocess
from pathlib import Path


def certificate(directory: Path, name: str) -> Path:
    """A file with a certificate for `name` ("DNS:host" or "IP:address"), signed by itself, and its key."""
    file = directory / "certificate.pem"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=for tests", "-addext", f"subjectAltName={name}", "-keyout", "-", "-out", "-"],
        check=True, capture_output=True,
    )  # fmt: skip
    file.write_bytes(made.stdout)
    return file
