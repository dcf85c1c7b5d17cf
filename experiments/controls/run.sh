#!/usr/bin/env bash
# Every baseline and control of one task on real data: each is one command, the same but for one override; then one
# benchmark and one comparison of all. The LLM and the SLM that all start from come from pretrain.sh.
#
#   experiments/controls/run.sh translation DIR [OVERRIDES of train]    (also: summarization, instruction)
#
# DIR holds multi30k/, samsum/ and alpaca/. What is there already is not done again.
set -euo pipefail
task=$1 root=$2
shift 2
case $task in
  translation) data=multi30k rows=12000 ;;
  summarization) data=samsum rows=6000 ;;
  instruction) data=alpaca rows=5000 ;;
  *) echo "$task: translation, summarization or instruction" >&2; exit 2 ;;
esac
out=outputs/controls/$task
common=(experiment=controls data="$data" task="$task" data.root="$root" data.train_size="$rows" "$@")

train() { # NAME OVERRIDES
  [[ -f $out/$1/result.json ]] || llm2slm train "${common[@]}" hydra.run.dir="$out/$1" "${@:2}"
}

[[ -f $out/llm/result.json ]] || llm2slm evaluate run=outputs/controls/llm "${common[@]}" hydra.run.dir="$out/llm"
[[ -f $out/labels/labels.jsonl ]] || llm2slm label "${common[@]}" data.eval_batch_size=200 hydra.run.dir="$out/labels"

# learning rates of few parameters: the best of three (lora: two) on validation, 150 steps of translation
train llm_tuned model=llm
train slm model=slm
train lora model=slm model.slm.tune=lora 'model.slm.peft={r: 8}'
train prompt_tuning model=slm model.slm.tune=prompt optim.lr=0.3
train prefix_tuning model=slm model.slm.tune=prefix optim.lr=0.03
train distilled model=slm data.labels=llm data.labels_from="$out/labels"
train hybrid
train constant model.control=constant
train shuffled model.control=shuffled
train zero model.control=zero
train hybrid_memory model.conditioning=memory

names=(llm_tuned slm lora prompt_tuning prefix_tuning distilled constant shuffled zero hybrid_memory)
[[ -f $out/benchmark/result.json ]] || llm2slm benchmark run="$out/hybrid" benchmark.prompts=16 \
  hydra.run.dir="$out/benchmark" $(for name in "${names[@]}"; do echo "systems.$name=$out/$name"; done)
llm2slm compare runs="[$out/llm,$out/hybrid$(printf ",$out/%s" "${names[@]}")]" baseline="$out/slm" \
  benchmark="$out/benchmark" out="$out/compare"
