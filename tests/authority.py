"""A certificate authority of a site, made by the real openssl, and the certificates that it gives out."""

from __future__ import annotations

import subprocess
from pathlib import Path

__all__ = ["Authority"]


class Authority:
    """Its own certificate is `file`; what it issues lies beside it."""

    def __init__(self, directory: Path, name: str = "site") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self.file = directory / f"{name}-ca.pem"
        self._key = directory / f"{name}-ca.key"
        self._openssl(
            *("req", "-x509", "-new", "-nodes", "-subj", f"/CN={name} CA", "-days", "2"),
            *("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"),
            *_KEY,
            *("-keyout", self._key, "-out", self.file),
        )

    def issue(self, name: str, *alternatives: str, usage: str = "serverAuth") -> tuple[Path, Path]:
        """Certificate and key for `alternatives` such as ``IP:127.0.0.1`` or ``DNS:host``."""
        base = self._directory / name
        request, extensions = base.with_suffix(".csr"), base.with_suffix(".ext")
        certificate, key = base.with_suffix(".pem"), base.with_suffix(".key")
        self._openssl("req", "-new", "-nodes", "-subj", f"/CN={name}", *_KEY, "-keyout", key, "-out", request)
        lines = ["basicConstraints=CA:FALSE", f"extendedKeyUsage={usage}"]
        lines += [f"subjectAltName={','.join(alternatives)}"] if alternatives else []
        extensions.write_text("\n".join(lines) + "\n")
        self._openssl(
            *("x509", "-req", "-in", request, "-days", "2", "-extfile", extensions),
            *("-CA", self.file, "-CAkey", self._key, "-CAcreateserial", "-out", certificate),
        )
        return certificate, key

    def _openssl(self, *words: str | Path) -> None:
        done = subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
