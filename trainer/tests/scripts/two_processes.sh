#!/usr/bin/env bash
# Training in two processes over MPI against one process, to 1e-6: trainer/tests/parallel.rs.
# Ends with 3 where there is no MPI to build with and to run, and says so.
set -euo pipefail
cd "$(dirname "$0")/../../.."
for tool in mpicc mpirun; do
  command -v "$tool" >/dev/null || { echo "SKIPPED: $tool is missing (Debian: libopenmpi-dev openmpi-bin libclang-dev)" >&2; exit 3; }
done
# The whole workspace, so that no dependency is built a second time with fewer features.
exec cargo test --workspace --features nadir-trainer/mpi --test parallel -- --nocapture
