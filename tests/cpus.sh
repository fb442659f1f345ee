#!/usr/bin/env bash
# Runs the tests of numerics under other instruction sets that this machine can imitate: bash tests/cpus.sh PYTHON
#
# Processors round differently, and no test may depend on how one of them rounds. PyTorch, oneDNN (in PyTorch
# and in OpenVINO), MKL and OpenBLAS can be limited by their environment. ONNX Runtime cannot: on x86 it chooses its
# kernels by what the processor reports.
set -uo pipefail
python=$1
cd "$(dirname "$0")/.."
files="tests/test_golden.py tests/test_twin.py tests/test_parity.py tests/test_gates.py tests/test_capacity_set.py
  tests/test_fuse.py tests/test_rounding.py tests/test_quantize.py tests/test_quantize_search.py"
failed=""
run() {
  echo "== $1"
  env "${@:2}" "$python" -m pytest -m "not slow" -n ${WORKERS:-2} --dist loadfile $files || failed="$failed $1"
}
# Not below AVX: with SSE4.1 alone OpenVINO 2026.4 cannot compile int8 graphs, and says "bad combination".
run avx ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX MKL_ENABLE_INSTRUCTIONS=AVX OPENBLAS_CORETYPE=Sandybridge
run avx2 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 OPENBLAS_CORETYPE=Haswell
run avx512 ONEDNN_MAX_CPU_ISA=AVX512_CORE MKL_ENABLE_INSTRUCTIONS=AVX512
[ -z "$failed" ] || { echo "failed under:$failed"; exit 1; }
