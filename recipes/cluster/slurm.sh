#!/usr/bin/env bash
# One run on two machines with eight GPUs each, by Slurm:
#
#     sbatch recipes/cluster/slurm.sh my.yaml output=/shared/runs/mine
#
# Recipe, model, data and run folder must lie where all machines see them. Pre-empted, or out of time, the run finishes
# its step, leaves a checkpoint and is queued again; so it is when a machine fails. It then goes on by itself.
# An error of the run (a broken recipe, an update that is not finite three times in a row) is not queued again.
#
# Run so far: on one CPU, with a stand-in for `srun` that starts the processes. Not run on Slurm or on GPUs yet.
#
#SBATCH --job-name=luffy
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=luffy-%j.log
# --signal: seconds before the end at which the processes are asked to stop: a step and a checkpoint must fit into them.
set -euo pipefail

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT PYTHON=${PYTHON:-python}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}

# Slurm starts the processes itself and so reaches each of them with its signals. One that ends in error ends them all.
status=0
srun --kill-on-bad-exit=1 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
    exec "$PYTHON" -m luffy train "$@"' luffy "$@" || status=$?

if [ "$status" -eq 143 ]; then  # asked to stop, and stopped after a step with a checkpoint
    scontrol requeue "$SLURM_JOB_ID" || true  # Slurm may have done so itself
fi
exit "$status"
