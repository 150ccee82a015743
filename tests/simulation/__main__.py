"""`python -m tests.simulation --seeds N [--first K]`, or `--seed S [--trace]` for one of them."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections import Counter

from tests.simulation.running import simulate


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many schedules")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="this one only")
    parser.add_argument("--trace", action="store_true", help="say what happens")
    parser.add_argument("--until-failure", action="store_true", help="stop at the first seed that fails")
    parser.add_argument("--json", action="store_true", help="one object on stdout: counts, failures, traces")
    given = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":
        # Sets of text have an order of their own in every process, unless they are told not to.
        os.execve(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]],  # noqa: S606
                  {**os.environ, "PYTHONHASHSEED": "0"})  # fmt: skip
    if not given.trace:
        logging.disable(logging.CRITICAL)
    seeds = [given.seed] if given.seed is not None else range(given.first, given.first + given.seeds)
    counts: Counter[str] = Counter()
    failures: dict[int, str] = {}
    traces: dict[int, str] = {}
    for seed in seeds:
        verdict = simulate(seed, say=given.trace)
        counts.update(verdict.counts)
        traces[seed] = verdict.trace
        if verdict.failure:
            failures[seed] = verdict.failure
            repeat = f"python -m tests.simulation --seed {seed} --trace"
            sys.stderr.write(f"seed {seed}: {verdict.failure}\n  repeat: {repeat}\n")
            if given.until_failure:
                break
    if given.json:
        sys.stdout.write(json.dumps({"counts": counts, "failures": failures, "traces": traces}) + "\n")
    else:
        sys.stdout.write(f"{len(traces)} schedules, {len(failures)} failed; {dict(sorted(counts.items()))}\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
