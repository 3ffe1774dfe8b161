#!/bin/sh
# Work the queue of GPU jobs off for so many minutes: sh benchmarks/gpu/run.sh MINUTES [DATA] [OUT]
# DATA holds what `synthaug prepare` wrote; OUT gets everything, and the same command goes on where it stopped.
set -eu
cd "$(dirname "$0")/../.."
PYTHONPATH="$PWD" exec "${PYTHON:-python3}" benchmarks/gpu/work_off.py "$1" --data "${2:-prepared}" --out "${3:-gpu_results}" ${MORE:-}
