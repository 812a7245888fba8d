#!/usr/bin/env bash
# Trains with torchrun, on one node or on several: run the same line on every node.
#
#   launch/torchrun.sh CONFIG [section.key=value ...]
#
#   PROCESSES   processes on this node           (default: its GPUs, or 1 without any)
#   NODES       number of nodes                  (default 1)
#   RENDEZVOUS  host:port of any one of them     (needed when NODES > 1; not 127.0.0.1)
#
# Example, on each of two nodes:  NODES=2 RENDEZVOUS=node01:29500 launch/torchrun.sh configs/stage1_kinetics.yaml
#
# TERM, USR1 or USR2 to this script saves and stops the run; it is enough on one node. torchrun by itself would kill
# the ranks 30 seconds after a TERM, however far a save has come. This script passes the signal to the ranks instead and
# waits for as long as they take: the scheduler that sent it sets the time (SLURM: --signal and KillWait; Kubernetes:
# terminationGracePeriodSeconds). Tell the run how long that is, so that it warns of saves that do not fit:
# engine.grace_seconds=120. Ctrl-C goes to torchrun, with its 30 seconds.
#
# torchrun ends with 0 or 1, whatever the ranks end with; exit.json in the run folder says which code it was and why.
set -euo pipefail

if [ $# -eq 0 ] || [ "$1" = --help ] || [ "$1" = -h ]; then
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
    [ $# -gt 0 ] && exit 0 || exit 2
fi

root=$(cd "$(dirname "$0")/.." && pwd)
[ -x "$root/.venv/bin/python" ] && python=$root/.venv/bin/python || python=python3
gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)
processes=${PROCESSES:-$((gpus > 0 ? gpus : 1))}
nodes=${NODES:-1}

if [ "$nodes" -gt 1 ]; then
    : "${RENDEZVOUS:?set RENDEZVOUS=host:port, the same on all $nodes nodes}"
    rendezvous=(--nnodes "$nodes" --rdzv-backend c10d --rdzv-endpoint "$RENDEZVOUS")
else
    rendezvous=(--standalone)
fi

save_and_stop() { # the ranks are those children of torchrun that were given a RANK
    for child in $(cat "/proc/$torchrun/task/$torchrun/children"); do
        if grep -qz '^RANK=' "/proc/$child/environ"; then kill -USR2 "$child" 2>/dev/null || true; fi
    done
}

# bash has background commands ignore Ctrl-C, and this script has to be in front of one to pass signals on.
env --default-signal=INT \
    "$python" -m torch.distributed.run "${rendezvous[@]}" --nproc-per-node "$processes" -m avff train "$@" &
torchrun=$!
trap save_and_stop TERM USR1 USR2
trap : INT # the terminal sends it to torchrun, too

code=0
while kill -0 "$torchrun" 2>/dev/null; do # a signal ends `wait`, not the run
    wait "$torchrun" && code=0 || code=$?
done
exit "$code"
