#!/usr/bin/env python3
"""The last table of gpu-check.sh: steps of ours and of PyTorch beside their targets, and the attention's speed.

    gpu-table.py STEPS.jsonl [KERNELS.log]

A figure is the median of a run; of several runs, their median. PyTorch's share is ours divided by PyTorch's.
"""

import json
import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path

EAGER, COMPILED, IDLE = 0.60, 0.80, 0.03
TERAFLOPS = {"attention": 300, "attention_backward": 200}
# What of a step is computed again.
AGAIN = {"none": "", "selective": ", selective", "blocks": ", recomputed"}
# Seconds of FLUX.1-dev's step at 512 pixels on one H100.
SECONDS = {("flux-dev", 512, "none"): 0.38, ("flux-dev", 512, "blocks"): 0.48}


def judged(value, limit, text):
    """A figure, its limit, and whether it is kept."""
    return "-" if value is None else f"{text(value)} ({'ok' if value <= limit else 'OVER'} {text(limit)})"


def steps(lines):
    found, errors = defaultdict(lambda: defaultdict(list)), {}
    for line in lines:
        case = (line["shape"], line["pixels"], line["checkpointing"])
        if "error" in line:
            errors[case, line["who"]] = line["error"]
        else:
            found[case][line["who"]].append(line)
        found[case]
    middle = lambda runs, key: statistics.median(v) if (v := [r[key] for r in runs if r.get(key) is not None]) else None
    ratio = lambda a, b: a / b if a and b else None
    number = lambda digits, unit="": lambda value: f"{value:.{digits}f}{unit}"
    rows = [("step", "ours, s", "eager, s", "share", "compiled, s", "share", "idle", "no pass", "peak GB: ours", "eager", "compiled")]
    for case, sides in found.items():
        shape, pixels, checkpointing = case
        time, peak = ({who: middle(runs, key) for who, runs in sides.items()} for key in ("median_s", "peak_bytes"))
        ours = time.get("ours")
        limit = SECONDS.get(case)
        gigabytes = lambda who: f"{peak[who] / 1e9:.2f}" if peak.get(who) else "-"
        others = [peak[who] for who in ("eager", "compiled") if peak.get(who)]
        own = gigabytes("ours")
        if others and peak.get("ours"):
            own += " (ok)" if peak["ours"] < min(others) else " (OVER)"
        percent = number(1, " %")
        idle, without = (middle(sides["ours"], key) for key in ("idle", "without_pass"))
        rows.append((
            f"{shape} {pixels} px{AGAIN[checkpointing]}",
            judged(ours, limit, number(3)) if limit else "-" if ours is None else f"{ours:.3f}",
            f"{time['eager']:.3f}" if time.get("eager") else "-",
            judged(ratio(ours, time.get("eager")), EAGER, number(2)),
            f"{time['compiled']:.3f}" if time.get("compiled") else "-",
            judged(ratio(ours, time.get("compiled")), COMPILED, number(2)),
            judged(None if idle is None else 100 * idle, 100 * IDLE, percent),
            "-" if without is None else percent(100 * without),
            own, gigabytes("eager"), gigabytes("compiled"),
        ))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    for ((shape, pixels, checkpointing), who), error in errors.items():
        print(f"{who} failed at {shape} {pixels} px, checkpointing {checkpointing}: {error[:150]}")


def attention(table):
    """The attention of the table of `operations`: name, shape, time, GB/s, TFLOP/s, share of the roof."""
    row = re.compile(r"^(attention|attention_backward) +([\dx]+) +([\d.]+ ms) +\S+ +([\d.]+) +(\d+ %)", re.MULTILINE)
    rows = [found for found in row.findall(table) if found[1].endswith("x128")]
    for name, shape, time, rate, roof in rows:
        at_least = TERAFLOPS[name]
        verdict = "ok" if float(rate) >= at_least else "UNDER"
        print(f"{name:<20} {shape:<24} {time:>14}  {rate} TFLOP/s ({verdict} {at_least}), {roof} of the roof")
    if not rows:
        print("no row of it was printed")


def main():
    lines = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()] if Path(sys.argv[1]).exists() else []
    print("\nFocusDPO step; targets in brackets: on one H100, at FLUX.1-dev's shape")
    if lines:
        steps(lines)
    else:
        print("no step was timed")
    if any(line["device"] == "cpu" for line in lines):
        print("PyTorch ran on the CPU: a rehearsal, whose shares mean nothing")
    print("idle: share of a step in which no kernel ran (nvidia-smi); no pass: in which no node was at work that uses the network")
    kernels = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    if kernels and kernels.exists():
        print("\nattention; targets: on one H100 in bf16, with 2k tokens and heads of 128")
        attention(kernels.read_text(errors="replace"))


if __name__ == "__main__":
    main()
