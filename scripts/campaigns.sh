#!/bin/sh
# Runs campaigns longer than `cargo test` does.
#
#   scripts/campaigns.sh mutate [CASES [SEED]]    mutated graphs, settings and configurations of models
#   scripts/campaigns.sh damage [CASES [SEED]]    damaged files: of runs to be resumed, and of inputs
#   scripts/campaigns.sh random [CASES [SEED]]    runs killed at random moments
#   scripts/campaigns.sh kill [STRIDE]            runs killed at every STRIDE-th system call of a kind that writes
#   scripts/campaigns.sh inject [STRIDE]          runs in which every STRIDE-th such call fails
#
# The first three draw cases at random: a case is a function of the seed and its number, and a failure names both. They run without
# optimisation, since only such a build notices an overflow of whole numbers. The last two go through the calls one by one; they
# need `strace`. docs/reliability.md has the figures.
set -eu
cd "$(dirname "$0")/.."

usage() {
    sed -n 's/^#   //p' "$0" >&2
    exit 2
}

# Test names, default number of cases, then the user's arguments.
drawn() {
    test=$1 cases=$2
    CAMPAIGN_CASES="${3:-$cases}" CAMPAIGN_SEED="${4:-1}" cargo test --test campaigns "$test" -- --nocapture --test-threads 1
}

# A short run with a checkpoint after every step; further arguments follow.
run() {
    out=$1
    shift
    "$@" target/release/graph-run graphs/replay/sft.ron --set run.checkpoint_every=1 --set run.keep_checkpoints=2 --out "$out"
}

# Continue whatever is there, or begin.
finish() {
    resume=
    [ ! -e "$1" ] || resume=--resume
    target/release/graph-run graphs/replay/sft.ron --set run.checkpoint_every=1 --set run.keep_checkpoints=2 --out "$1" $resume
}

fail() {
    faults=$((faults + 1))
    echo "FAULT: $*" >&2
    sed 's/^/    /' "$work/said" >&2
}

# After the incident named by the arguments, the run must end as if nothing had happened.
must_be_exact() {
    if ! finish "$work/run" >"$work/said" 2>&1; then
        fail "$* cannot be resumed"
    elif ! cmp -s "$work/run/adapter.safetensors" "$work/whole/adapter.safetensors"; then
        fail "$* changed the adapter"
    elif [ "$(wc -l <"$work/run/metrics.jsonl")" -ne "$(wc -l <"$work/whole/metrics.jsonl")" ]; then
        fail "$* changed the number of steps in the metrics"
    elif find "$work/run" -name '.writing-*' | grep -q .; then
        fail "$* left an unfinished file for ever"
    fi
}

# Go through the system calls: $1 is `kill` or `inject`, $2 the stride.
traced() {
    command -v strace >/dev/null || { echo "strace is needed for this campaign" >&2; exit 2; }
    cargo build --release --quiet
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    run "$work/whole" env 2>/dev/null
    cases=0 faults=0 loader=0
    for call in openat write pwrite64 fsync fdatasync rename renameat renameat2 unlink unlinkat rmdir mkdir ftruncate flock mmap read; do
        for end in $([ "$1" = kill ] && echo signal=SIGKILL || echo error=EIO error=ENOSPC error=EMFILE); do
            when=1
            while :; do
                rm -rf "$work/run"
                code=0
                run "$work/run" strace -f -qq -o "$work/trace" -e "trace=$call" -e "inject=$call:$end:when=$when" >"$work/said" 2>&1 || code=$?
                grep -q 'INJECTED\|SIGKILL' "$work/trace" || break
                cases=$((cases + 1))
                if [ $((cases % 50)) = 0 ]; then echo "$cases cases" >&2; fi
                case "$1 $code $call" in
                "kill 137 "* | "inject 0 "* | "inject 1 "*) ;;
                "kill 0 "*) ;; # It had nothing left to do but end.
                "inject 127 "* | "inject 139 mmap") loader=$((loader + 1)) ;; # Before the program began.
                *) fail "$call $when, $end: exit code $code" ;;
                esac
                if grep -q panicked "$work/said"; then fail "$call $when, $end: a panic"; fi
                must_be_exact "$call $when, $end"
                when=$((when + $2))
            done
        done
    done
    echo "$1: $cases cases, $loader of them in the system's loader, $faults faults"
    [ "$faults" -eq 0 ]
}

case "${1:-}" in
mutate) drawn mutated 20000 "${2:-}" "${3:-}" ;;
damage) drawn damaged 1000 "${2:-}" "${3:-}" ;;
random) drawn killed 200 "${2:-}" "${3:-}" ;;
kill) traced kill "${2:-1}" ;;
inject) traced inject "${2:-3}" ;;
*) usage ;;
esac
