#!/usr/bin/env bash
# An LLM of captions, and what it is worth to small models that are trained on many labels, few, or its own: README.md.
#
#   [JOBS=14] [LLM_STEPS=2000] [STEPS=1500] experiments/captions_gpu/run.sh DIR [OVERRIDES of train]
#
# DIR holds multi30k/. JOBS trainings share the GPU. What is there already is not done again.
set -euo pipefail
root=$1
shift
out=outputs/captions
jobs=${JOBS:-14}
data=(data=multi30k task=translation data.root="$root" data.overlong=truncate data.max_prompt_tokens=128
  data.max_response_tokens=96 data.eval_batch_size=250 task.max_new_tokens=96 callbacks.generate_rows=0
  trainer.accelerator=gpu trainer.matmul_precision=high trainer.threads=1 trainer.progress=false optim.name=muon
  optim.label_smoothing=0.1 optim.warmup_steps=200 "$@")
llm=(model_type=t5 d_model=256 d_kv=64 d_ff=1024 num_heads=4 num_layers=4 num_decoder_layers=10 dropout_rate=0.2)
slm=(model_type=t5 d_model=128 d_kv=32 d_ff=512 num_heads=4 num_layers=2 num_decoder_layers=2 dropout_rate=0.2)
llm=("${llm[@]/#/model.llm.config.}")
slm=("${slm[@]/#/model.slm.config.}")
mkdir -p "$out/logs"

started() { # NAME COMMAND: in the background, as soon as there is room
  local name=$1
  shift
  pid=
  [[ -f $out/$name/result.json ]] && return
  while (($(jobs -rp | wc -l) >= jobs)); do wait -n || true; done
  "$@" hydra.run.dir="$out/$name" >"$out/logs/${name//\//_}.log" 2>&1 || echo "$name failed: $out/logs" >&2 &
  pid=$!
}

[[ -d $out/tokenizer ]] || llm2slm tokenizer data=multi30k task=translation data.root="$root" vocab_size=8000 \
  out="$out/tokenizer"
started llm llm2slm train model=llm model.llm.name=null model.llm.init=random model.llm.tokenizer="$out/tokenizer" \
  "${llm[@]}" "${data[@]}" data.batch_tokens=8192 optim.lr=0.002 trainer.max_steps="${LLM_STEPS:-2000}" trainer.val_every=500
teacher=$pid

small=("${slm[@]}" "${data[@]}" model.slm.init=random data.batch_tokens=4096 trainer.max_steps="${STEPS:-1500}"
  trainer.val_every=250)
alone=(llm2slm train model=slm model.slm.tokenizer="$out/tokenizer" "${small[@]}")
guided=(llm2slm train model=llm2slm model.llm.name="$out/llm/model" "${small[@]}")
few=(data.train_size=5000)
own=(data.labels=llm data.labels_from="$out/labels")

# learning rates: the better one of two on validation, of each system that is no control
for rate in 0.002 0.004; do
  started "few/slm_$rate" "${alone[@]}" "${few[@]}" optim.lr=$rate
  started "all/slm_$rate" "${alone[@]}" optim.lr=$rate
done
[[ -z $teacher ]] || wait "$teacher" || true
[[ -f $out/llm/result.json ]] || { echo "the LLM's training failed" >&2; exit 1; }
started labels llm2slm label split=train model.llm.name="$out/llm/model" "${data[@]}" data.eval_batch_size=1000
labels=$pid
for rate in 0.002 0.004; do
  started "all/memory_$rate" "${guided[@]}" model.conditioning=memory optim.lr=$rate
  started "few/memory_$rate" "${guided[@]}" "${few[@]}" model.conditioning=memory optim.lr=$rate
done
for control in none constant shuffled zero; do
  started "few/add_$control" "${guided[@]}" "${few[@]}" model.control=$control optim.lr=0.002
done
[[ -z $labels ]] || wait "$labels" || true
started labels/slm "${alone[@]}" "${own[@]}" optim.lr=0.002
started labels/memory "${guided[@]}" "${own[@]}" model.conditioning=memory optim.lr=0.002
wait

# alone on the device: one interleaved run
[[ -f $out/benchmark/result.json ]] || llm2slm benchmark run="$out/all/memory_0.002" systems.slm="$out/all/slm_0.002" \
  systems.add="$out/few/add_none" benchmark.prompts=8 benchmark.batch=[1,32] benchmark.warmup=1 \
  trainer.accelerator=gpu hydra.run.dir="$out/benchmark"
