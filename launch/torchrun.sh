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
exec "$python" -m torch.distributed.run "${rendezvous[@]}" --nproc-per-node "$processes" -m avff train "$@"
