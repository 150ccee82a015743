"""What applying definitions would change, and applying them. What a published version means is never changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from featurestore.contracts.compat import backward_violations
from featurestore.contracts.contract import Contract
from featurestore.definitions import codec
from featurestore.definitions.compile import Definitions
from featurestore.definitions.compiled import CompiledService, CompiledView
from featurestore.definitions.fingerprint import differences
from featurestore.definitions.model import FeatureService, FeatureView, Source
from featurestore.definitions.notebook import html_table
from featurestore.definitions.services import service_differences
from featurestore.errors import BreakingChange, RegistryConflict, UsageError
from featurestore.registry.catalog import DEFAULT_ALIAS, EMPTY, Catalog
from featurestore.registry.log import Registry
from featurestore.registry.revision import SECTIONS, Content

_ATTEMPTS = 5
_FIXED_SOURCE_FIELDS = ("topic", "event_time")
"""Positions in the topic and instants in the lake are recorded under the source's name."""


@dataclass(frozen=True, slots=True)
class Step:
    """One change. `kind` is contract, source, view, service or alias; a breaking one is refused by `apply`."""

    kind: str
    name: str
    detail: str
    breaking: bool = False
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}: {self.detail}"


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """`content` is the next revision, if no step is breaking."""

    base: Catalog
    steps: tuple[Step, ...]
    content: Content

    @property
    def breaking(self) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if step.breaking)

    def _repr_html_(self) -> str:
        rows = [(s.kind, s.name, s.detail, "refused" if s.breaking else "", s.hint) for s in self.steps]
        title = f"plan over revision {self.base.revision}" if rows else "nothing would change"
        return html_table(title, ("kind", "name", "what", "", "hint"), rows)

    def require_safe(self) -> None:
        """Raises BreakingChange with every change that is refused."""
        if refused := self.breaking:
            lines = "\n".join(f"  - {step}" for step in refused)
            hints = "; ".join(dict.fromkeys(step.hint for step in refused if step.hint))
            raise BreakingChange(f"this would change what is published\n{lines}", hint=hints)


def plan(catalog: Catalog | None, definitions: Definitions, *, promote: bool = False) -> Plan:
    """Compare definitions with what is published. What the definitions do not mention stays as it is."""
    base = catalog or EMPTY
    draft = _Draft(base)
    steps = [
        *(step for contract in definitions.contracts.values() for step in draft.contract(contract)),
        *(step for source in _sources(definitions) for step in draft.source(source)),
        *(step for pair in zip(definitions.views, definitions.raw_views, strict=True) for step in draft.view(*pair)),
        *(
            step
            for pair in zip(definitions.services, definitions.raw_services, strict=True)
            for step in draft.service(*pair, promote=promote)
        ),
    ]
    return Plan(base, tuple(steps), draft.content)


def apply(registry: Registry, definitions: Definitions, *, now: int, promote: bool = False) -> Catalog:
    """Publish the definitions; without anything to change there is no new revision.

    The first apply of a service sets its `prod`; later ones leave it unless `promote`. Raises BreakingChange, or
    RegistryConflict where other writers came first time and again.
    """

    def change(catalog: Catalog) -> Content | None:
        found = plan(catalog, definitions, promote=promote)
        found.require_safe()
        return found.content if found.steps else None

    return _commit(registry, change, now)


def set_alias(registry: Registry, service: str, alias: str, version: int, *, now: int) -> Catalog:
    """Let `service@alias` lead to a published version. Raises NotFound for a service or version that is not."""
    if not alias.isidentifier() or not alias.isascii() or not alias.islower():
        raise UsageError(f"{alias!r} is no alias", hint="lower-case letters, digits and _, starting with a letter",
                         field="alias")  # fmt: skip

    def change(catalog: Catalog) -> Content | None:
        catalog.resolve(f"{service}@{version}")
        if catalog.aliases.get(service, {}).get(alias) == version:
            return None
        draft = _Draft(catalog)
        draft.point(service, alias, version)
        return draft.content

    return _commit(registry, change, now)


def _commit(registry: Registry, change: Callable[[Catalog], Content | None], now: int) -> Catalog:
    """Append what `change` makes of the newest revision; start over from the winner's where somebody was first."""
    for attempt in range(_ATTEMPTS):
        head = registry.head()
        content = change(head)
        if content is None:
            return head
        try:
            return registry.append(content, head, now)
        except RegistryConflict:
            if attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def _sources(definitions: Definitions) -> list[Source]:
    return list({view.source.name: view.source for view in definitions.raw_views}.values())


class _Draft:
    """The next revision's content, being made. Each method publishes one thing and yields what that changes."""

    def __init__(self, base: Catalog) -> None:
        self._base = base
        self._sections: dict[str, dict[str, Any]] = {
            section: {name: _copied(value) for name, value in base.content[section].items()} for section in SECTIONS
        }

    @property
    def content(self) -> Content:
        return self._sections

    def contract(self, contract: Contract) -> Iterator[Step]:
        published = self._base.contracts.get(contract.id)
        self._sections["contracts"][contract.id] = contract.schema_json
        if published is None:
            yield Step("contract", contract.id, f"new, {len(contract.fields)} fields")
            yield from self._compatibility(contract)
        elif published.fingerprint != contract.fingerprint:
            hint = f"publish it as {contract.topic}/v{contract.version + 1}"
            yield Step("contract", contract.id, ", ".join(_field_changes(published, contract)), True, hint)
        elif published.schema_json != contract.schema_json:
            yield Step("contract", contract.id, "other text, same meaning")

    def _compatibility(self, contract: Contract) -> Iterator[Step]:
        """A contract reads what was written under every earlier version of it, and is read by every later one."""
        for other in self._base.contracts.values():
            if other.topic != contract.topic or other.version == contract.version:
                continue
            old, new = sorted((other, contract), key=lambda c: c.version)
            for violation in backward_violations(new, old):
                detail = f"{new.id} cannot read {old.id}: {violation}"
                yield Step("contract", contract.id, detail, True, "add fields with a default; change none")

    def source(self, source: Source) -> Iterator[Step]:
        data = codec.source_to_data(source)
        published = self._base.content["sources"].get(source.name)
        self._sections["sources"][source.name] = data
        if published is None:
            yield Step("source", source.name, f"new, from topic {source.topic}")
            return
        changed = [field for field in data if data[field] != published[field]]
        fixed = [field for field in changed if field in _FIXED_SOURCE_FIELDS or self._moves_views(field, source)]
        hint = "give the source another name: progress and history are kept under this one"
        for field in changed:
            detail = f"{field} {_brief(published[field])} -> {_brief(data[field])}"
            yield Step("source", source.name, detail, field in fixed, hint if field in fixed else "")

    def _moves_views(self, field: str, source: Source) -> bool:
        """Whether another message key would send a published view's events through other partitions."""
        views = [view for view in self._base.views.values() if view.source.name == source.name]
        return field == "key" and any(view.aligned != (tuple(source.key) == tuple(view.keys)) for view in views)

    def view(self, view: CompiledView, raw: FeatureView) -> Iterator[Step]:
        versions = {version: v for (name, version), v in self._base.views.items() if name == view.name}
        published = versions.get(view.version)
        data = {**codec.view_to_data(raw), "fingerprint": view.fingerprint}
        self._sections["views"].setdefault(view.name, {})[str(view.version)] = data
        if published is None:
            newest = versions[max(versions)] if versions else None
            yield Step("view", view.id, _new_view(view, newest))
        elif published.fingerprint != view.fingerprint:
            hint = f"give {raw.label or view.name} version={max(versions) + 1}, and {view.id} keeps its meaning"
            yield Step("view", view.id, "; ".join(differences(published, view)), True, hint)
        else:
            stored = self._base.content["views"][view.name][str(view.version)]
            if changed := [field for field in data if data[field] != stored[field]]:
                yield Step("view", view.id, f"same values; other {', '.join(changed)}")

    def service(self, service: CompiledService, raw: FeatureService, *, promote: bool) -> Iterator[Step]:
        versions = self._base.services.get(service.name, {})
        same = [version for version, published in versions.items() if published.fingerprint == service.fingerprint]
        version = max(same) if same else max(versions, default=0) + 1
        data = {**codec.service_to_data(raw), "fingerprint": service.fingerprint}
        self._sections["services"].setdefault(service.name, {})[str(version)] = data
        if not same:
            newest = versions[max(versions)] if versions else None
            yield Step("service", service.name, f"new version {version}: {_new_service(service, newest, version)}")
        else:
            stored = self._base.content["services"][service.name][str(version)]
            if changed := [field for field in data if data[field] != stored[field]]:
                yield Step("service", service.name, f"version {version}: other {', '.join(changed)}")
        yield from self._prod(service.name, version, promote=promote)

    def _prod(self, service: str, version: int, *, promote: bool) -> Iterator[Step]:
        current = self._base.aliases.get(service, {}).get(DEFAULT_ALIAS)
        if current is None or (promote and current != version):
            self.point(service, DEFAULT_ALIAS, version)
            yield Step("alias", f"{service}@{DEFAULT_ALIAS}", f"{current or 'none'} -> {version}")

    def point(self, service: str, alias: str, version: int) -> None:
        self._sections["aliases"].setdefault(service, {})[alias] = version


def _copied(value: Any) -> Any:
    """Two levels are enough: what lies deeper is replaced as a whole, never changed."""
    return dict(value) if isinstance(value, dict) else value


def _new_view(view: CompiledView, newest: CompiledView | None) -> str:
    if newest is None:
        return f"new, {len(view.order)} features of {view.entity}"
    return f"new version; since {newest.id}: {'; '.join(differences(newest, view)) or 'nothing'}"


def _new_service(service: CompiledService, newest: CompiledService | None, version: int) -> str:
    count = f"{len(service.feature_names)} features"
    if newest is None:
        return count
    return f"{count}; since version {version - 1}: {'; '.join(service_differences(newest, service))}"


def _field_changes(old: Contract, new: Contract) -> Iterator[str]:
    before, after = _fields(old), _fields(new)
    for name in sorted({*before, *after}):
        if name not in after:
            yield f"field {name} removed"
        elif name not in before:
            yield f"field {name} added"
        elif before[name] != after[name]:
            yield f"field {name} changed"
    if before == after:
        yield "fields in another order"


def _fields(contract: Contract) -> Mapping[str, Any]:
    return {field.name: field for field in contract.fields}


def _brief(value: Any) -> str:
    return "none" if value in ("", []) else str(value)
