#!/bin/sh
# Compiles every kernel with the real NVRTC for sm_80, sm_90 and sm_100 (those of wgmma.cuh for sm_90a), and prints the registers and spills of each:
#
#   scripts/nvrtc-check.sh [FILE.cu...]    default: nn/kernels/*.cu
#
# Fails where a file does not compile, a kernel spills, or one has more registers than nn/kernels/limits.txt allows: a line
# `NAME REGISTERS` for each kernel, comments after `#`. NVRTC needs no GPU and no driver; it comes from PyPI into target/nvrtc
# (90 MB) unless NVRTC names a folder with libnvrtc.so.13. Where something is missing this says what, and exits with 77.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)

missing() {
    echo "nvrtc-check.sh: $1" >&2
    exit 77
}

[ $# -gt 0 ] || set -- "$here"/nn/kernels/*.cu
[ -e "$1" ] || missing "there is no kernel: no file $1."

target=${CARGO_TARGET_DIR:-$here/target}
case $target in /*) ;; *) target=$PWD/$target ;; esac
if [ -z "${NVRTC:-}" ]; then
    package=nvidia-cuda-nvrtc==13.0.88
    folder=$target/nvrtc
    find_nvrtc() { find "$folder" -name libnvrtc.so.13 2>/dev/null | head -n 1; }
    if [ -z "$(find_nvrtc)" ]; then
        python3 -m pip --version >/dev/null 2>&1 || missing "pip is missing, which gets NVRTC (or set NVRTC to its folder)."
        PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder" "$package" >&2 ||
            missing "pip did not get $package."
    fi
    [ -n "$(find_nvrtc)" ] || missing "$package has no libnvrtc.so.13."
    NVRTC=$(dirname "$(find_nvrtc)")
fi

(cd "$here" && CARGO_TARGET_DIR=$target cargo build --quiet --locked -p cuda-standin --example nvrtc_report)
LD_LIBRARY_PATH="$NVRTC${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" exec "$target/debug/examples/nvrtc_report" "$here/nn/kernels/limits.txt" "$@"
