#!/usr/bin/env python3
"""Draw the curves of a run: `scripts/curves.py runs/focusdpo/metrics.jsonl OUT_FOLDER` writes SVG files. Needs Python only.

loss, margin and accuracy; winner and loser errors against the reference; coverage against sigma.
"""
import json
import sys
from pathlib import Path

WIDTH, HEIGHT, LEFT, BOTTOM = 640, 260, 60, 34
COLOURS = ["#2563eb", "#dc2626", "#16a34a", "#9333ea"]


def mean(value):
    return sum(value) / len(value) if isinstance(value, list) else value


def smooth(values, window=10):
    return [sum(values[max(0, i - window + 1) : i + 1]) / len(values[max(0, i - window + 1) : i + 1]) for i in range(len(values))]


def figure(title, x_label, series, points=False):
    """`series`: name -> list of (x, y)."""
    xs = [x for line in series.values() for x, _ in line]
    ys = [y for line in series.values() for _, y in line]
    x0, x1, y0, y1 = min(xs), max(xs), min(ys + [0.0]), max(ys)
    sx = lambda x: LEFT + (x - x0) / ((x1 - x0) or 1) * (WIDTH - LEFT - 12)
    sy = lambda y: HEIGHT - BOTTOM - (y - y0) / ((y1 - y0) or 1) * (HEIGHT - BOTTOM - 34)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="11">',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/><text x="{LEFT}" y="16" font-size="13">{title}</text>']
    for k in range(5):
        y = y0 + (y1 - y0) * k / 4
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - 12}" y1="{sy(y):.1f}" y2="{sy(y):.1f}" stroke="#e5e7eb"/>'
                   f'<text x="{LEFT - 6}" y="{sy(y) + 4:.1f}" text-anchor="end">{y:.3g}</text>')
        x = x0 + (x1 - x0) * k / 4
        out.append(f'<text x="{sx(x):.1f}" y="{HEIGHT - 18}" text-anchor="middle">{x:.3g}</text>')
    out.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 4}" text-anchor="middle">{x_label}</text>')
    for i, (name, line) in enumerate(series.items()):
        colour = COLOURS[i % len(COLOURS)]
        if points:
            out += [f'<circle cx="{sx(x):.1f}" cy="{sy(y):.1f}" r="1.8" fill="{colour}" fill-opacity="0.5"/>' for x, y in line]
        else:
            path = " ".join(f"{sx(x):.1f},{sy(y):.1f}" for x, y in line)
            out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.4"/>')
        out.append(f'<text x="{WIDTH - 16}" y="{16 + 13 * i}" text-anchor="end" fill="{colour}">{name}</text>')
    return "\n".join(out + ["</svg>"])


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    rows = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    folder = Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    steps = [r["step"] for r in rows]

    def curves(title, names, name):
        there = {label: key for label, key in names.items() if key in rows[0]}
        lines = {label: list(zip(steps, smooth([mean(r[key]) for r in rows]))) for label, key in there.items()}
        if lines:
            (folder / f"{name}.svg").write_text(figure(f"{title} (mean of 10 steps)", "step", lines))

    curves("loss", {"loss": "loss"}, "loss")
    curves("margin", {"logit": "logit"}, "margin")
    curves("implicit accuracy", {"accuracy": "implicit_acc"}, "accuracy")
    curves("error of the policy less that of the reference", {"winner": "w_diff", "loser": "l_diff"}, "errors")
    if "coverage" in rows[0] and "sigma" in rows[0]:
        dots = [(s, c) for r in rows for s, c in zip(r["sigma"], r["coverage"])]
        (folder / "coverage.svg").write_text(figure("coverage against sigma", "sigma", {"samples": dots}, points=True))


if __name__ == "__main__":
    main()
