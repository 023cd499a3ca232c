#!/bin/bash
# Several nodes on one store: `sbatch infra/schedule/slurm.sh SPEC STORE`; every night: the same lines by `scrontab`.
#
# Each node runs a driver with a Ray of its own, so no port needs to be open between nodes; `--share` has them split the
# shards by leases in the store. Two minutes before the time is up, or when the job is preempted, they finish what they
# have in hand, and the job is queued again to go on from there. (That is so with proctrack/cgroup, which spares the
# drivers' children the signal; with another plugin what they had in hand is done again.) STORE takes the place of the
# spec's. Shards that are still being copied need another name until they are whole: see crontab.
#SBATCH --job-name=gatehouse
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=08:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=gatehouse-%j.log
set -u
spec=$1 store=$2

srun --kill-on-bad-exit=0 gatehouse extract "$spec" --set "store=$store" --share
code=$? # the largest of all nodes, so 6 may hide a 5
case $code in
    0 | 3 | 4) ;;
    5 | 6) exec scontrol requeue "$SLURM_JOB_ID" ;;
    *) exit $code ;;
esac
gatehouse verify --fast "$store" || exit 1
exit $code
