"""Finds names that a file defines twice. Python keeps the last in silence, so this reads the text and runs nothing."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

from featurestore.errors import Fault

_DECORATOR = "feature_view"
_CONSTRUCTORS = frozenset({"FeatureService", "Entity", "Source"})


def repeated_names(module: ast.Module) -> list[Fault]:
    """One fault for each feature, view, service, entity or source that a later line replaces."""
    views = [node for node in module.body if isinstance(node, ast.ClassDef) and _is_view(node)]
    things = [(name, node.lineno) for node in module.body for name in _assigned(node) if _constructs(node)]
    faults = list(_repeats("", [*((view.name, view.lineno) for view in views), *things]))
    for service, listed in _own_features(module):
        faults += _repeats(f"{service}.", listed)
    for view in views:
        body = [(name, node.lineno) for node in view.body for name in _assigned(node)]
        faults += _repeats(f"{view.name}.", body)
    return faults


def _repeats(prefix: str, named: Iterable[tuple[str, int]]) -> Iterator[Fault]:
    lines: dict[str, list[int]] = {}
    for name, line in sorted(named, key=lambda item: item[1]):
        lines.setdefault(name, []).append(line)
    for name, found in lines.items():
        if len(found) > 1:
            where = ", ".join(str(line) for line in found[:-1])
            yield Fault(f"{prefix}{name}", f"is defined twice, on lines {where} and {found[-1]}", "each name once")


def _own_features(module: ast.Module) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """Each service with the names in its `features={…}`, and their lines."""
    for node in module.body:
        call = getattr(node, "value", None)
        for keyword in call.keywords if isinstance(call, ast.Call) else ():
            if _called(call) == "FeatureService" and keyword.arg == "features" and isinstance(keyword.value, ast.Dict):
                keys = [key for key in keyword.value.keys if isinstance(key, ast.Constant)]
                yield ", ".join(_assigned(node)), [(str(key.value), key.lineno) for key in keys]


def _is_view(node: ast.ClassDef) -> bool:
    return any(_called(decorator) == _DECORATOR for decorator in node.decorator_list)


def _constructs(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign | ast.AnnAssign) and _called(node.value) in _CONSTRUCTORS


def _called(node: ast.expr | None) -> str:
    """The last part of what a call calls: `fs.feature_view(…)` → `feature_view`."""
    function = node.func if isinstance(node, ast.Call) else None
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _assigned(node: ast.stmt) -> list[str]:
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign) and node.value is not None:
        targets = [node.target]
    return [target.id for target in targets if isinstance(target, ast.Name)]
