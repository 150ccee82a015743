"""`python -m tests.chaos [--rows 1,3] [--seeds 3] [--seed S] [--size 1]`: faults, and a table of what came of them."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.run import Site, Tally, Unsupported
from tests.chaos.site import site
from tests.chaos.table import SCENARIOS, Scenario, play
from tests.parts.kafka import why_unavailable


@dataclass
class Outcome:
    """Of one row."""

    scenario: Scenario
    seeds: list[int] = field(default_factory=list)
    tallies: list[Tally] = field(default_factory=list)
    """Of the runs that found nothing wrong."""

    @property
    def kills(self) -> int:
        return sum(tally.kills for tally in self.tallies)

    @property
    def events(self) -> int:
        return sum(tally.events for tally in self.tallies)

    @property
    def recoveries(self) -> list[float]:
        return [seconds for tally in self.tallies for seconds in tally.recoveries]

    def line(self) -> str:
        spent = self.recoveries
        recovery = f"{statistics.median(spent):.1f} / {max(spent):.1f}" if spent else "–"
        runs = f"{len(self.tallies)}/{len(self.seeds)}"
        return (
            f"| {self.scenario.row} | {self.scenario.fault} | {' '.join(map(str, self.seeds))} | {runs} "
            f"| {self.kills} | {self.events:,} | {recovery} |"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    reason = why_unavailable()
    if reason:
        print(f"no real Kafka: {reason}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    rows = sorted(SCENARIOS) if given.rows is None else given.rows
    seeds = list(range(1, given.seeds + 1)) if given.seed is None else [given.seed]
    directory = Path(tempfile.mkdtemp(prefix="fs-chaos-"))
    outcomes = [Outcome(SCENARIOS[row]) for row in rows]
    with contextlib.suppress(KeyboardInterrupt), site(directory) as shared:
        # Seeds outside: whoever interrupts the session has seen every fault, and gets the table so far.
        for seed in seeds:
            for outcome in outcomes:
                _play(shared, outcome, seed, given.size)
    return _report(outcomes, directory)


def _play(shared: Site, outcome: Outcome, seed: int, size: float) -> None:
    scenario, began = outcome.scenario, time.monotonic()
    outcome.seeds.append(seed)
    name = f"row {scenario.row:>2} seed {seed}: {scenario.fault}"
    try:
        tally, history = asyncio.run(play(shared, scenario, seed, size=size))
    except Exception as error:  # noqa: BLE001 — whatever it is, the other runs go on
        if isinstance(error, Unsupported):
            outcome.seeds.remove(seed)
            print(f"LEFT OUT {name}: {error}", flush=True)
            return
        traceback.print_exception(error)
        repeat = f"{sys.executable} -m tests.chaos --rows {scenario.row} --seed {seed} --size {size}"
        print(f"FAILED {name}\n  repeat it: {repeat}", flush=True)
        return
    outcome.tallies.append(tally)
    shutil.rmtree(history.parent)
    print(
        f"ok     {name}; {tally.kills} kills, {tally.events:,} events, {len(tally.recoveries)} recoveries "
        f"(max {max(tally.recoveries, default=0):.1f} s), {tally.heaviest >> 20} MiB, "
        f"{tally.repeated_letters} letters twice, {time.monotonic() - began:.0f} s",
        flush=True,
    )


def _report(outcomes: Sequence[Outcome], directory: Path) -> int:
    print("\n| row | fault | seeds | runs right | kills | events | recovery s (median / max) |")
    print("|---|---|---|---|---|---|---|")
    for outcome in outcomes:
        print(outcome.line())
    right, runs = sum(len(o.tallies) for o in outcomes), sum(len(o.seeds) for o in outcomes)
    kills, events = sum(o.kills for o in outcomes), sum(o.events for o in outcomes)
    print(
        f"\n{right}/{runs} runs right, {kills} kills, {events:,} events: 0 lost, 0 counted twice in the runs that are"
    )
    if right == runs:
        shutil.rmtree(directory)
        return 0
    print(f"{runs - right} runs FAILED; their histories and logs are in {directory}")
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--rows", type=_rows, help="as 1,3,8; all if not given")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds each row is run with")
    parser.add_argument("--seed", type=int, help="run with this one only")
    parser.add_argument("--size", type=float, default=1.0, help="factor of the loads, and of how often faults come")
    return parser


def _rows(text: str) -> list[int]:
    rows = [int(word) for word in text.split(",")]
    unknown = sorted(set(rows) - set(SCENARIOS))
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no row {unknown[0]}; there are {sorted(SCENARIOS)}")
    return rows


if __name__ == "__main__":
    sys.exit(main())
