"""`python -m tests.planted [NAME…]`: plants each bug in a copy, and says in a table what caught it."""

from __future__ import annotations

import argparse
import sys

from tests.planted.planting import SEEDS, SIMULATION, Bug, Outcome, bugs, hunt


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.planted", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of patches in tests/planted; all where none is given")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="schedules that the simulation may try")
    given = parser.parse_args()
    chosen = [bug for bug in bugs() if not given.names or bug.name in given.names]
    if unknown := set(given.names) - {bug.name for bug in chosen}:
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    sys.stdout.write("| bug | what is broken | caught by | schedules | seconds |\n|---|---|---|---|---|\n")
    survivors = [bug.name for bug in chosen if not _report(bug, given.seeds)]
    sys.stdout.write(f"\n{len(chosen) - len(survivors)} of {len(chosen)} caught\n")
    return 1 if survivors else 0


def _report(bug: Bug, seeds: int) -> bool:
    try:
        outcome = hunt(bug, seeds=seeds)
    except ValueError as error:
        outcome = Outcome(False, None, 0.0, str(error))
    caught_by = ("simulation" if bug.catch == SIMULATION else f"`{bug.catch}`") if outcome.caught else "**nothing**"
    tried = outcome.seeds if outcome.seeds is not None else ""
    sys.stdout.write(f"| {bug.name} | {bug.what} | {caught_by} | {tried} | {outcome.seconds:.0f} |\n")
    sys.stdout.flush()
    if not outcome.caught:
        sys.stderr.write(outcome.output[-2000:] + "\n")
    return outcome.caught


if __name__ == "__main__":
    sys.exit(main())
