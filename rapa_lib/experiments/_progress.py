"""Parts of a long measurement that are done, in a file that is whole at any time."""

import json
import logging
from pathlib import Path
from typing import Any

from rapa_lib._files import writable_folder
from rapa_lib.experiments.records import write_json

log = logging.getLogger(__name__)


class Progress:
    """What is measured already, by key; kept in a file if there is one.

    Args:
        path: the file, which is read if it exists, and begun anew, with a logged warning, if it is
            damaged; None keeps nothing.
        identity: what the measurement is of; plain enough for JSON.

    Raises:
        ValueError: if the file is of another measurement, or cannot be written.
    """

    def __init__(self, path: str | Path | None, identity: dict[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.identity = json.loads(json.dumps(identity))
        self.done: dict[str, Any] = {}
        if self.path is None:
            return
        writable_folder("resume", self.path.parent)
        try:
            saved = json.loads(self.path.read_text(encoding="utf-8"))
            mine, done = saved["identity"] == self.identity, dict(saved["done"])
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError) as error:
            log.warning("resume: %s is damaged and is not used: %r", self.path, error)
            return
        if not mine:
            raise ValueError(f"resume: {self.path} is of another measurement; remove it")
        self.done = done

    def add(self, key: str, result: Any) -> Any:
        """Keep a result, and return it as it would be read again."""
        self.done[key] = json.loads(json.dumps(result))
        if self.path is not None:
            write_json(self.path, {"identity": self.identity, "done": self.done})
        return self.done[key]
