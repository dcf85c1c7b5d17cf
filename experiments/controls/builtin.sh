#!/usr/bin/env bash
# The demo with the hybrid's controls: `add` and `cross_attention`, each beside the same with constant, shuffled and zero
# representations, on the built-in task. One comparison at the end, of each hybrid with its own controls first.
#
#   experiments/controls/builtin.sh [OVERRIDES of demo]
set -euo pipefail
out=outputs/controls/builtin
systems=()
for mode in add cross_attention; do
  for control in none constant shuffled zero; do
    name=$mode
    [[ $control == none ]] || name=${mode}_$control
    systems+=("+systems.$name={model: {conditioning: $mode, control: $control}, optim: {lr: 0.0045}}")
  done
done
[[ -f $out/result.json ]] || llm2slm demo "${systems[@]}" hydra.run.dir="$out" "$@"

for mode in add cross_attention; do
  llm2slm compare runs="[$out/$mode,$out/${mode}_constant,$out/${mode}_shuffled,$out/${mode}_zero]" out="$out/compare_$mode"
done
llm2slm compare runs="$out" out="$out/compare"
