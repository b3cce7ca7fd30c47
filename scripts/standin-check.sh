#!/usr/bin/env bash
# The GPU's half of the tests on the stand-in for its driver, and every kernel through the real compiler. A step for which something is
# missing (g++, binutils, NVRTC from PyPI) is skipped, and says so.
set -euo pipefail
cd "$(dirname "$0")/.."

# Kernels that were compiled for another setting of the stand-in are not looked for.
export PREFGRAPH_CACHE="$PWD/target/standin-images"

step() {
    echo "== $*"
    local code=0
    "$@" || code=$?
    if [ "$code" -eq 77 ]; then
        echo "SKIPPED: $*"
    elif [ "$code" -ne 0 ]; then
        exit "$code"
    fi
}

standin=scripts/standin.sh
# A test of the root package is among those of each step (`ports_table`, a moment's work): without one, cargo would select other features
# of the dependencies than `cargo test --workspace` does, and compile everything again.
step scripts/nvrtc-check.sh
step "$standin" cargo test --quiet --locked -p cuda-standin
workspace=(--locked --workspace --test ports_table)
step env STANDIN_CHECK=1 "$standin" cargo test --quiet "${workspace[@]}" --test devices --test unet_on_gpu
# Attention has kernels of its own for Hopper (90, the stand-in's default), and shorter tiles from Blackwell on.
step env STANDIN_CHECK=1 STANDIN_CAPABILITY=80 "$standin" cargo test --quiet "${workspace[@]}" --test devices attention
step env STANDIN_CAPABILITY=100 "$standin" cargo test --quiet "${workspace[@]}" --test devices attention
step env STANDIN_ORDER=latest "$standin" cargo test "${workspace[@]}" --test devices --test golden_flux --test encoders --test flux_on_gpu --test unet_on_gpu --test shared_rows
step "$standin" cargo test --locked --workspace --test cli_cuda
step "$standin" cargo test --locked --workspace --test recipes_sdxl on_gpu
