#!/usr/bin/env bash
# What one NVIDIA GPU says of this code, with a table last:
#
#   benchmarks/gpu.sh tests                                      pytest -m gpu
#   benchmarks/gpu.sh speed [CASE ...]                           times of a step, eager and compiled, and of sampling
#   benchmarks/gpu.sh pictures --data data/cifar10 --seconds 480 pictures of photographs: ten_minutes.py and its flags
#
# OUT is the folder for results (gpu-results), PYTHON the interpreter (python3). TINY=1 takes networks of milliseconds and
# the CPU, to try the script.
set -uo pipefail
script=$(realpath "$0")
root=$(dirname "$(dirname "$script")")
mode=${1:-}
shift || true
out=$(realpath -m "${OUT:-gpu-results}")
python=${PYTHON:-python3}
export PYTHONPATH="$root/src:$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

tests() {
  cd "$root" && "$python" -m pytest -q -n 0 -p no:cacheprovider -m gpu --continue-on-collection-errors --durations=5 --tb=short \
    tests/test_gpu.py tests/test_randomness.py tests/data/test_augment.py tests/test_generator.py tests/data/test_loader.py
}

tiny_sample=(--model.encoder.depth 1 --model.encoder.width 32 --model.encoder.heads 2 --model.decoder.width 32
  --model.decoder.heads 2 --model.projector-hidden 32 --dtype fp32 --device cpu --count 2 --batch-size 2 --sampling.steps 3)

step() { # recipe stage batch size
  local more=(--training.batch-size "$3" --compile both)
  [ -n "${TINY:-}" ] && more=(--tiny --device cpu --seconds 0)
  "$python" -m epg.cli bench "$1" --stages "$2" --json "$out/step-$1-$2.json" "${more[@]}"
}

sample() { # recipe batch size
  local more=(--dtype bf16 --device cuda --compile --batch-size "$2" --count "$2" --rounds 1)
  [ -n "${TINY:-}" ] && more=("${tiny_sample[@]}" --rounds 1)
  "$python" "$root/benchmarks/sample.py" "$1" --sampling.guidance 2 --json "$out/sample-$1.json" "${more[@]}"
}

speed() {
  local cases=("$@")
  [ $# = 0 ] && cases=(small rcm-b xl l-consistency xl-sampling)
  for one in "${cases[@]}"; do
    echo "$one"
    case $one in
      small) step small diffusion 1024 ;;
      photos32) step photos32 diffusion 512 ;;
      rcm-b) step imagenet256-b pretraining 128 ;;
      xl) step imagenet256-xl diffusion 64 ;;
      l-consistency) step imagenet256-l consistency 64 ;;
      xl-sampling) sample imagenet256-xl 32 ;;
      *) echo "speed $one: choose small, photos32, rcm-b, xl, l-consistency, xl-sampling" >&2; return 2 ;;
    esac || echo "speed $one: failed" >&2
  done 2>&1 | grep --line-buffered -v -E "UserWarning|warnings.warn"
}

pictures() {
  local more=()
  [ -n "${TINY:-}" ] && more=(--tiny --device cpu)
  "$python" "$root/benchmarks/ten_minutes.py" --out "$out" "${more[@]}" "$@"
}

case $mode in
  tests | speed | pictures) mkdir -p "$out" && "$mode" "$@" ;;
  *) sed -n '2,9p' "$script" >&2; exit 2 ;;
esac
