#!/usr/bin/env bash
# All checks of a GPU in one command, on a machine that has a driver and nothing to build with.
#
#   scripts/gpu-check.sh pack FOLDER     here: builds the tests and the command, and copies them with what they read
#   FOLDER/gpu-check.sh run              there: runs them on cuda:0 and prints one table last
#
# PROFILE=dev packs what `cargo test` has built, for a rehearsal on the stand-in: scripts/standin.sh FOLDER/gpu-check.sh run
# NVRTC and cuBLASLt are looked for on the library path, and in the packages of the Python that is there.
set -euo pipefail

pack() {
    local folder=$1 profile=${PROFILE:-release}
    cd "$(dirname "$0")/.."
    mkdir -p "$folder/graphs" "$folder/data" "$folder/fixtures"
    folder=$(cd "$folder" && pwd)
    local built
    built=$(cargo test --locked --profile "$profile" --no-run --message-format=json -p prefgraph-nn --test devices --test golden_flux |
        python3 -c 'import json, sys
for line in sys.stdin:
    found = json.loads(line)
    if found.get("executable") and "test" in found["target"]["kind"]:
        print(found["target"]["name"], found["executable"])')
    while read -r name path; do
        cp "$path" "$folder/$name"
        strip "$folder/$name" 2>/dev/null || true
    done <<<"$built"
    cargo build --locked --profile "$profile" --bin graph-run
    cp "${CARGO_TARGET_DIR:-target}/${profile/#dev/debug}/graph-run" "$folder/"
    strip "$folder/graph-run" 2>/dev/null || true
    cp graphs/*.ron "$folder/graphs/"
    cp -r data/demo "$folder/data/"
    cp -r tests/fixtures/flux_uno* "$folder/fixtures/"
    cp "scripts/$(basename "$0")" "$folder/gpu-check.sh"
    du -sh "$folder"
}

# Folders of libnvrtc and libcublasLt among the packages of Python.
libraries() {
    python3 - <<'PYTHON' 2>/dev/null || true
import glob, os, site
roots = [p for p in site.getsitepackages() + [site.getusersitepackages()] if os.path.isdir(p)]
found = [os.path.dirname(f) for r in roots for n in ("libnvrtc.so*", "libcublasLt.so*") for f in glob.glob(f"{r}/nvidia/*/lib/{n}")]
print(":".join(dict.fromkeys(found)))
PYTHON
}

table=()
# Runs a check and remembers how it went, how long it took, and its last words.
check() {
    local name=$1 begin end code=0 log
    shift
    log="$name.log"
    echo "== $name: $*"
    begin=$(date +%s.%N)
    "$@" >"$log" 2>&1 || code=$?
    end=$(date +%s.%N)
    tail -n 3 "$log"
    local words
    words=$(grep -aE "test result|complete:|error" "$log" | tail -n 1 | cut -c1-90)
    table+=("$(printf '%-24s %-7s %8.1f s   %s' "$name" "$([ $code -eq 0 ] && echo good || echo "FAILED")" "$(echo "$end - $begin" | bc 2>/dev/null || python3 -c "print($end - $begin)")" "$words")")
}

run() {
    cd "$(dirname "$0")"
    local found
    found=$(libraries)
    # What is on the path comes first: the stand-in's libraries, in a rehearsal.
    export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$found"
    export PREFGRAPH_FIXTURES="$PWD/fixtures" PREFGRAPH_CACHE="$PWD/cache" NO_COLOR=1
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv 2>/dev/null || echo "there is no nvidia-smi"
    ./graph-run devices
    rm -rf out
    check devices ./devices
    check golden ./golden_flux
    if command -v compute-sanitizer >/dev/null; then
        for tool in memcheck racecheck; do
            check "sanitizer-$tool" compute-sanitizer --tool "$tool" --error-exitcode 1 ./devices --test-threads 1
        done
    fi
    local steps=${STEPS:-20}
    check cpu-f32 ./graph-run graphs/focusdpo.ron --device cpu --steps "$steps" --out out/cpu
    check gpu-f32 ./graph-run graphs/focusdpo.ron --device cuda:0 --steps "$steps" --out out/gpu
    check gpu-f32-again ./graph-run graphs/focusdpo.ron --device cuda:0 --steps "$steps" --lanes 4 --out out/again
    check gpu-bf16 ./graph-run graphs/focusdpo.ron --device cuda:0 --set backbone.compute=bf16 --steps "$steps" --out out/bf16
    check same-bits cmp out/gpu/adapter.safetensors out/again/adapter.safetensors
    printf '\n%s\n' "${table[@]}"
    [[ "${table[*]}" != *FAILED* ]]
}

case "${1:-} ${2:-}" in
"pack ?"*) pack "$2" ;;
"run "*) run ;;
*)
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
