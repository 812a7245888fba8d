#!/usr/bin/env bash
# Trains with torchrun, on one node or on several: run the same line on every node, in any order.
#
#   launch/torchrun.sh CONFIG [section.key=value ...]
#
#   PROCESSES     processes on this node               (default: CUDA_VISIBLE_DEVICES or all its GPUs; 1 without any)
#   NODES         number of nodes                      (default 1)
#   RENDEZVOUS    host:port of any one of them         (needed when NODES > 1; not 127.0.0.1)
#   RESTARTS      new starts after crashes, in a row   (default 3; an hour without a crash counts them afresh)
#   WAIT_MINUTES  for nodes that are not there         (default 30; waiting is no crash)
#
# Example, on each of two nodes:  NODES=2 RENDEZVOUS=node01:29500 launch/torchrun.sh configs/stage1_kinetics.yaml
#
# After a crash - a rank that died, a node that was lost - it starts torchrun again, which meets the others at the same
# RENDEZVOUS and goes on from the newest checkpoint. When one node has to be replaced or its script was killed, run
# the line there again: the others wait for it, WAIT_MINUTES at most, also where it is the node of RENDEZVOUS; one that
# replaces that node has to answer to the same host name. Runs that get nowhere end by themselves (faults.max_failed_starts).
#
# TERM, USR1 or USR2 to this script saves and stops the run; it is enough on one node. torchrun by itself would kill
# the ranks 30 seconds after a TERM, however far a save has come. This script passes the signal to the ranks instead and
# waits for as long as they take: the scheduler that sent it sets the time (SLURM: --signal and KillWait; Kubernetes:
# terminationGracePeriodSeconds). Tell the run how long that is, so that it warns of saves that do not fit:
# engine.grace_seconds=120. Ctrl-C goes to torchrun, with its 30 seconds.
#
# Ends with the ranks' code, which torchrun would hide: 0 finished; 75 saved and stopped, run the line again to go on;
# 2 refused, 3 stopped by itself: look at exit.json in the run folder first; anything else: crashed too often.
set -euo pipefail

if [ $# -eq 0 ] || [ "$1" = --help ] || [ "$1" = -h ]; then
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
    [ $# -gt 0 ] && exit 0 || exit 2
fi

root=$(cd "$(dirname "$0")/.." && pwd)
[ -x "$root/.venv/bin/python" ] && python=$root/.venv/bin/python || python=python3
if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then # what a scheduler, or somebody on a shared machine, leaves this node
    gpus=$(tr , '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -cE '^ *([0-9]|GPU-|MIG-)' || true)
else
    gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)
fi
processes=${PROCESSES:-$((gpus > 0 ? gpus : 1))}
nodes=${NODES:-1}

if [ "$nodes" -gt 1 ]; then
    : "${RENDEZVOUS:?set RENDEZVOUS=host:port, the same on all $nodes nodes}"
    rendezvous=(--nnodes "$nodes" --rdzv-backend c10d --rdzv-endpoint "$RENDEZVOUS")
    # When a node comes back to ranks that still run, torchrun starts those again, and they must not meet in a store
    # that holds the keys of the time before.
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
else
    rendezvous=(--standalone)
fi

# What is killed takes along what it started: a rank that outlives its torchrun keeps GPU and run folder from the next.
leashed=(setpriv --pdeathsig KILL)
command -v setpriv >/dev/null || leashed=(env)

codes=$(mktemp)
ranks_began=$codes.began
trap 'rm -f "$codes" "$ranks_began"' EXIT
stopped=''
torchrun=''

ranks_of() { # prints those children of torchrun that were given a RANK
    local child
    for child in $(cat "/proc/$1/task/$1/children" 2>/dev/null); do
        if grep -qz '^RANK=' "/proc/$child/environ" 2>/dev/null; then echo "$child"; fi
    done
}

save_and_stop() {
    local ranks
    stopped=yes
    [ -n "$torchrun" ] || return 0
    ranks=$(ranks_of "$torchrun")
    # shellcheck disable=SC2086
    if [ -n "$ranks" ]; then kill -USR2 $ranks; else kill -TERM "$torchrun"; fi 2>/dev/null || true
}

run_torchrun() { # returns torchrun's code
    local code=0
    : >"$codes"
    rm -f "$ranks_began"
    # bash has background commands ignore Ctrl-C, and this script has to be in front of one to pass signals on.
    AVFF_EXIT_CODE_FILE=$codes "${leashed[@]}" env --default-signal=INT \
        "$python" -m torch.distributed.run "${rendezvous[@]}" --nproc-per-node "$processes" \
        --no-python "${leashed[@]}" bash -c ': >"$0"; exec "$@"' "$ranks_began" "$python" -u -m avff train "$@" &
    torchrun=$!
    while kill -0 "$torchrun" 2>/dev/null; do # a signal ends `wait`, not the run
        wait "$torchrun" && code=0 || code=$?
    done
    torchrun=''
    return "$code"
}

ranks_code() { # prints the code of this node's ranks: that of the cause, before those of the ranks that followed
    local code
    for code in 2 3 130 75 1 4; do
        if grep -qx "$code" "$codes"; then echo "$code" && return; fi
    done
    [ -n "$stopped" ] && echo 75 || echo 1 # killed, or torchrun found no other node
}

waited_for_nodes() { # a torchrun that ends at once is broken; one that finds nobody takes its time
    [ "$nodes" -gt 1 ] && [ ! -e "$ranks_began" ] && [ $((SECONDS - began)) -ge 5 ]
}

trap save_and_stop TERM USR1 USR2
trap 'stopped=yes' INT # the terminal sends it to torchrun, too

allowed=${RESTARTS:-3}
left=$allowed
waiting_since=''
while :; do
    began=$SECONDS
    if run_torchrun "$@"; then exit 0; fi
    code=$(ranks_code)
    # 75 was somebody's wish, on whichever node, or a time limit: whoever set it starts the line again.
    case $code in 2 | 3 | 130 | 75) exit "$code" ;; esac
    if [ -n "$stopped" ]; then exit "$code"; fi
    if waited_for_nodes; then
        : "${waiting_since:=$began}"
        if [ $((SECONDS - waiting_since)) -lt $((60 * ${WAIT_MINUTES:-30})) ]; then
            echo "torchrun.sh: not all nodes are at $RENDEZVOUS; waiting for them, ${WAIT_MINUTES:-30} minutes in all" >&2
            continue
        fi
        echo "torchrun.sh: not all nodes came to $RENDEZVOUS within ${WAIT_MINUTES:-30} minutes" >&2
        exit "$code"
    fi
    waiting_since=''
    if [ $((SECONDS - began)) -gt 3600 ]; then left=$allowed; fi
    if [ "$left" -eq 0 ]; then exit "$code"; fi
    left=$((left - 1))
    echo "torchrun.sh: crashed (code $code), starting again ($left more after this one)" >&2
done
