"""What the host side finds on this machine: links to units, and paths for the unique part."""

import importlib.metadata
from dataclasses import asdict
from typing import Any

from moska.host import unique
from moska.host.transport import GROUP


def found() -> dict[str, Any]:
    """Return version, transports, paths and the chosen path, of plain values."""
    points = importlib.metadata.entry_points(group=GROUP)
    paths = unique.available()
    return {
        "version": importlib.metadata.version("moska"),
        "transports": {f"{point.name}:": point.value for point in points},
        "paths": [asdict(path) for path in paths],
        "chosen_path": next(path.name for path in paths if path.usable),
    }
