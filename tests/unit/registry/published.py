"""Definitions to publish, and a registry in a directory."""

from typing import Any

from featurestore import FeatureService, FeatureView
from featurestore.clock import parse_instant
from featurestore.contracts.contract import Contract
from featurestore.definitions.compile import Definitions, check
from tests.unit.definitions.flights import contract, delays, service

NOW = parse_instant("2026-03-01T12:00:00Z")


def definitions(
    *views: FeatureView, services: list[FeatureService] | None = None, contracts: list[Contract] | None = None
) -> Definitions:
    """The given views and services; with neither, the view of the design page under one service."""
    chosen: list[Any] = list(views) or ([delays()] if services is None else [])
    known = {c.id: c for c in contracts or [contract()]}
    return check(chosen, [service(*chosen)] if services is None else services, known)
