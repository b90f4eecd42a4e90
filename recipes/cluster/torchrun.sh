#!/usr/bin/env bash
# One run over several machines, by torchrun. Start it on every machine, each with its own NODE, from 0:
#
#     NODES=2 NODE=0 FIRST=10.0.0.1 bash recipes/cluster/torchrun.sh my.yaml output=runs/mine      # on 10.0.0.1
#     NODES=2 NODE=1 FIRST=10.0.0.1 bash recipes/cluster/torchrun.sh my.yaml output=runs/mine      # on the other
#
# Recipe, model and data must be readable on every machine. The run folder is read and written on machine 0 alone, so no
# shared file system is needed as long as machine 0 stays the same. When one machine dies, the run ends on all of them;
# the same commands go on from the last checkpoint.
#
# Run so far: two "machines" on loopback, CPU. Not run on GPUs yet.
set -euo pipefail

NODES=${NODES:-1}             # how many machines
NODE=${NODE:-0}               # which one this is
FIRST=${FIRST:-127.0.0.1}     # name or address of machine 0, as the others reach it
PORT=${PORT:-29500}           # a free port of machine 0
PER_NODE=${PER_NODE:-auto}    # processes a machine; auto: one for each GPU, or for each core where there is none
LAST_STEP=${LAST_STEP:-300}   # seconds that a step, and the checkpoint after it, may take once the run is to stop
PYTHON=${PYTHON:-python}

exec "$PYTHON" -m torch.distributed.run --nnodes "$NODES" --node-rank "$NODE" --nproc-per-node "$PER_NODE" \
    --master-addr "$FIRST" --master-port "$PORT" --shutdown-timeout "$LAST_STEP" -m luffy train "$@"
