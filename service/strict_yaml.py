"""One strict reading of YAML for configuration files: what is written is what is meant.

* A key twice in one mapping is refused (PyYAML keeps the last and says nothing).
* Only null, true, false, numbers and text: `off`, `no`, `12:30` and `2024-01-01` are text, as in YAML 1.2.
* No tags, anchors or aliases: nothing can be run, and nothing can blow up.
* Each key remembers its line, for messages.

Messages never quote a value, which might be a secret in the wrong place.
"""

from __future__ import annotations

import io
import re
from typing import Any

import yaml

from service.errors import ConfigError

Lines = dict[tuple[str | int, ...], int]
"""Path of a key or list item -> its line, counted from 1."""

MAX_DEPTH = 20


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML's own way)

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.composer.ComposerError(None, None, "anchors and aliases are not supported", event.start_mark)
        return super().compose_node(parent, index)

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:  # noqa: N803  (PyYAML's own name)
        if self.flow_level > MAX_DEPTH:
            raise RecursionError  # before the scanner gets to it: its time grows by the square of the depth
        super().fetch_flow_collection_start(TokenClass)


def _resolve(tag: str, pattern: str, first: str) -> None:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"(?:{pattern})$"), list(first))


_resolve("bool", "true|True|TRUE|false|False|FALSE", "tTfF")
_resolve("null", "~|null|Null|NULL|", "~nN\0")
_resolve("int", "[-+]?(?:0|[1-9][0-9]*)", "-+0123456789")
_resolve("float", r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(?:[eE][-+]?[0-9]+)?", "-+.0123456789")
_Loader.yaml_implicit_resolvers[""] = _Loader.yaml_implicit_resolvers.pop("\0")


def parse(data: bytes, *, name: str) -> tuple[Any, Lines]:
    """Return the document and its lines; `name` is the file's name for messages. Raises ConfigError."""
    # A stream, not text: with text PyYAML would quote the line in its messages.
    loader = None
    try:
        loader = _Loader(io.BytesIO(data))
        node = loader.get_single_node()
        lines: Lines = {}
        return (None if node is None else _Reader(loader, name, lines).value(node, ())), lines
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(
            f"{name}{line}: not valid YAML: {exc.problem}", hint="Mind the indentation and quotes around that line."
        ) from exc
    except yaml.YAMLError as exc:
        raise ConfigError(f"{name}: not a text file in UTF-8", hint="Save it as UTF-8 text.") from exc
    except RecursionError as exc:
        raise ConfigError(f"{name}: is nested too deeply", hint="Start from one of the files in examples/.") from exc
    finally:
        if loader is not None:
            loader.dispose()


class _Reader:
    """Turns nodes into values and notes their lines."""

    def __init__(self, loader: _Loader, name: str, lines: Lines) -> None:
        self._loader, self._name, self._lines = loader, name, lines

    def value(self, node: yaml.Node, path: tuple[str | int, ...]) -> Any:
        if len(path) > MAX_DEPTH:
            raise self._refuse(node, "is nested too deeply")
        self._lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        if node.tag not in _SCALARS:
            raise self._refuse(node, "uses a YAML tag, which is not supported")
        return self._loader.construct_object(node)

    def _mapping(self, node: yaml.MappingNode, path: tuple[str | int, ...]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._refuse(key_node, "has a key that is not a word")
            key = str(key_node.value)
            here = (*path, key)
            if key in found:
                raise self._refuse(key_node, f"has the key {key} a second time (first on line {self._lines[here]})")
            self._lines[here] = key_node.start_mark.line + 1
            found[key] = self.value(value_node, here)
        return found

    def _refuse(self, node: yaml.Node, why: str) -> ConfigError:
        return ConfigError(f"{self._name}, line {node.start_mark.line + 1}: {why}", hint="Correct that line.")


_SCALARS = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str")}
