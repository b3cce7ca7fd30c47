#!/bin/sh
# Builds the stand-in for the CUDA driver and runs a command with it: scripts/standin.sh cargo test -p cuda-standin
#
# With NVRTC=<folder of libnvrtc.so.13> each source goes through the real NVRTC first, so that a source that g++ takes and NVRTC
# does not is refused as on a device. cuda-standin/README.md has the other settings. Where something is missing this says what, in
# one sentence, and exits with 77.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)

missing() {
    echo "standin.sh: $1" >&2
    exit 77
}

[ $# -gt 0 ] || { echo "usage: scripts/standin.sh COMMAND [ARGUMENTS]" >&2; exit 2; }
[ "$(uname -s) $(uname -m)" = "Linux x86_64" ] || missing "the stand-in runs on x86-64 Linux only, and this is $(uname -s) on $(uname -m)."
command -v g++ >/dev/null || missing "g++ is missing, which compiles the kernels (Debian: apt install g++)."
command -v addr2line >/dev/null || missing "addr2line is missing, which finds the lines of findings (Debian: apt install binutils)."

target=${CARGO_TARGET_DIR:-$here/target}
case $target in /*) ;; *) target=$PWD/$target ;; esac
(cd "$here" && CARGO_TARGET_DIR=$target cargo build --quiet --locked -p cuda-standin)

# The names that are looked for. Not in cargo's own folder: that is on the library path of every test.
links=$target/standin-libraries
mkdir -p "$links"
for name in libcuda.so libcublasLt.so libnvrtc.so; do
    ln -sfn "$target/debug/libcuda_standin.so" "$links/$name"
done
if [ -n "${NVRTC:-}" ]; then
    STANDIN_NVRTC=$(find "$NVRTC" -maxdepth 1 -name 'libnvrtc.so*' 2>/dev/null | head -n 1)
    [ -n "$STANDIN_NVRTC" ] || missing "there is no libnvrtc.so in $NVRTC."
    STANDIN_NVRTC=$(realpath "$STANDIN_NVRTC")
    export STANDIN_NVRTC
    # Behind the stand-in's own: NVRTC looks for its builtins there.
    LD_LIBRARY_PATH=$(dirname "$STANDIN_NVRTC")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
fi
export LD_LIBRARY_PATH="$links${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export STANDIN_CACHE="${STANDIN_CACHE:-$target/standin-kernels}"
exec "$@"
