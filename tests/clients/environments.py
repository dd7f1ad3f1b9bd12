"""Virtual environments of other people's packages: made once, kept in a folder of their own."""

import hashlib
import re
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path


def environment(folder: Path, packages: Sequence[str]) -> Path:
    """The Python of an environment with these packages, made where it is not there yet.

    Raises CalledProcessError where a package cannot be had.
    """
    name = hashlib.sha256("\n".join(packages).encode()).hexdigest()[:12]
    first = re.split("[<>=]", packages[0])[0] if packages else "bare"
    home = folder / f"{first}-{name}"
    python, done = home / "bin" / "python", home / "done"
    if not done.exists():
        venv.create(home, with_pip=bool(packages), clear=True)
        if packages:
            install = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet"]
            subprocess.run([*install, "install", *packages], check=True, stdout=sys.stderr)
        done.touch()
    return python


def sources(folder: Path, package: str, version: str) -> Path:
    """The unpacked source distribution of a package. Raises CalledProcessError."""
    home = folder / f"{package}-{version}"
    if not home.exists():
        download = [sys.executable, "-m", "pip", "--quiet", "download", "--no-deps"]
        wanted = ["--no-binary", package, f"{package}=={version}"]
        subprocess.run([*download, *wanted, "--dest", str(folder)], check=True)
        archive = folder / f"{package}-{version}.tar.gz"
        subprocess.run(["tar", "-xzf", str(archive), "-C", str(folder)], check=True)
    return home
