#!/usr/bin/env bash
# Submits a night's run to Slurm, from the folder that holds .venv: a job array of shards and, after them, however
# they ended, a job that makes one certificate of what they left. Arguments are for the array, as --array 1-16;
# SBATCH_PARTITION and SBATCH_ACCOUNT count for both.
set -euo pipefail

mkdir -p build
array=$(sbatch --parsable "$@" "$(dirname "$0")/nightly.sbatch")
array=${array%%;*}  # the cluster's name may follow
sbatch --parsable --dependency "afterany:$array" --job-name verified-losses-merge \
    --output "build/slurm-$array-merge.out" \
    --wrap ".venv/bin/verified-losses merge build/nightly/$array --output build/nightly/$array-merged"
