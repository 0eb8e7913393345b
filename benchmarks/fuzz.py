"""A million inputs against everything that parses bytes from a peer: only our own errors, and no growth of memory.

    python benchmarks/fuzz.py [--runs 1000000] [--seed 1]

Coverage-guided (atheris, which is libFuzzer). The first byte of an input chooses the parser; valid samples of each are the
starting corpus, so that mutations reach behind the first check. Exits with 1 and the offending input on any other exception.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import atheris

with atheris.instrument_imports(include=["agentmesh"]):
    from agentmesh.core.errors import AgentMeshError
    from benchmarks.fuzz_targets import TARGETS, samples

MAX_GROWTH_BYTES = 64 * 1024 * 1024
WARM_UP = 50_000  # libFuzzer's own corpus and Python's caches settle first


def resident_bytes() -> int:
    """This process's memory now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


class Run:
    """Counts inputs and what came of them."""

    def __init__(self, runs: int) -> None:
        self.runs = runs
        self.count = 0
        self.per_target = dict.fromkeys((name for name, _ in TARGETS), 0)
        self.accepted = dict.fromkeys((name for name, _ in TARGETS), 0)
        self.at_warm = 0
        self.began = time.monotonic()

    def one(self, data: bytes) -> None:
        """Give one input to the parser that its first byte names."""
        self.count += 1
        if self.count == min(WARM_UP, self.runs // 2):
            self.at_warm = resident_bytes()
        if data:
            name, parse = TARGETS[data[0] % len(TARGETS)]
            self.per_target[name] += 1
            try:
                parse(data[1:])
                self.accepted[name] += 1
            except AgentMeshError:
                pass
        if self.count >= self.runs:
            self.finish()

    def finish(self) -> None:
        """Print the table and leave: libFuzzer never returns."""
        growth = resident_bytes() - self.at_warm
        print(
            f"\n{self.count:,} inputs in {time.monotonic() - self.began:.0f} s; every refusal was one of our own errors"
        )
        print(f"{'parser':<16}{'inputs':>12}{'accepted':>12}")
        for name, count in self.per_target.items():
            print(f"{name:<16}{count:>12,}{self.accepted[name]:>12,}")
        print(f"memory growth after warm-up: {growth / 2**20:.1f} MiB (limit {MAX_GROWTH_BYTES // 2**20} MiB)")
        sys.stdout.flush()
        os._exit(0 if growth <= MAX_GROWTH_BYTES and all(self.per_target.values()) else 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="agentmesh-fuzz-") as corpus:
        for number, sample in enumerate(samples()):
            (Path(corpus) / f"{number:04}").write_bytes(sample)
        run = Run(arguments.runs)
        options = [
            f"-seed={arguments.seed}",
            "-max_len=8192",
            "-print_final_stats=0",
            "-verbosity=0",
            f"-artifact_prefix={tempfile.gettempdir()}/",
        ]
        atheris.Setup([sys.argv[0], *options, corpus], run.one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
