#!/usr/bin/env bash
# One FocusDPO step of this project, timed on the weights that a peer wrote: one line of JSON on stdout.
#
#   benches/peers/ours.sh small|bench|large WEIGHTS [THREADS] [LANES] [STEPS] [bf16] [streamed] [checkpointed]
#
# WEIGHTS is a folder that holds `transformer/` in diffusers' layout.
set -euo pipefail
config=${1:?small, bench or large}
weights=${2:?a folder that holds transformer/}
shift 2
weights=$(cd "$weights" && pwd)
cd "$(dirname "$0")/../.."
cargo bench --quiet --bench step -- "$config" "$weights/transformer" "$@"
