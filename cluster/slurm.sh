#!/bin/bash
# Slurm: one search in one job. Ray starts on every node of the job and ends with the search, which runs on the first.
# Needs: an environment on a shared folder (python3.11 -m venv YOUR-SHARED/venv, then the two `pip install` commands of
#   cluster/README.md), --storage on a folder shared by all nodes (data: on the first node), a driver of 580 or newer.
# Idle: nothing. A job uses its nodes as long as it runs, at most --time.
#   1. sbatch cluster/slurm.sh --space search_spaces/reg.yaml --data YOUR-SHARED/FracAtlas --storage YOUR-SHARED/runs \
#        --name atlas --gpus-per-trial 0.25
#   2. tail -f fracray-*.log
#      after the time limit: sbatch cluster/slurm.sh --storage YOUR-SHARED/runs --name atlas --resume
#   3. python -m fracray.fetch YOUR-SHARED/runs/atlas --to checkpoints; to stop earlier: scancel --name fracray
#SBATCH --job-name=fracray
#SBATCH --output=fracray-%j.log
# The cost limit: number of nodes and time.
#SBATCH --nodes=2
#SBATCH --time=08:00:00
# One Ray per node, on exclusive nodes, because Ray's ports belong to the node. Without GPUs delete --gpus-per-node.
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --mem=0
set -euo pipefail

shared=YOUR-SHARED  # a folder shared by all nodes; `check` reads it here
source "$shared/venv/bin/activate"

export RAY_TMPDIR="/tmp/ray-$SLURM_JOB_ID"  # on each node's own disk; short, because Ray's sockets are in it

# Who has the token can run any code in the job: every job has its own, readable only by its owner, deleted at the end.
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH="$shared/.ray-token-$SLURM_JOB_ID"
trap 'rm -f "$RAY_AUTH_TOKEN_PATH"; srun rm -rf "$RAY_TMPDIR"' EXIT
(umask 077; python -c 'import secrets; print(secrets.token_hex(32))' > "$RAY_AUTH_TOKEN_PATH")

export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300  # seconds for all nodes to start; 30, the default, may be too few
# Since Slurm 22.05 srun does not read this from the job.
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"

# This script runs on the job's first node, which is Ray's head. Its address and not its name: on the node itself the
# name may mean loopback. If the first of several addresses is the wrong one: sbatch --export=ALL,HEAD_IP=...
head_ip=${HEAD_IP:-$(hostname -I | cut -d ' ' -f 1)}

# The dashboard listens only on the head. Ray's other ports need the token and are open in the cluster's network.
srun --kill-on-bad-exit=1 ray symmetric-run --address "$head_ip:6379" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --dashboard-host=127.0.0.1 \
    -- python -m fracray.tune --address auto "$@"
