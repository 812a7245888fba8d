#!/usr/bin/env bash
# Trains as a plain SLURM job, without submitit: one task per rank, queued again until the run is done.
#
#   sbatch [options of sbatch] launch/sbatch.sh CONFIG [section.key=value ...]
#
# Example, from the project's folder, which all nodes have to see:
#
#   sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=12 --mem=0 --time=24:00:00 \
#       launch/sbatch.sh configs/stage1_kinetics.yaml
#
# 120 seconds before the time limit, and when the job is preempted, all ranks save and end with 75; this script then
# queues the job again, and it goes on at the next step in the same run folder. The same after a crash or a lost node.
# It does not after 0 (finished), 2 (refused), 3 (training stopped itself) and `scancel`, nor where the config cannot be
# read, nor after three crashes in a row before training began: launch/requeue.py decides, from how the starts of the job
# ended, which RUN/jobs/JOBID_ends.jsonl lists. Runs that begin and get nowhere end with 3.
#
# Saving takes longer than 120 s? sbatch --signal=USR2@300 ... launch/sbatch.sh CONFIG engine.grace_seconds=300
# Watch it with `tail -f slurm-JOBID.out`. Lines of your cluster, such as `module load`, have their place below, in a
# copy of this file. Options given to sbatch win over these:
#SBATCH --job-name=avff
#SBATCH --signal=USR2@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

if [ -z "${SLURM_JOB_ID:-}" ] || [ $# -eq 0 ]; then
    sed -n '2,/^#SBATCH/{/^#SBATCH/!s/^# \{0,1\}//p}' "$0"
    [ "${1:-}" = --help ] || [ "${1:-}" = -h ] && exit 0 || exit 2
fi

# ---- lines of your cluster: module load ..., export NCCL_SOCKET_IFNAME=..., source .../activate ----

[ -x .venv/bin/python ] && python=.venv/bin/python || python=python3

# Ranks write their codes here: srun tells the highest of all, which may be that of a rank that it had to kill.
export AVFF_EXIT_CODE_FILE=$PWD/slurm-$SLURM_JOB_ID.codes
: >"$AVFF_EXIT_CODE_FILE"
trap 'rm -f "$AVFF_EXIT_CODE_FILE"' EXIT
trap 'exit 143' TERM # scancel, or too late: SLURM has decided what becomes of the job

folder_of='import sys; from avff.config import load_config; print(load_config(sys.argv[1], sys.argv[2:]).run_dir)'
run_dir=$("$python" -c "$folder_of" "$@" 2>/dev/null) || run_dir=''

limits=("engine.grace_seconds=120")
end=$(date -d "$(squeue --noheader --jobs "$SLURM_JOB_ID" --format=%e)" +%s 2>/dev/null) || end=''
if [ -n "$end" ] && [ $((end - $(date +%s))) -ge 180 ]; then # where the signal would be late for a save, this is not
    left=$((end - $(date +%s) - 30)) # seconds, less some for processes to end
    limits+=("engine.time_limit_minutes=$(printf '%d.%02d' $((left / 60)) $((left % 60 * 100 / 60)))")
fi

# When a rank has ended, the others end by themselves, or are ended after a minute. To be ended at once, which is what
# --kill-on-bad-exit does, loses now and then what the first one printed: the reason.
srun --kill-on-bad-exit=0 --wait=60 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    "$python" -u -m avff train "$1" "${limits[@]}" "${@:2}"
code=$?
if [ -z "$run_dir" ]; then # the reason was printed above, by a rank that noted 2; srun may tell of one that it had to end
    exit "$(grep -xm1 2 "$AVFF_EXIT_CODE_FILE" || echo "$code")"
fi
mkdir -p "$run_dir/jobs"
"$python" -m launch.requeue "$code" "$SLURM_JOB_ID" "$run_dir/jobs" "$run_dir"
