"""Measures the scrubber: recall of credentials and personal data, false alarms on real developers' lines, speed.

Run: `python -m benchmarks.scrub [--seed N] [--each N] [--lines N]`. Every number is printed with how it was counted; every
false alarm is shown, so that a reader can judge it. The scrubber's rules were tuned on seed 7; the default is another one.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterable

from agentmesh.blackboard.logic.scrub_rules import ScrubContext, find, scrub
from benchmarks.corpus.developer_text import TRULY_SENSITIVE, made_lines, real_lines
from benchmarks.corpus.formats import NAMED_ONLY, WITH_PREFIX
from benchmarks.corpus.generate import Sample, credentials, left_over, people
from benchmarks.corpus.hostile import hostile_texts

ORDINARY_POST = (
    "FINDING: [acme/shop branch:main] the retry loop in src/billing/retry.py:120 swallows the last error, so a token refresh "
    "that fails at 10.0.0.5:8443 is reported as success. Fixed in 4f5a9c2 by passing timeout=30 and re-raising. To see it run "
    "`pytest -k retry --maxfail=1` with max_tokens=4096. Also @app.route('/v1/items') keeps api_key: str in its signature; see "
    "https://github.com/acme/shop/pull/123 and sha256:0123abcd. Open question: do we keep the password field in config.toml?"
)[:500]


def recall(title: str, samples: Iterable[Sample], target: float) -> None:
    """Print the share of secrets of which nothing is left, and each kind that falls below 100 %."""
    seen, missed = Counter[str](), defaultdict[str, list[Sample]](list)
    for sample in samples:
        seen[sample.kind] += 1
        if left_over(sample, scrub(sample.text).text):
            missed[sample.kind].append(sample)
    lost = sum(map(len, missed.values()))
    print(
        f"\n{title}: {seen.total():,} texts of {len(seen)} kinds, {100 * (1 - lost / seen.total()):.2f} % masked (target {target} %)"
    )
    for kind in sorted(seen):
        if kind in missed or title.startswith("Personal"):
            print(f"  {kind:60} {seen[kind] - len(missed[kind]):5} of {seen[kind]}")
        for sample in missed[kind][:2]:
            print(f"      left: {sample.secret[:50]!r} in {sample.text[:100]!r}")


def false_alarms(rng: random.Random, per_source: int) -> None:
    """Print alarms on lines that the plain test of developer_text.py calls harmless, and how it goes on those it leaves out."""
    judged, left_out, alarms = Counter[str](), Counter[str](), defaultdict[str, list[str]](list)
    lines = [*real_lines(rng, per_source), *(("made look-alikes and issues", line) for line in made_lines(rng, 2_000))]
    for source, line in lines:
        if not source.startswith("made") and TRULY_SENSITIVE.search(line):
            left_out[source] += 1
            continue
        judged[source] += 1
        if findings := find(line):
            shown = ", ".join(f"{f.kind}={line[f.start : f.end][:40]!r}" for f in findings)
            alarms[source].append(f"{shown}  in  {line.strip()[:110]}")
    total = sum(map(len, alarms.values()))
    rate = f"1 in {judged.total() // total:,}" if total else "none"
    print(f"\nFalse alarms: {total} on {judged.total():,} lines, {rate} (target at most 1 in 2,000)")
    for source in judged:
        print(
            f"  {source:36} {judged[source]:6,} lines, {left_out[source]:4} left out as truly sensitive, {len(alarms[source])} alarms"
        )
        for alarm in alarms[source]:
            print(f"      {alarm}")


def speed() -> None:
    """Print the time for an ordinary post and for the worst hostile text."""
    context = ScrubContext(homes=("/home/somebody",), users=("somebody",), hosts=("somebodys-laptop",))
    times = []
    for _ in range(2_000):
        started = time.perf_counter()
        find(ORDINARY_POST, context)
        times.append(time.perf_counter() - started)
    times.sort()
    print(
        f"\nSpeed, {len(ORDINARY_POST)} bytes: p50 {times[1000] * 1e6:.0f} us, p99 {times[1980] * 1e6:.0f} us (target 1,000 us)"
    )
    worst = []
    for name, text in hostile_texts(16 * 1024):
        started = time.perf_counter()
        scrub(text)
        worst.append((time.perf_counter() - started, name))
    worst.sort(reverse=True)
    print(f"Speed, {len(worst)} hostile texts of 16 KiB: worst {worst[0][0] * 1e3:.0f} ms (limit 2,000 ms)")
    for seconds, name in worst[:3]:
        print(f"  {seconds * 1e3:6.0f} ms  {name}")


def comparison(samples: list[Sample]) -> None:
    """Print scrubadub's own report: our detectors, and its default ones, against the known secrets."""
    try:
        import scrubadub.comparison
    except ImportError as missing:
        print(f"\nscrubadub's comparison needs {missing.name}; install it to see its report.")
        return
    from scrubadub.filth import Filth, TaggedEvaluationFilth

    from agentmesh.blackboard.scrub_detectors import build_scrubber

    for title, scrubber in (("ours", build_scrubber(ScrubContext())), ("scrubadub's defaults", scrubadub.Scrubber())):
        reported = []
        for index, sample in enumerate(samples):
            start = sample.text.index(sample.secret)
            place = {"document_name": str(index), "locale": "en_US"}
            reported.append(
                TaggedEvaluationFilth(
                    beg=start,
                    end=start + len(sample.secret),
                    text=sample.secret,
                    comparison_type="unknown",
                    detector_name="tagged",
                    **place,
                )
            )
            reported += [
                Filth(beg=filth.beg, end=filth.end, text=filth.text, detector_name="rules", **place)
                for filth in scrubber.iter_filth(sample.text)
            ]
        print(f"\nscrubadub.comparison, {title}, {len(samples)} texts (any overlap counts):")
        print(scrubadub.comparison.get_filth_classification_report(reported, combine_detectors=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=20261121)
    parser.add_argument("--each", type=int, default=20, help="texts of each kind")
    parser.add_argument("--lines", type=int, default=4_000, help="real lines of each source")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    print(
        f"{len(WITH_PREFIX)} providers' formats with a mark of their own, {len(NAMED_ONLY)} known by name only; seed {options.seed}"
    )
    found = list(credentials(rng, options.each))
    recall("Credentials", found, 99)
    recall("Personal data", people(rng, options.each * 10), 95)
    false_alarms(rng, options.lines)
    speed()
    comparison(rng.sample(found, 500))


if __name__ == "__main__":
    main()
