"""A revision, ready to use: every published view and service, compiled, and the names they go by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from featurestore.contracts.contract import Contract, parse_contract
from featurestore.definitions import codec
from featurestore.definitions.compile import compile_view
from featurestore.definitions.compiled import CompiledService, CompiledSource, CompiledView
from featurestore.definitions.faults import Faults
from featurestore.definitions.model import FeatureView
from featurestore.definitions.services import ViewKey, compile_service
from featurestore.definitions.sources import compile_source
from featurestore.errors import ContractError, Corrupt, Fault, NotFound
from featurestore.registry.revision import EMPTY_CONTENT, Content, Revision

DEFAULT_ALIAS = "prod"


@dataclass(frozen=True, slots=True, eq=False)
class Catalog:
    """An immutable snapshot of one revision; `revision` 0 is the registry before its first."""

    revision: int
    digest: str
    created_at: int
    views: Mapping[ViewKey, CompiledView]
    services: Mapping[str, Mapping[int, CompiledService]]
    aliases: Mapping[str, Mapping[str, int]]
    sources: Mapping[str, CompiledSource]
    """As last applied: what producers and intake go by. A view keeps the source it was published with."""
    contracts: Mapping[str, Contract]
    splits: Mapping[str, Any] = field(default_factory=dict)
    content: Content = field(default_factory=lambda: EMPTY_CONTENT)
    """The revision as data."""

    def resolve(self, name: str) -> tuple[CompiledService, int]:
        """`service`, `service@alias` or `service@3` → the service and its version; a bare name means `@prod`.

        Raises NotFound with near matches.
        """
        service, _, label = name.partition("@")
        versions = self.services.get(service)
        if versions is None:
            raise NotFound("service", service, self.services, hint=_there_are("services", self.services))
        version = self._version(service, label or DEFAULT_ALIAS)
        if version not in versions:
            known = [f"{service}@{v}" for v in versions]
            raise NotFound("version", name, known, hint=_there_are("versions", known))
        return versions[version], version

    def _version(self, service: str, label: str) -> int:
        if label.isascii() and label.isdigit() and len(label) < 10:
            return int(label)
        aliases = self.aliases.get(service, {})
        if label not in aliases:
            known = [f"{service}@{alias}" for alias in aliases]
            raise NotFound("alias", f"{service}@{label}", known, hint=_there_are("aliases", known))
        return aliases[label]

    def view(self, name: str) -> CompiledView:
        """`airport_delay` (its newest version) or `airport_delay@2`. Raises NotFound with near matches."""
        wanted, _, label = name.partition("@")
        versions = {str(version): view for (view_name, version), view in self.views.items() if view_name == wanted}
        if not versions:
            names = {view_name for view_name, _ in self.views}
            raise NotFound("view", wanted, names, hint=_there_are("views", names))
        label = label or max(versions, key=int)
        if label not in versions:
            known = [f"{wanted}@{version}" for version in versions]
            raise NotFound("version", name, known, hint=_there_are("versions", known))
        return versions[label]


EMPTY = Catalog(0, "", 0, {}, {}, {}, {}, {})


def _there_are(kind: str, known: Any) -> str:
    return f"{kind}: {', '.join(sorted(known))}" if known else f"there are no {kind} yet; run: featurestore apply"


def catalog_of(revision: Revision) -> Catalog:
    """Compile a revision. Raises Corrupt where it does not hold together or gives other fingerprints than it states."""
    try:
        return _Reader(revision).read()
    except (ValueError, TypeError, KeyError, ContractError) as error:
        raise Corrupt(f"registry revision {revision.number} cannot be used: {error}", hint=_OTHER_VERSION) from error


_OTHER_VERSION = "it may have been written by another version of featurestore; use that one, or apply again"


class _Reader:
    def __init__(self, revision: Revision) -> None:
        self._revision = revision
        self._raw_views: dict[ViewKey, FeatureView] = {}
        self._views: dict[ViewKey, CompiledView] = {}

    def read(self) -> Catalog:
        content = self._revision.content
        contracts = {
            contract_id: parse_contract(contract_id, text) for contract_id, text in content["contracts"].items()
        }
        for name, version, data in _versions(content["views"]):
            self._read_view(name, version, data, contracts)
        services: dict[str, dict[int, CompiledService]] = {}
        for name, version, data in _versions(content["services"]):
            services.setdefault(name, {})[version] = self._read_service(name, version, data)
        sources = {name: _read_source(name, data, contracts) for name, data in content["sources"].items()}
        return Catalog(
            revision=self._revision.number,
            digest=self._revision.digest,
            created_at=self._revision.created_at,
            views=self._views,
            services=services,
            aliases=_read_aliases(content["aliases"], services),
            sources=sources,
            contracts=contracts,
            splits=content["splits"],
            content=content,
        )

    def _read_view(self, name: str, version: int, data: Any, contracts: Mapping[str, Contract]) -> None:
        stated, plain = _fingerprinted(data)
        raw = codec.view_from_data(plain)
        view, faults = compile_view(raw, contracts.get(raw.source.contract))
        if view is None:
            raise ValueError(_text(faults))
        _same(f"view {name}@{version}", (view.name, view.version, view.fingerprint), (name, version, stated))
        self._raw_views[name, version], self._views[name, version] = raw, view

    def _read_service(self, name: str, version: int, data: Any) -> CompiledService:
        stated, plain = _fingerprinted(data)
        service, faults = compile_service(codec.service_from_data(plain, self._raw_views), self._views)
        if service is None:
            raise ValueError(_text(faults))
        _same(f"service {name}@{version}", (service.name, service.fingerprint), (name, stated))
        return service


def _versions(section: Mapping[str, Any]) -> Iterator[tuple[str, int, Any]]:
    for name, versions in section.items():
        for version in sorted(versions, key=int):
            yield name, int(version), versions[version]


def _fingerprinted(data: Any) -> tuple[str, dict[str, Any]]:
    plain = dict(data)
    return plain.pop("fingerprint"), plain


def _same(what: str, found: tuple[Any, ...], stated: tuple[Any, ...]) -> None:
    if found != stated:
        raise ValueError(f"{what} is {found} by its content and {stated} by its label")


def _read_source(name: str, data: Any, contracts: Mapping[str, Contract]) -> CompiledSource:
    raw, faults = codec.source_from_data(data), Faults()
    source = compile_source(raw, contracts[raw.contract], faults)
    if source is None or raw.name != name:
        raise ValueError(_text(faults.found) or f"source {name!r} calls itself {raw.name!r}")
    return source


def _read_aliases(data: Mapping[str, Any], services: Mapping[str, Mapping[int, Any]]) -> dict[str, dict[str, int]]:
    for name, aliases in data.items():
        for alias, version in aliases.items():
            if type(version) is not int or version not in services.get(name, {}):
                raise ValueError(f"alias {name}@{alias} leads to {version!r}, which is no version")
    return {name: dict(aliases) for name, aliases in data.items()}


def _text(faults: list[Fault]) -> str:
    return "; ".join(str(fault) for fault in faults)
