#!/bin/sh
# Runs a campaign of tests longer than `cargo test` does. A case is a function of the seed and its number: a failure names both.
#
#   scripts/campaigns.sh mutate [CASES [SEED]]    mutated graphs, settings and configurations of models
#
# Without optimisation, since only such a build notices an overflow of whole numbers.
set -eu
cd "$(dirname "$0")/.."

usage() {
    sed -n 's/^#   //p' "$0" >&2
    exit 2
}

case "${1:-}" in
mutate) CAMPAIGN_CASES="${2:-20000}" CAMPAIGN_SEED="${3:-1}" cargo test --test mutations -- --nocapture --test-threads 1 ;;
*) usage ;;
esac
