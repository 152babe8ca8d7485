"""The one reader of a study's YAML files: what is read twice, or without end, is refused."""

from pathlib import Path
from typing import Any

import yaml

MOST_BYTES = 2**18
"""Of a file; the longest here has a tenth."""

MOST_NODES = 20_000
"""Values of a file, with every alias (``*name``) written out; the largest here has a tenth."""


def read_yaml(path: str | Path, name: str = "study") -> Any:
    """Read a YAML file.

    Args:
        path: of the file, in UTF-8.
        name: of what it holds, for messages.

    Raises:
        ValueError: for a file that is no YAML, too long, nested too deeply, has a key twice in one
            mapping, or aliases that would write out without end; the message has one line.
        OSError: if it cannot be read.
    """
    path = Path(path)
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"{name}: {path} has more than {MOST_BYTES:,} bytes")
    try:
        loader = _Loader(content.decode("utf-8-sig"))
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, UnicodeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{name}: {path} is no YAML that is read here: {reason}") from error
    except RecursionError:
        raise ValueError(f"{name}: {path} is nested too deeply") from None


class _Loader(yaml.SafeLoader):
    """Plain values alone, each key once, and not too many."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and (n := _size(node, {}, set())) > MOST_NODES:
            raise ValueError(
                f"its aliases stand for {n:,} values, allowed: {MOST_NODES:,}"
                if n < 10**12
                else f"its aliases stand for more than 10¹² values, allowed: {MOST_NODES:,}"
            )
        if node is not None:
            self._check_keys(node, set())
        return node

    def _check_keys(self, node: yaml.Node, seen: set[int]) -> None:
        """Raise for a key that is twice in one mapping; merged ones (``<<``) may be overridden."""
        if id(node) in seen or isinstance(node, yaml.ScalarNode):
            return
        seen.add(id(node))
        keys: set[Any] = set()
        for child in node.value:
            key_node, value = child if isinstance(node, yaml.MappingNode) else (None, child)
            self._check_keys(value, seen)
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != _MERGE:
                key = self.construct_object(key_node)
                if key in keys:
                    line = key_node.start_mark.line + 1
                    raise ValueError(f"the key {key!r} is there twice, again in line {line}")
                keys.add(key)


_MERGE = "tag:yaml.org,2002:merge"


def _size(node: yaml.Node, known: dict[int, int], open_nodes: set[int]) -> int:
    """Values below a node, aliases written out; each node is looked at once."""
    if id(node) in known:
        return known[id(node)]
    if id(node) in open_nodes:
        raise ValueError("an alias stands for what contains it")
    open_nodes.add(id(node))
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        children = [one for pair in node.value for one in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    known[id(node)] = 1 + sum(_size(child, known, open_nodes) for child in children)
    open_nodes.remove(id(node))
    return known[id(node)]
