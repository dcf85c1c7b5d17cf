#!/usr/bin/env bash
# The tokenizer, the LLM and the SLM that every run of run.sh starts from, trained on three real corpora.
#
#   experiments/controls/pretrain.sh DIR [OVERRIDES of train]
#
# DIR holds multi30k/, samsum/ and alpaca/. What is there already is not done again.
set -euo pipefail
root=$1
shift
out=outputs/controls
[[ -d $out/tokenizer ]] || llm2slm tokenizer data=mixture task=mixture data.root="$root" vocab_size=8000 \
  'data.parts=[{name: multi30k}, {name: samsum}, {name: alpaca}]' out="$out/tokenizer"
for kind in llm slm; do
  [[ -f $out/$kind/result.json ]] ||
    llm2slm train experiment=pretrain model="$kind" data.root="$root" hydra.run.dir="$out/$kind" "$@"
done
