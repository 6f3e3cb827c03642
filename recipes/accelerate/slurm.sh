#!/usr/bin/env bash
# A recipe on several machines under Slurm:
#   sbatch recipes/accelerate/slurm.sh NAME [--setting value ...]
# Slurm warns two minutes before the time is up; a checkpoint is saved then, and the same command goes on from it.
#SBATCH --job-name=muscle
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
set -euo pipefail

recipe="$1"
shift
nodes="$(scontrol show hostnames "$SLURM_JOB_NODELIST")"
head_node="${nodes%%$'\n'*}"
export MASTER="$head_node" RECIPE="$recipe"
# What torch's launcher leaves the processes to finish their step and save, instead of 30 seconds.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=110

srun bash -c 'exec accelerate launch \
  --config_file recipes/accelerate/multi_node.yaml \
  --num_machines "$SLURM_NNODES" \
  --num_processes "$((SLURM_NNODES * SLURM_GPUS_ON_NODE))" \
  --machine_rank "$SLURM_NODEID" \
  --main_process_ip "$MASTER" \
  --main_process_port 29500 \
  recipes/run.py --config "$RECIPE" "$@"' muscle "$@"
