#!/bin/sh
# The study of docs/study.md: trains SFT, Diffusion-DPO, PatchDPO, FocusDPO and its ablations on the world (data/world), draws held-out
# subjects with every adapter and scores them.
#
#   scripts/study.sh [FOLDER]      default: target/study; relative to the repository
#
# What is finished is not done again, so it can be interrupted and called again. At the end the tables and figures are in FOLDER/report. Needs Rust and
# Python 3, nothing else.
#
#   STEPS    length of every run (240)
#   SEEDS    seeds of the methods (0 1 2 3 4)
#   FEWER    seeds of the ablations and of the published loss (0 1 2); may be empty
#   WORKERS  runs at the same time, each on one thread (one per core)
set -eu
case ${1:-} in
-*)
    sed -n 's/^#   //p' "$0" >&2
    exit 2
    ;;
*[[:space:]]*)
    echo "study.sh: a folder without spaces, please: $1" >&2
    exit 2
    ;;
esac
cd "$(dirname "$0")/.."
folder=${1:-target/study}
workers=${WORKERS:-$(nproc)}
steps=${STEPS:-240}
seeds=${SEEDS:-0 1 2 3 4}
fewer=${FEWER-0 1 2}

# Called by itself for a single run: FOLDER METHOD SEED SETTINGS-OF.
one=${2:-}
if [ -z "$one" ] && [ -z "${STUDY_BUILT:-}" ]; then
    cargo build --locked --release --bin graph-run --example draw_world
fi
run=target/release/graph-run
world=target/release/examples/draw_world
export NO_COLOR=1
mkdir -p "$folder/logs" "$folder/scores" "$folder/chosen"
[ -e "$folder/steps" ] || echo "$steps" >"$folder/steps"
if [ "$(cat "$folder/steps")" != "$steps" ]; then
    echo "study.sh: $folder holds runs of $(cat "$folder/steps") steps, not $steps: take another folder" >&2
    exit 2
fi

# Run a command with its output in a log, and name the log if it fails: LOG COMMAND...
logged() {
    log=$1
    shift
    "$@" >"$log" 2>&1 || {
        echo "study.sh: a step failed, its output is in $log" >&2
        exit 1
    }
}

# Three sets of pairs, and no subject is in two of them.
if [ -z "$one" ]; then
    [ -e "$folder/pairs/pairs.jsonl" ] || $world pairs "$folder/pairs" --count 480 --seed 3
    [ -e "$folder/validation/held_out.jsonl" ] || $world held-out "$folder/validation" --split validation --seed 5 --singles 24 --doubles 12
    [ -e "$folder/test/held_out.jsonl" ] || $world held-out "$folder/test" --seed 7 --singles 104 --doubles 48
fi

# Draw the pictures of a set with an adapter and score them: SET SEED-OF-THE-SET SPLIT ADAPTER SCORES.
score() {
    [ -e "$5" ] || {
        drawn=$folder/drawn/$1/$(basename "$(dirname "$5")")/$(basename "$5" .jsonl)
        rm -rf "$drawn"
        mkdir -p "$(dirname "$drawn")"
        batches=$(($(grep -c . "$folder/$1/held_out.jsonl") / 4))
        logged "$drawn.log" $run graphs/world/draw.ron --set pairs.path="$folder/$1/held_out.jsonl" ${4:+--set lora.from="$4"} \
            --steps "$batches" --out "$drawn"
        mkdir -p "$(dirname "$5")"
        encoders="data/world/identity data/world/identity_fine"
        [ "$1" = test ] || encoders=data/world/identity
        # shellcheck disable=SC2086
        $world score "$folder/$1" --seed "$2" --split "$3" --pictures "$drawn/preview" --encoders $encoders >"$5.part"
        mv "$5.part" "$5"
    }
}

# The settings of a method: its graph, and what tells it from the graph.
published="--set loss.objective=dpo --set loss.anchor=0 --set loss.sft_weight=0"
settings_of() {
    case $1 in
    sft | diffusion_dpo | patchdpo | focusdpo) echo "graphs/world/$1.ron" ;;
    focusdpo_mask_mean) echo "graphs/world/focusdpo.ron --set loss.reduction=mask_mean" ;;
    diffusion_dpo_published | focusdpo_published) echo "graphs/world/${1%_published}.ron $published" ;;
    esac
}

# The settings of a method, from one grid after another, on the validation set: its subjects are drawn with each adapter, and the one whose
# pictures are nearest to their references by the first encoder is chosen. METHOD GRID [GRID].
choose() {
    method=$1
    shift
    [ -e "$folder/chosen/$method" ] || {
        number=0
        for grid in "$@"; do
            number=$((number + 1))
            select=$folder/select/$method-$number
            # A sweep that is interrupted writes what it has, too: it has ended when it says so.
            if [ ! -e "$select/done" ]; then
                rm -rf "$select" "$folder/scores/validation/$method/$number"-*
                # shellcheck disable=SC2046,SC2086
                logged "$folder/logs/select-$method-$number.log" $run sweep $(settings_of "$method") $grid --set pairs.path="$folder/pairs/pairs.jsonl" --steps "$steps" \
                    --set held_out.path="$folder/validation/held_out.jsonl" --set held_out.first=36 --set held_out.batch=12 --set held_out_log.every=0 \
                    --set run.checkpoint_every=0 --seed 100 --out "$select"
                touch "$select/done"
            fi
            for adapter in "$select"/*/adapter.safetensors; do
                variant=$number-$(basename "$(dirname "$adapter")")
                score validation 5 validation "$adapter" "$folder/scores/validation/$method/$variant.jsonl"
            done
        done
        python3 scripts/study.py choose "$folder" "$method" >"$folder/chosen/$method.part"
        mv "$folder/chosen/$method.part" "$folder/chosen/$method"
        echo "$method: $(cat "$folder/chosen/$method")"
    }
}

# The settings of runs that are scored: SEED.
finally() {
    echo "--set pairs.path=$folder/pairs/pairs.jsonl --steps $steps --seed $1 --set held_out.path=$folder/test/held_out.jsonl" \
        "--set held_out.first=152 --set held_out.batch=8 --set held_out_log.every=0 --set run.checkpoint_every=0 --set run.checkpoint_minutes=0"
}

# Train with a seed, measure the held-out pairs once, after the last step, draw and score them: METHOD SEED SETTINGS-OF.
final() {
    out=$folder/runs/$1/seed-$2
    if [ ! -e "$out/done" ]; then
        rm -rf "$out" "$folder/scores/test/$1/seed-$2.jsonl"
        # shellcheck disable=SC2046
        logged "$folder/logs/$1-$2.log" $run $(settings_of "$1") $(cat "$folder/chosen/$3") $(finally "$2") --threads 1 --out "$out"
        touch "$out/done"
        echo "$1, seed $2"
    fi
    score test 7 held-out "$out/adapter.safetensors" "$folder/scores/test/$1/seed-$2.jsonl"
}
if [ -n "$one" ]; then
    final "$2" "$3" "$4"
    exit
fi

# The same for all of a list of METHOD SEED SETTINGS-OF, some at a time.
finals() {
    xargs -r -P "$workers" -n 3 scripts/study.sh "$folder"
}

# Where the best of six settings was the largest rate, two larger ones follow. PatchDPO and SFT have no beta, so they have six rates.
beta="--over loss.beta=1000,8000"
choose sft "--over update.lr=1e-5,3e-5,1e-4,3e-4,1e-3,3e-3" "--over update.lr=1e-2,3e-2"
choose diffusion_dpo "--over update.lr=1e-4,3e-4,1e-3 $beta" "--over update.lr=3e-3,1e-2 --over loss.beta=8000"
choose focusdpo "--over update.lr=1e-4,3e-4,1e-3 $beta" "--over update.lr=3e-3,1e-2 --over loss.beta=8000"
# Only looked at on the validation set: errors as means over the mask, so that a small mask does not lower beta.
choose focusdpo_mask_mean "--over update.lr=1e-2 $beta"
choose patchdpo "--over update.lr=1e-6,3e-6,1e-5,3e-5,1e-4,3e-4"
choose diffusion_dpo_published "--over update.lr=3e-5,1e-4,3e-4 $beta"
choose focusdpo_published "--over update.lr=3e-5,1e-4,3e-4 $beta"
# Ablations have the loss under which FocusDPO is better on the validation subjects.
if [ ! -e "$folder/full" ]; then
    python3 scripts/study.py better "$folder/scores/validation/focusdpo" "$folder/scores/validation/focusdpo_published" >"$folder/full.part"
    mv "$folder/full.part" "$folder/full"
fi
score validation 5 validation "" "$folder/scores/validation/base.jsonl"
score test 7 held-out "" "$folder/scores/test/base.jsonl"
if [ ! -e "$folder/scores/test/winners.jsonl" ]; then
    $world score "$folder/test" --seed 7 >"$folder/scores/test/winners.part"
    mv "$folder/scores/test/winners.part" "$folder/scores/test/winners.jsonl"
fi
for seed in $seeds; do
    for method in sft diffusion_dpo patchdpo focusdpo; do
        echo "$method $seed $method"
    done
done | finals
for seed in $fewer; do
    # The five ablations are one graph, in which they share what their masks do not reach.
    ablations="prior_only detail_only structure_only detail_in_prior unconstrained"
    if [ ! -e "$folder/runs/unconstrained/seed-$seed/done" ]; then
        rm -rf "$folder/ablations/seed-$seed"
        # shellcheck disable=SC2046
        logged "$folder/logs/ablations-$seed.log" $run sweep $(settings_of "$(cat "$folder/full")") $(cat "$folder/chosen/$(cat "$folder/full")") $(finally "$seed") \
            --over "fuse.mode=prior,detail,structure,detail_in_prior,adaptive; fuse.constrain=true,true,true,true,false" \
            --out "$folder/ablations/seed-$seed"
        number=0
        for ablation in $ablations; do
            number=$((number + 1))
            mkdir -p "$folder/runs/$ablation"
            rm -rf "$folder/runs/$ablation/seed-$seed" "$folder/scores/test/$ablation/seed-$seed.jsonl"
            mv "$folder/ablations/seed-$seed/$number-"* "$folder/runs/$ablation/seed-$seed"
            touch "$folder/runs/$ablation/seed-$seed/done"
        done
        echo "ablations, seed $seed"
    fi
    for ablation in $ablations; do
        echo "$ablation $seed $ablation"
    done | finals
done
for seed in $fewer; do
    for method in diffusion_dpo_published focusdpo_published; do
        echo "$method $seed $method"
    done
done | finals
python3 scripts/study.py report "$folder" "$folder/report"
