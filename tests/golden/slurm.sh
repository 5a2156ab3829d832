#!/bin/bash
#SBATCH --job-name=hpo-lr-aug-0123abcd
#SBATCH --array=0-3
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gres=gpu:a100:8
#SBATCH --partition=gpu
#SBATCH --time=8:00:00
#SBATCH --account=lab
#SBATCH --chdir="/home/ann/my studies/100%/lr-aug-0123abcd"
#SBATCH --output="/home/ann/my studies/100%%/lr-aug-0123abcd/logs/slurm-%A_%a.log"
#SBATCH --open-mode=append
#SBATCH --export=ALL
#SBATCH --requeue
#SBATCH --signal=B:USR1@1
#SBATCH --cpus-per-gpu=4
#SBATCH --exclusive
#SBATCH --comment="night run #2"

# By default these signals would end the job before Python can handle them.
trap '' USR1 USR2
exec /opt/venv/bin/python -m hpo.cli worker --study lr-aug --data '/data/a b'
