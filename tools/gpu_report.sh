#!/usr/bin/env bash
# What only a GPU can tell about avff's speed, unattended, on one GPU, in under ten minutes:
#
#   tools/gpu_report.sh [FOLDER]             default FOLDER: runs/gpu_report
#   tools/gpu_report.sh --dry-run [FOLDER]   the same commands with tiny networks on a CPU, to see that they run
#
# FOLDER/report.md holds date, GPU, every command and its table, the most important ones first; FOLDER/<name>/*.json the
# numbers, those of a measurement that was cut off too. One that fails or takes too long is named at the end, and the others
# are made all the same; a setting that does not fit into memory is a row that says so. Its last part plans stage 1 on 1 to
# 1000 GPUs from what was measured (tools/simulate.py --measured).
# PYTHON picks the interpreter (default: .venv/bin/python, else python).
set -euo pipefail
cd "$(dirname "$0")/.."

dry_run=0
if [ "${1:-}" = --dry-run ]; then
    dry_run=1
    shift
fi
folder=${1:-runs/gpu_report}
python=${PYTHON:-.venv/bin/python}
command -v "$python" >/dev/null || python=python
report=$folder/report.md
limit_seconds=570
longest_seconds=300 # of one measurement: one that hangs does not take the time of all others
failed=()
mkdir -p "$folder"
for_plan=("$folder"/{stage1/step,loader/loader,checkpoint/checkpoint}.json)
rm -f "${for_plan[@]}" # of an earlier report

if [ $dry_run = 1 ]; then
    limit_seconds=1800 longest_seconds=600 # compiling takes a CPU minutes
    device="no GPU: a dry run with tiny networks, whose figures mean nothing"
    clip="clip.num_frames=8 clip.image_size=32 clip.hop_samples=100 clip.num_mel_bins=32 clip.num_slices=4"
    base="--size tiny --rounds 1 --steps 1 --set $clip model.critic_width=32"
    batches=2 batch=2 small=2 compile=off workers=1 checkpoint="--parameters 1000000 --saves 1" predict="--size tiny --seconds 4 --height 240"
    loader="--clips 16 --usual-clips 2 --rounds 1"
    plan="model.size=tiny model.critic_width=32 $clip --cluster configs/clusters/laptop_cpu.yaml --gpus 1 2"
else
    device=$("$python" -c 'import sys, torch
torch.cuda.is_available() or sys.exit("torch sees no GPU; try tools/gpu_report.sh --dry-run")
print(torch.cuda.get_device_name(), f"{torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB, torch", torch.__version__)')
    base="--size base --rounds 3 --steps 8"
    workers=$(nproc)
    workers=$((workers < 14 ? workers : 14)) # a loader that can feed eight: what a GPU of a DGX H200 has for itself
    batches="64 128" batch=64 small=32 compile=on checkpoint="--parameters 200000000 --saves 2" predict="--size base"
    loader="--clips 64 --rounds 2" plan="--cluster configs/clusters/h200.yaml"
fi

printf '# avff on %s\n\n%s, revision %s\n' "$device" "$(date -u +%F)" "$(git rev-parse --short HEAD 2>/dev/null || echo unknown)" | tee "$report"

# measure NAME COMMAND...: runs it within the time that is left, and adds command and output to the report
measure() {
    local name=$1 left=$((limit_seconds - SECONDS))
    left=$((left < longest_seconds ? left : longest_seconds))
    shift
    printf '\n## %s\n\n    %s\n\n```\n' "$name" "$*" | tee -a "$report"
    if [ $left -lt 10 ]; then
        echo "no time left" | tee -a "$report"
        failed+=("$name (no time left)")
    else
        local code=0 reason="see $folder/$name.log"
        timeout --kill-after=10 "$left" "$@" 2>"$folder/$name.log" | tee -a "$report" || code=${PIPESTATUS[0]}
        if [ "$code" -ne 0 ]; then
            case $code in 124 | 137) reason="took longer than $left s, $reason" ;; esac
            tail -5 "$folder/$name.log" | tee -a "$report"
            failed+=("$name ($reason)")
        fi
    fi
    printf '```\n' | tee -a "$report"
}

# step NAME ARGUMENTS...: `tools/bench.py step` of the paper's size
step() {
    local name=$1
    shift
    # shellcheck disable=SC2086  # lists of words
    measure "$name" "$python" tools/bench.py step $base "$@" --folder "$folder/$name"
}

# shellcheck disable=SC2086
step stage1 --stage 1 --batch $batches --precision bf16 --compile on off
step stage1_loader --stage 1 --batch $batch --precision bf16 --compile $compile --loader generated --workers $workers
step stage3 --stage 3 --batch $batch --precision bf16 --compile on off
step stage1_precision --stage 1 --batch $small --precision fp32 bf16 --compile $compile
step stage1_memory --stage 1 --batch $batch --precision bf16 --compile $compile --activation-checkpointing none cheap blocks
step stage1_zero --stage 1 --batch $small --precision bf16 --compile $compile --zero 0 1 3
if [ $dry_run = 1 ]; then
    measure gpu_tests "$python" -m pytest -q -m gpu --collect-only
else
    measure gpu_tests env AVFF_REQUIRE_GPU=1 "$python" -m pytest -q -m gpu
fi
# shellcheck disable=SC2086
measure checkpoint "$python" tools/bench.py checkpoint --ranks 1 $checkpoint --folder "$folder/checkpoint"
# shellcheck disable=SC2086
measure loader "$python" tools/bench.py loader --workers 0 $loader --folder "$folder/loader"
# shellcheck disable=SC2086
measure predict "$python" tools/bench.py predict $predict --folder "$folder/predict"

measured=() # what was cut off before its first row has no file
for path in "${for_plan[@]}"; do
    [ ! -f "$path" ] || measured+=("$path")
done
# shellcheck disable=SC2086
measure plan "$python" tools/simulate.py configs/stage1_kinetics.yaml $plan --folder "$folder/plan" ${measured:+--measured "${measured[@]}"}
if [ ${#measured[@]} -gt 0 ]; then
    printf '\nto plan another run: %s tools/simulate.py CONFIG --cluster CLUSTER --measured %s\n' "$python" "${measured[*]}" |
        tee -a "$report"
fi
printf '\n%s: written after %s s\n' "$report" "$SECONDS" | tee -a "$report"
if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}" | tee -a "$report"
    exit 1
fi
