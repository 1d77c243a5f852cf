"""Which code this is, in a file that packaging reads without importing JAX."""

import shutil
import subprocess
from pathlib import Path

__version__ = "0.1.0"


def git_commit() -> str | None:
    """The commit of the working tree that this package is imported from, "+changes" where it is not clean; None outside one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    commit = _git(root, "rev-parse", "HEAD")
    return (
        commit + "+changes"
        if commit and _git(root, "status", "--porcelain", "--untracked-files=no")
        else commit or None
    )


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False
    ).stdout.strip()
