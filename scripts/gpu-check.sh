#!/usr/bin/env bash
# All checks of a GPU in one command, on a machine that has a driver, Python and PyTorch, and nothing to build with.
#
#   scripts/gpu-check.sh pack FOLDER     here: builds tests, benches and the command, and copies them with what they read
#   FOLDER/gpu-check.sh run              there: runs them on cuda:0 and prints one table last (8 minutes)
#   FOLDER/gpu-check.sh run --quick      the tests, and FLUX.1-dev's step at 512 pixels (PIXELS names others; MODES=eager: PyTorch uncompiled only)
#
# A part that fails or is missing does not stop the rest: the table says so. What does not fit into LIMIT seconds (480) is left out, the
# most important parts come first, and none takes longer than PART seconds (200). The exit status is 1 where a part failed or was
# stopped. NVRTC and cuBLASLt are looked for on the library path, and among the packages of PYTHON (python3).
#
# A rehearsal on the stand-in, with tiny shapes: PROFILE=dev packs what `cargo test` has built, and
#   REHEARSAL=1 scripts/standin.sh FOLDER/gpu-check.sh run
set -euo pipefail

# The program among nn/benches that times every operation of a device against its roofline: `PROGRAM cuda:0` prints a table.
KERNELS=operations
# Tests of nn that use a GPU: operations, golden cases of FLUX and of SDXL, streamed weights, training of a U-Net, weights that share rows.
TESTS=(devices golden_flux golden_unet flux_on_gpu unet_on_gpu shared_rows)

pack() {
    local folder=$1 profile=${PROFILE:-release} benches=(step) built
    cd "$(dirname "$0")/.."
    mkdir -p "$folder"/{graphs,data,fixtures,peers}
    folder=$(cd "$folder" && pwd)
    if [[ -e nn/benches/$KERNELS.rs || -d nn/benches/$KERNELS ]]; then benches+=("$KERNELS"); fi
    # In one command, so that everything is built once; the command `graph-run` is built with its benches.
    built=$(cargo test --locked --profile "$profile" --no-run --message-format=json -p prefgraph-nn -p prefgraph \
        "${TESTS[@]/#/--test=}" "${benches[@]/#/--bench=}" |
        python3 -c 'import json, sys
for line in sys.stdin:
    found = json.loads(line)
    if found.get("executable"):
        print(found["target"]["name"], found["executable"])')
    while read -r name path; do
        cp "$path" "$folder/$name"
    done <<<"$built"
    local programs=("${TESTS[@]}" graph-run "${benches[@]}")
    (cd "$folder" && strip "${programs[@]}" 2>/dev/null || true)
    cp graphs/*.ron "$folder/graphs/"
    cp -r data/demo "$folder/data/"
    cp -r tests/fixtures/flux_uno* tests/fixtures/sdxl_ipa "$folder/fixtures/"
    cp benches/peers/*.py benches/peers/shapes.json "$folder/peers/"
    cp scripts/gpu-table.py "$folder/table.py"
    cp scripts/gpu-check.sh "$folder/gpu-check.sh"
    local newest
    newest=$(cd "$folder" && cat "${programs[@]}" | grep -aoE 'GLIBC_2\.[0-9]+' | sort -Vu | tail -n 1 || true)
    # They are a third of their size then, and what carries the folder may have a limit.
    (cd "$folder" && tar -czf programs.tar.gz "${programs[@]}" && rm "${programs[@]}")
    du -sh "$folder"
    echo "the programs need ${newest/_/ } or newer there; here is $(getconf GNU_LIBC_VERSION 2>/dev/null || echo another libc)"
}

# Folders of libnvrtc and libcublasLt among the packages of Python.
libraries() {
    "$python" - <<'PYTHON' 2>/dev/null || true
import glob, os, site
roots = [p for p in site.getsitepackages() + [site.getusersitepackages()] if os.path.isdir(p)]
found = [os.path.dirname(f) for r in roots for n in ("libnvrtc.so*", "libcublasLt.so*") for f in glob.glob(f"{r}/nvidia/*/lib/{n}")]
print(":".join(dict.fromkeys(found)))
PYTHON
}

table=()
row() {
    table+=("$(printf '%-24s %-8s %6s s   %s' "$1" "$2" "$3" "$4")")
}

# Runs a check, for as long as there is time, and remembers how it went, how long it took, and its last words.
check() {
    local name=$1 begin=$SECONDS code=0 left=$((limit - SECONDS)) log="logs/$1.log" how=good words
    shift
    if ((left < 10)); then
        row "$name" "left out" 0 "no time: LIMIT is $limit s"
        return
    fi
    echo "== $name: $*"
    ((left <= part)) || left=$part
    timeout --kill-after=5 "$left" "$@" >"$log" 2>&1 || code=$?
    tail -n 3 "$log"
    words=$(grep -aE 'test result|complete:|error|Error' "$log" | tail -n 1 | cut -c1-90 || true)
    case $code in
    0) ;;
    124 | 137) how=stopped words="its time was up" ;;
    *) how=FAILED ;;
    esac
    row "$name" "$how" "$((SECONDS - begin))" "$words"
}

# A timed step: the same, and its lines of JSON are kept for the table.
steps() {
    check "$@"
    grep -a '^{' "logs/$1.log" >>steps.jsonl 2>/dev/null || true
}

# Ours and PyTorch's steps in turn, ROUNDS times (2), on the shapes given.
duel() {
    local name=$1 round
    shift
    for ((round = 1; round <= rounds; round++)); do
        steps "$name-ours-$round" ./step "$@" --device cuda:0 "${pace[@]}"
        if [[ -n $torch ]]; then
            steps "$name-torch-$round" env LD_LIBRARY_PATH="$own_path" "$python" peers/torch_step.py "$@" --device "$torch" \
                --modes "$modes" "${pace[@]}"
        fi
    done
}

# How PyTorch is there: cuda, cpu in a rehearsal, or not at all.
find_torch() {
    "$python" - <<'PYTHON' 2>/dev/null || true
import os, torch
if torch.cuda.is_available():
    print("cuda")
elif os.environ.get("REHEARSAL"):
    print("cpu")
PYTHON
}

run() {
    local quick=$1
    cd "$(dirname "$0")"
    tar -xzf programs.tar.gz
    python=${PYTHON:-python3} limit=${LIMIT:-480} part=${PART:-200} rounds=${ROUNDS:-2} own_path=${LD_LIBRARY_PATH:-} torch=$(find_torch)
    # What is on the path comes first: the stand-in's libraries, in a rehearsal.
    local found
    found=$(libraries)
    export LD_LIBRARY_PATH="${own_path:+$own_path:}$found"
    export PREFGRAPH_FIXTURES="$PWD/fixtures" PREFGRAPH_CACHE="$PWD/cache" NO_COLOR=1
    # Blocks that were compiled in the first round are not compiled again.
    export TORCHINDUCTOR_CACHE_DIR="$PWD/cache/inductor" TRITON_CACHE_DIR="$PWD/cache/triton"
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv 2>/dev/null || echo "there is no nvidia-smi"
    ./graph-run devices
    "$python" -c 'import torch; print("PyTorch", torch.__version__)' 2>/dev/null || true
    rm -rf out logs steps.jsonl
    mkdir -p logs
    if [[ -z $torch ]]; then row PyTorch missing 0 "PYTHON=$python has no PyTorch that sees a GPU: nothing is compared with it"; fi

    for test in "${TESTS[@]}"; do check "$test" "./$test"; done

    modes=${MODES:-eager,compiled}
    local shape=flux-dev others=(bench large) compute=bf16 seconds=3
    if [[ -n ${REHEARSAL:-} ]]; then shape=tiny others=(tiny) compute=f32 seconds=0 modes=${MODES:-eager}; fi
    if [[ -n $torch ]]; then
        check agree-write ./step tiny --device cuda:0 --lr 1e-3 --write out/record
        check agree env LD_LIBRARY_PATH="$own_path" "$python" peers/torch_agree.py out/record --device "$torch"
    fi
    if [[ -z $quick ]]; then
        # The place of the kernels' rooflines: a table of an executable.
        if [[ -x ./$KERNELS ]]; then
            check kernels "./$KERNELS" cuda:0 ${REHEARSAL:+--small}
        else
            row kernels missing 0 "the folder has no program $KERNELS"
        fi
        demo
    fi
    pace=(--compute "$compute" --checkpointing "none,blocks" --steps 5 --seconds "$seconds")
    local all_pace=("${pace[@]}") pixels=${PIXELS:-${quick:+512}}
    if [[ -n $pixels && -z ${REHEARSAL:-} ]]; then pace+=(--pixels "$pixels"); fi
    duel "$shape" "$shape"
    if [[ -z $quick ]]; then
        pace=("${all_pace[@]}")
        duel small "${others[@]}"
        sanitize
    fi

    echo
    printf '%s\n' "${table[@]}"
    "$python" table.py steps.jsonl logs/kernels.log 2>&1 || cat steps.jsonl
    [[ ! "${table[*]}" =~ FAILED|stopped ]]
}

# The demo's training, on the processor and on the GPU: the same losses, and the same bits whatever the lanes.
demo() {
    local graph=graphs/focusdpo.ron steps=${STEPS:-20}
    check cpu-f32 ./graph-run "$graph" --device cpu --steps "$steps" --out out/cpu
    check gpu-f32 ./graph-run "$graph" --device cuda:0 --steps "$steps" --out out/gpu
    check gpu-f32-again ./graph-run "$graph" --device cuda:0 --steps "$steps" --lanes 4 --out out/again
    check gpu-bf16 ./graph-run "$graph" --device cuda:0 --set backbone.compute=bf16 --steps "$steps" --out out/bf16
    check same-bits cmp out/gpu/adapter.safetensors out/again/adapter.safetensors
}

sanitize() {
    if command -v compute-sanitizer >/dev/null; then
        local tool
        for tool in memcheck racecheck; do
            check "sanitizer-$tool" compute-sanitizer --tool "$tool" --error-exitcode 1 ./devices --test-threads 1
        done
    else
        row sanitizer missing 0 "there is no compute-sanitizer"
    fi
}

case "${1:-} ${2:-}" in
"pack "?*) pack "$2" ;;
"run ") run "" ;;
"run --quick") run quick ;;
*)
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
