"""How a live tree differs from an archive, as far as names and times tell. No file is read."""

# Work by descriptor speaks os, not pathlib.

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from service.sources.directories import join
from service.sources.selection import Selection, scan, translate


def changes(
    root: Path, rules: Selection, ignore: Sequence[str], facts: Mapping[str, Any], since: datetime
) -> list[str]:
    """Return one sentence for each difference of the tree below `root` from the archived `facts`. Raises OSError.

    Changes of what the globs `ignore` match, and of what lies below, do not count.
    """
    if not root.is_dir():
        return [f"{root} is missing"]
    ignored = [re.compile(f"(?:{translate(pattern)})(?:/.*)?", re.DOTALL) for pattern in ignore]
    files = changed = 0
    for where, directories, _, fd in os.fwalk(root):
        path = os.path.relpath(where, root).removeprefix(".")
        kinds = scan(fd)
        for name in rules.left_out(path, kinds, fd):
            del kinds[name]
        directories[:] = [name for name, kind in kinds.items() if kind == stat.S_IFDIR]
        for name, kind in kinds.items():
            if kind == stat.S_IFREG:
                files += 1
                if any(glob.fullmatch(join(path, name)) for glob in ignored):
                    continue
                # archives know whole seconds: what was written in the very second may be in the archive
                changed += int(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mtime) > since.timestamp()
    then = facts["files"] + facts["hard_links"]
    told = [f"{root} has {files} files, {then} in the baseline"] if files != then else []
    return told + ([f"{changed} files below {root} were changed since"] if changed else [])
