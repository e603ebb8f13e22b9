"""YAML text -> plain values: safe, bounded, and with numbers as people write them."""

from __future__ import annotations

import re
from typing import Any

import yaml

from zmpsl.errors import JobError

__all__ = ["read_yaml", "write_yaml"]


class _Loader(yaml.SafeLoader):
    """SafeLoader without aliases, a short text could become a huge job with them, and without doubled keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not used in jobs", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                problem = f"key {key.value!r} stands here twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else "")
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what _Loader would take for a number."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    # PyYAML writes these line breaks of Unicode as they are, and reads them back as spaces; only "..." escapes them.
    style = '"' if any(mark in value for mark in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)

# YAML 1.1 takes 1e-4, without a dot, for a text; everybody means a number.
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


def read_yaml(text: str, source: str) -> tuple[yaml.Node | None, Any]:
    """Reads one YAML document.

    Args:
        text: The document.
        source: Names it in messages.

    Returns:
        Its tree, which knows lines, and its value.

    Raises:
        JobError: It is no YAML, or uses what jobs do not.
    """
    try:
        loader = _Loader(text)
        tree = loader.get_single_node()
        return tree, None if tree is None else loader.construct_document(tree)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{source}:{mark.line + 1}" if mark is not None else source
        raise JobError(f"{place}: not valid YAML: {getattr(error, 'problem', None) or error}") from error
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        # What PyYAML's constructors raise for values such as `!!int x`, dates that are none, and deep nesting.
        raise JobError(f"{source}: not valid YAML: {error}") from error


def write_yaml(value: Any) -> str:
    """Gives a plain value as YAML that `read_yaml` reads back the same; keys keep their order."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return text
