"""The tables of the demo, and its verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from featurestore.cli.demo.ledger import Standing
from featurestore.cli.demo.proof import ESTIMATE_SLACK, TOLERANCE, Answer, Tally
from featurestore.cli.demo.talk import Talk
from featurestore.clock import format_instant
from featurestore.errors import FeatureStoreError
from featurestore.offline.manifest import Manifest
from featurestore.registry.catalog import Catalog

MIN_CELLS = 1_000
_SHOWN_WRONG = 20


def show_views(talk: Talk, catalog: Catalog) -> None:
    rows = [
        (view.name, ", ".join(view.keys), len(view.order), _way(view.aligned), ", ".join(view.order))
        for view in catalog.views.values()
    ]
    talk.table(("view", "entity key", ">features", "events come", "they are"), rows)


def _way(aligned: bool) -> str:
    return "by its own key" if aligned else "shuffled"


def show_export(talk: Talk, manifest: Manifest, out: Path) -> None:
    size = sum((out / file.name).stat().st_size for file in manifest.files)
    tables = ", ".join(f"{table} at Delta version {version}" for table, version in manifest.lake_versions.items())
    talk.good(
        f"{manifest.rows:,} rows × {len(manifest.columns)} features, {size / 1e6:.1f} MB of Parquet ({manifest.kind}, "
        f"{manifest.service} version {manifest.version}, from {tables})"
    )
    talk.say(
        f"manifest: registry revision {manifest.registry_revision}, spine {manifest.spine_sha256[:12]}…, "
        f"{', '.join(f'{file.name} {file.sha256[:12]}…' for file in manifest.files)}, "
        f"{', '.join(f'{view} {mark[:8]}' for view, mark in manifest.views.items())}",
        style="dim",
    )


def show_accounts(talk: Talk, standing: Standing) -> None:
    rows = [
        (
            account.view,
            account.partition,
            account.consumed,
            account.applied,
            account.duplicate,
            account.late,
            account.dead_lettered,
            account.filtered,
            "✓" if account.balanced else "✗ does not add up",
        )
        for account in standing.accounts()
    ]
    columns = (
        "view",
        ">partition",
        ">consumed",
        ">applied",
        ">duplicate",
        ">late",
        ">dead-lettered",
        ">filtered",
        "adds up",
    )
    talk.table(columns, rows)
    copies = sum(account.duplicate for account in standing.accounts())
    talk.say(
        f"duplicate: shuffled again after the kill, noticed and dropped ({copies:,}). late: older than any window of "
        "its entity when it came, since in a year that is replayed in a minute the topic's partitions are days apart; "
        "it changes no window that can still be asked for, and counts in the lake. filtered: no tail number.",
        style="dim",
    )


def show_dead_letters(talk: Talk, letters: Sequence[Mapping[str, Any]]) -> None:
    reasons = Counter(letter["headers"]["fs.reason"] for letter in letters)
    said = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
    talk.good(f"dead letters, kept whole in flights.departures.dlq: {said}")
    rows = [
        (letter["headers"]["fs.reason"], letter["headers"]["fs.error"], _short(letter["value"])) for letter in letters
    ]
    talk.table(("reason", "says", "the record"), rows[:12])


def _short(value: str | None, width: int = 48) -> str | None:
    return value if value is None or len(value) <= width else value[: width - 1] + "…"


def show_answers(talk: Talk, answers: Sequence[Answer]) -> None:
    """A column for each answer; the rows are features."""
    if not answers:
        return
    heads = [" ".join(answer.question.entity.values()) for answer in answers]
    rows = [(name, *(_brief(answer.values[name]) for answer in answers)) for name in answers[0].values]
    at = format_instant(answers[0].question.at)
    talk.table(("feature", *(f">{head}" for head in heads)), rows, title=f"flight_delay@prod at {at}")


def _brief(value: Any) -> Any:
    if isinstance(value, list):
        return ", ".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value) or "none"
    return str(value).lower() if isinstance(value, bool) else value


def verdict(talk: Talk, asked: Tally, sampled: Tally) -> list[str]:
    """What is proved. Raises FeatureStoreError, after showing them, where cells differ or were too few."""
    for text in (*asked.wrong, *sampled.wrong)[:_SHOWN_WRONG]:
        talk.bad(text)
    wrong = len(asked.wrong) + len(sampled.wrong)
    if wrong:
        raise FeatureStoreError(f"{wrong} of {asked.cells + sampled.cells} cells differ; the first are shown above")
    if asked.cells < MIN_CELLS:
        raise FeatureStoreError(f"only {asked.cells} cells were compared; {MIN_CELLS} are wanted")
    talk.good(f"{asked.cells:,} cells of the API's answers: online = export = brute force")
    talk.good(f"{sampled.cells:,} random cells of the training set: export = brute force")
    both = (asked, sampled)
    exact, close, near = (sum(getattr(t, name) for t in both) for name in ("exact", "close", "estimates"))
    talk.say(
        f"{exact:,} are equal to the bit; {close:,} float sums within {TOLERANCE:g} (the furthest "
        f"{max(t.furthest for t in both):.1e}); {near:,} distinct counts the same online and exported, and at most "
        f"{max(t.widest for t in both)} from the true one ({ESTIMATE_SLACK} or 5 % allowed).",
        style="dim",
    )
    return [
        f"online = export = brute force in all {asked.cells:,} cells that were compared",
        f"training set = brute force in all {sampled.cells:,} cells that were sampled",
    ]


def show_proofs(talk: Talk, proofs: Sequence[str]) -> None:
    """What it all came to, and how long it took."""
    with talk.step("What was proved", f"In {talk.elapsed:.0f} s, of which"):
        parts = [f"{title.partition(':')[0].lower()} {seconds:.1f}" for title, seconds in talk.seconds.items()]
        talk.say(", ".join(parts) + " s", style="dim")
        for proof in proofs:
            talk.good(f"PROVED: {proof}")
