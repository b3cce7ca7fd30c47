#!/usr/bin/env python3
"""The arithmetic of the study (scripts/study.sh). Needs Python only.

    scripts/study.py choose STUDY METHOD     prints the settings of the variant whose pictures are nearest to their references
    scripts/study.py better SCORES SCORES    prints the name of the method whose best variant is the better one by the same measure
    scripts/study.py report STUDY OUT        writes tables.md, results.json and the figures
"""
import functools
import json
import math
import random
import sys
from pathlib import Path

from study_figures import bars, dots, intervals

METHODS = {
    "sft": "SFT", "diffusion_dpo": "Diffusion-DPO", "patchdpo": "PatchDPO", "focusdpo": "FocusDPO",
}
ABLATIONS = {
    "prior_only": "prior alone", "detail_only": "detail alone, everywhere", "structure_only": "structure alone (without detail)",
    "detail_in_prior": "detail within the prior (without structure)", "unconstrained": "detail not kept within the prior",
}
PUBLISHED = {"diffusion_dpo_published": "Diffusion-DPO, published loss", "focusdpo_published": "FocusDPO, published loss"}
# Looked at on the validation subjects only.
EXPLORED = {"focusdpo_mask_mean": "FocusDPO, errors as means over the mask"}
NAMES = {"winners": "the winners", "base": "base", **METHODS, **ABLATIONS, **PUBLISHED}
# What is measured of each subject: name in the scores, title, and whether more is better.
SCORES = {
    "identity": ("identity, encoder 1", True), "identity_fine": ("identity, encoder 2", True), "fit": ("fit", True),
    "shape": ("shape fits best", True), "identity_first": ("first of 20", True), "layout": ("layout", True), "ground": ("ground named", True), "background": ("background off by", False),
}
# Comparisons that the paper's order is about, better one first.
PAIRS = [
    ("focusdpo", "base"), ("patchdpo", "base"), ("diffusion_dpo", "base"), ("sft", "base"),
    ("focusdpo", "patchdpo"), ("focusdpo", "diffusion_dpo"), ("focusdpo", "sft"), ("patchdpo", "diffusion_dpo"), ("diffusion_dpo", "sft"),
]
DRAWS = 10_000
# Pictures with one subject and with two.
BOTH = (1, 2)


def deviation(values):
    """The standard deviation of a sample; 0 of a single value."""
    middle = mean(values)
    return math.sqrt(math.fsum((v - middle) ** 2 for v in values) / max(len(values) - 1, 1))


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def mean(values):
    values = list(values)
    return math.fsum(values) / len(values)


def settings(study, method):
    """Every setting of a method that was tried, with the mean cosine of the pictures with their references on the validation set, and the
    mean fit."""
    tried = []
    for sweep in sorted((study / "select").glob(f"{method}-*/sweep.json")):
        number = sweep.parent.name[len(method) + 1:]
        if not (sweep.parent / "done").exists():
            continue
        for v in json.loads(sweep.read_text())["variants"]:
            if v["diverged"] is None:
                rows = lines(study / "scores/validation" / method / f"{number}-{v['folder']}.jsonl")
                tried.append((v["settings"], mean(row["identity"] for row in rows), mean(row["fit"] for row in rows)))
    return tried


def choose(study, method):
    """Of all variants, the one whose pictures have the largest mean cosine with their references."""
    tried = settings(study, method)
    for values, value, fit in tried:
        print(f"{values}: {value:.4f}, fit {fit:.4f}", file=sys.stderr)
    if not tried:
        sys.exit(f"{study}: no sweep of {method} has ended")
    best = max(tried, key=lambda t: t[1])[0]
    print(" ".join(f"--set {name}={setting}" for name, setting in best.items()))


def better(*folders):
    """Of folders of scores, one file for each variant, the name of that with the best variant."""
    best = lambda folder: max(mean(row["identity"] for row in lines(path)) for path in folder.glob("*.jsonl"))
    print(max(folders, key=best).name)


class Scores:
    """What one method has drawn: for each seed, each picture's mean over its subjects, by name of the score. What has no seed, such as the
    base, stands under None."""

    def __init__(self, paths):
        self.seeds = {seed: by_picture(lines(path)) for seed, path in paths.items()}

    def of(self, seed):
        return self.seeds[None if None in self.seeds else seed]

    def means(self, name):
        """Of each seed, the mean over its subjects."""
        of = lambda seed: [(s[name], s["subjects"]) for s in seed.values()]
        return [math.fsum(v * n for v, n in of(seed)) / sum(n for _, n in of(seed)) for seed in self.seeds.values()]


def by_picture(rows):
    pictures = {}
    for row in rows:
        pictures.setdefault(row["id"], []).append(row)
    return {i: {name: mean(r[name] for r in rows) for name in [*SCORES, "subjects"]} for i, rows in pictures.items()}


def differences(a, b, name, subjects):
    """a - b for each seed that both have: [[difference of each picture]], and the subjects of each picture."""
    seeds = sorted(set(a.seeds) - {None}) if None in b.seeds else sorted(set(a.seeds) & set(b.seeds))
    first = a.of(seeds[0])
    ids = [i for i in first if first[i]["subjects"] in subjects]
    return [[a.of(s)[i][name] - b.of(s)[i][name] for i in ids] for s in seeds], [first[i]["subjects"] for i in ids]


def difference(a, b, name, subjects):
    """Mean of a - b over subjects and seeds, and where 95 % of the means of draws with replacement lie: of pictures, and of seeds, both of
    the same for a and b."""
    of_seeds, weights = differences(a, b, name, subjects)
    of_pictures, count = list(zip(*of_seeds)), len(of_seeds)
    rng = random.Random(0)
    means = []
    for _ in range(DRAWS):
        often = [0] * count
        for seed in rng.choices(range(count), k=count):
            often[seed] += 1
        total, over = 0.0, 0.0
        for k in rng.choices(range(len(weights)), k=len(weights)):
            total += weights[k] * sum(n * d for n, d in zip(often, of_pictures[k]))
            over += weights[k] * count
        means.append(total / over)
    means.sort()
    value = math.fsum(w * math.fsum(row) for w, row in zip(weights, of_pictures)) / (sum(weights) * count)
    return value, means[int(0.025 * DRAWS)], means[int(0.975 * DRAWS) - 1]


def by_seed(a, b, name):
    """Mean of a - b over subjects, for each seed."""
    of_seeds, weights = differences(a, b, name, BOTH)
    return [math.fsum(w * d for w, d in zip(weights, row)) / sum(weights) for row in of_seeds]


def table(rows):
    head, *body = rows
    return "\n".join(["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body]]) + "\n"


def with_interval(d):
    value, low, high = d
    sign = "" if low <= 0 <= high else "**"
    return f"{sign}{value:+.4f}{sign} [{low:+.4f}, {high:+.4f}]"


def finished(study, name):
    """The folders of a method's runs that have ended, by seed."""
    return sorted(done.parent for done in (study / "runs" / name).glob("seed-*/done"))


def errors(folder):
    """What a run has changed of the errors of winner and loser on the held-out pairs, each against the frozen network: of the whole
    picture, and the share of pairs with a positive margin. `sigma` keeps the pairs of each quarter of the times apart."""
    measured = {}
    for row in lines(folder / "metrics.jsonl"):
        if "held_out.id" not in row:
            continue
        whole = "plain_" if "held_out.plain_w_diff" in row else ""
        for k, i in enumerate(row["held_out.id"]):
            of = lambda name: row[f"held_out.{name}"][k]
            measured[i] = {"w": of(f"{whole}w_diff"), "l": of(f"{whole}l_diff"), "sigma": of("sigma")}
    if len(measured) < 152:
        sys.exit(f"{folder}: {len(measured)} of 152 held-out pairs were measured: a run needs as many steps as they have batches, 19")
    return list(measured.values())


def by_level(rows, levels=8):
    """Rows (sigma, value) as means of equal parts of the times: [(middle, mean)]."""
    parts = [[v for s, v in rows if min(int(s * levels), levels - 1) == k] for k in range(levels)]
    return [((k + 0.5) / levels, mean(p)) for k, p in enumerate(parts) if p]


def masks(runs):
    """What FocusDPO's masks did in training: recall of the subject, share of samples with detail blended in, shares of the picture."""
    rows = []
    for run in runs:
        for row in lines(run / "metrics.jsonl"):
            for k, sigma in enumerate(row["sigma"]):
                of = lambda name: row[name][k]
                rows.append({
                    "step": row["step"], "sigma": sigma, "recall": 1 - of("coverage"), "fused": of("fused"), "mask": of("mask_mean"),
                    "prior": of("prior_mean"), "beta": of("beta_effective"), "subjects": 1 if row["references"] == 1 else 2,
                })
    return rows


def report(study, out):
    out.mkdir(parents=True, exist_ok=True)
    text, results = [], {}
    of = lambda name: {int(p.stem[5:]): p for p in sorted((study / "scores/test" / name).glob("seed-*.jsonl"))}
    scores = {name: Scores({None: study / f"scores/test/{name}.jsonl"}) for name in ("winners", "base")}
    scores |= {name: Scores(of(name)) for name in NAMES if of(name)}

    # Tables and figures share them.
    between = functools.cache(lambda a, b, score, subjects: difference(scores[a], scores[b], score, subjects))

    rows = [["", "seeds", *(title for title, _ in SCORES.values())]]
    for name, s in scores.items():
        cells = []
        for score in SCORES:
            values = s.means(score)
            spread = f" ± {deviation(values):.4f}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.4f}{spread}")
            results.setdefault(name, {})[score] = values
        rows.append([NAMES[name], str(len(s.seeds)) if name not in ("winners", "base") else "", *cells])
    text += ["## Means over held-out subjects, mean over seeds ± standard deviation between seeds\n", table(rows)]

    for title, ids in (("all subjects", BOTH), ("pictures with one subject", (1,)), ("pictures with two", (2,))):
        rows = [["difference, " + title, *(SCORES[s][0] for s in ("identity", "identity_fine", "fit", "layout"))]]
        for a, b in PAIRS:
            if a in scores and b in scores:
                cells = [with_interval(between(a, b, s, ids)) for s in ("identity", "identity_fine", "fit", "layout")]
                rows.append([f"{NAMES[a]} − {NAMES[b]}", *cells])
        text += [f"## Paired differences, {title}\n", table(rows)]

    rows = [["difference by seed", "identity, encoder 1", "identity, encoder 2", "fit"]]
    for a, b in [("focusdpo", "base"), ("diffusion_dpo", "base"), ("focusdpo", "diffusion_dpo")]:
        if a in scores and b in scores:
            cells = [", ".join(f"{d:+.4f}" for d in by_seed(scores[a], scores[b], s)) for s in ("identity", "identity_fine", "fit")]
            rows.append([f"{NAMES[a]} − {NAMES[b]}", *cells])
    text += ["## Differences by seed\n", table(rows)]

    rows = [["difference", *(SCORES[s][0] for s in ("identity", "identity_fine", "fit", "layout"))]]
    full = (study / "full").read_text().strip()
    others = [(a, full) for a in ABLATIONS] + [("diffusion_dpo_published", "base"), ("focusdpo_published", "base"),
                                                     ("focusdpo_published", "diffusion_dpo_published")]
    for a, b in others:
        if a in scores:
            cells = [with_interval(between(a, b, s, BOTH)) for s in ("identity", "identity_fine", "fit", "layout")]
            rows.append([f"{NAMES[a]} − {NAMES[b]}", *cells])
    text += ["## Ablations and the published loss\n", table(rows)]

    rows = [["errors on held-out pairs, times 10⁻³", "winner", "loser", "margin", "accuracy"]]
    changes = {}
    for name in NAMES:
        runs = finished(study, name)
        if not runs:
            continue
        seeds = [errors(run) for run in runs]
        of_seed = [(1e3 * mean(r["w"] for r in rs), 1e3 * mean(r["l"] for r in rs),
                    mean((r["l"] > r["w"]) + 0.5 * (r["l"] == r["w"]) for r in rs)) for rs in seeds]
        winners, losers, accuracies = zip(*of_seed)
        margins = [l - w for w, l in zip(winners, losers)]
        spread = [f"{mean(values):+.2f} ± {deviation(values):.2f}" for values in (winners, losers, margins)]
        rows.append([NAMES[name], *spread, f"{mean(accuracies):.2f}"])
        changes[NAMES[name]] = [mean(winners), mean(losers)]
        results.setdefault(name, {})["errors"] = of_seed
    text += ["## Errors against the frozen network, whole pictures\n", table(rows)]

    chosen = [["", "chosen on validation subjects"]]
    for name in [*METHODS, *PUBLISHED]:
        if (study / "chosen" / name).exists():
            chosen.append([NAMES[name], "`" + (study / "chosen" / name).read_text().strip() + "`"])
    text += ["## Chosen settings\n", table(chosen)]
    rows = [["on the validation subjects", "settings", "identity, encoder 1", "fit"]]
    if (study / "scores/validation/base.jsonl").exists():
        base = lines(study / "scores/validation/base.jsonl")
        rows.append(["base", "", f"{mean(r['identity'] for r in base):.4f}", f"{mean(r['fit'] for r in base):.4f}"])
    for name in [*METHODS, *PUBLISHED, *EXPLORED]:
        tried = settings(study, name)
        results.setdefault(name, {})["validation"] = tried
        best = max((value for _, value, _ in tried), default=None)
        for values, value, fit in tried:
            mark = "**" if value == best else ""
            what = ", ".join(f"{setting.split('.')[1]} {v}" for setting, v in sorted(values.items()))
            rows.append([(NAMES | EXPLORED)[name], what, f"{mark}{value:.4f}{mark}", f"{fit:.4f}"])
    text += ["## Tried\n", table(rows)]

    runs = finished(study, "focusdpo")
    if runs:
        rows = masks(runs)
        first, last = [r for r in rows if r["step"] < 40], [r for r in rows if r["step"] >= max(r["step"] for r in rows) - 39]
        recall = {}
        for title, part in (("first 40 steps", first), ("last 40 steps", last)):
            recall[title] = by_level([(r["sigma"], r["recall"]) for r in part])
        recall["chance"] = by_level([(r["sigma"], r["prior"]) for r in rows])
        (out / "recall.svg").write_text(dots("Share of the subject's tokens that M' finds, by time", "sigma", "recall", recall))
        head = ["sigma", "samples", "recall of M'", "chance", "detail blended in", "mask, share of the picture", "prior, share of the picture", "effective beta / beta"]
        beta = float(next(s.split("=")[1] for s in (study / "chosen/focusdpo").read_text().split("--set ") if s.startswith("loss.beta")))
        body = []
        for k in range(8):
            part = [r for r in rows if min(int(r["sigma"] * 8), 7) == k]
            if part:
                m = lambda name: mean(r[name] for r in part)
                body.append([f"{k / 8:.3f} to {(k + 1) / 8:.3f}", str(len(part)), f"{m('recall'):.3f}", f"{m('prior'):.3f}", f"{m('fused'):.3f}",
                             f"{m('mask'):.3f}", f"{m('prior'):.3f}", f"{m('beta') / beta:.3f}"])
        m = lambda name, part: mean(r[name] for r in part)
        body.append(["all", str(len(rows)), *(f"{m(n, rows):.3f}" for n in ("recall", "prior", "fused", "mask", "prior")), f"{m('beta', rows) / beta:.3f}"])
        text += ["## FocusDPO's masks in training\n", table([head, *body])]
        parts = {"first 40 steps": first, "last 40 steps": last}
        parts |= {f"{n} subject(s)": [r for r in rows if r["subjects"] == n] for n in (1, 2)}
        slow = study / "select/focusdpo-1/1-lr=1e-4,beta=1000/metrics.jsonl"
        if slow.exists():
            rows = masks([slow.parent])
            parts |= {"at 1e-4, first 40 steps": [r for r in rows if r["step"] < 40], "at 1e-4, last 40 steps": [r for r in rows if r["step"] >= 200]}
        for title, part in parts.items():
            if part:
                text.append(f"* {title}: recall {m('recall', part):.3f}, blended {m('fused', part):.3f}, mask {m('mask', part):.3f}\n")
        results["masks"] = body

    for score, file in (("identity", "identity"), ("identity_fine", "identity_2"), ("fit", "fit")):
        rows = {NAMES[n]: between(n, "base", score, BOTH) for n in NAMES if n in scores and n not in ("base", "winners")}
        (out / f"{file}.svg").write_text(intervals(f"{SCORES[score][0]}: difference from the base, 95 % intervals", rows))
        for n in NAMES:
            if NAMES[n] in rows:
                results[n][f"{score}_difference"] = rows[NAMES[n]]
    (out / "errors.svg").write_text(bars("Errors on held-out pairs against the frozen network, times 1e-3", ["winner", "loser"],
                                         changes))
    (out / "tables.md").write_text("\n".join(text))
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"{out / 'tables.md'}")


def main():
    arguments = [Path(a) for a in sys.argv[2:]]
    if len(arguments) != 2 or sys.argv[1] not in ("choose", "better", "report"):
        sys.exit(__doc__)
    if sys.argv[1] == "choose":
        choose(arguments[0], sys.argv[3])
    else:
        {"better": better, "report": report}[sys.argv[1]](*arguments)


if __name__ == "__main__":
    main()
