"""The model card: a README.md in the Hub's format, from a run's configuration and results.

Every figure is a field of a result.json, with its conditions; nothing is measured here.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from llm2slm.evaluation.report.entries import Entry, entries, metric_keys, metric_name
from llm2slm.evaluation.report.tables import Cell, cells, columns, count, length, seconds
from llm2slm.gguf_files.names import is_gguf, on_hub
from llm2slm.shown_text import counted
from llm2slm.types import Control

BUILTIN, RANDOM, MIXTURE, NONE = "builtin", "random", "mixture", "none"
FOLDERS = re.compile(r"(?<![\w.])(?:~|/)[^\s,\]}'\"]*/(?=[^/\s])")
"""The folders of a local path, which are private."""
PIPELINES = {"translation": "translation", "summarization": "summarization"}
"""Task -> the Hub's pipeline tag; text-generation for all others."""
TRAINED = {
    "prompt": "frozen; only virtual tokens in front of the prompt were trained with llm2slm (prompt tuning)",
    "prefix": "frozen; only a prefix of keys and values was trained with llm2slm (prefix tuning)",
}
"""Training of a model without an LLM, by its `tune`, where the model's weights are frozen."""
REACH = "a projector maps its representations into"
"""How the LLM's representations reach the SLM with most ways of conditioning."""
PAPER = "Bergner et al. 2024, [Think Big, Generate Quick](https://arxiv.org/abs/2402.16844)"


def model_card(
    name: str,
    config: Mapping[str, Any],
    own: Mapping[str, Any] | None,
    others: Sequence[Mapping[str, Any]] = (),
    *,
    source: str | None = None,
    license: str | None = None,
    llm: Mapping[str, Any] | None = None,
    slm: Mapping[str, Any] | None = None,
    reach: str | None = None,
) -> str:
    """The text of a card.

    Args:
        name: of the model, for people.
        source: the folder or Hub id that the code example loads; None: `name`.
        config: the run's, as `config.yaml` has it.
        own: the result of the training, as `result.json` has it; None: unknown.
        others: further results (a benchmark, a demo) that include this model.
        license: the Hub's identifier (apache-2.0); None: not stated.
        llm: the saved model's record of its LLM; None without one.
        slm: transformers config of the saved SLM (or of the whole plain model); None: unknown.
        reach: how the LLM's representations reach the SLM (`Conditioning.in_words`); None: by a projector.
    """
    name = " ".join(name.split())
    system = {} if own is None else own["systems"][0]
    parts = [
        f"# {name}",
        _purpose(config, system, llm, reach),
        _cuts(slm or {}),
        _use(name if source is None else source, config, llm),
        _data(config, system),
    ]
    parts += ["" if own is None else _training(own, system), _measured(own, others), _rights(config, system, license)]
    header = _metadata(name, config, system, license)
    return f"---\n{header}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def _metadata(name: str, config: Mapping[str, Any], system: Mapping[str, Any], license: str | None) -> str:
    """The YAML header, without its delimiters."""
    task = PIPELINES.get(config["task"]["name"], "text-generation")
    corpus = _corpus(config)
    quality = system.get("quality", {})
    scores = [
        EvalResult(
            task_type=task,
            dataset_type=config["data"].get("path") or corpus,
            dataset_name=corpus,
            dataset_split=_split(system),
            metric_type=key.partition(":")[0],  # the model of a BERTScore may be a local path
            metric_value=round(score["value"], 4),
            metric_config=score["signature"],
        )
        for key, score in quality.items()
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the text states that the license is missing
        data = ModelCardData(
            library_name="llm2slm",
            pipeline_tag=task,
            license=license,
            base_model=[_repository(name) for name in _models(config) if _on_hub(name, system)] or None,
            datasets=[config["data"]["path"]] if config["data"].get("path") else None,
            tags=["llm2slm", "llm-to-slm"],
            model_name=name,
            eval_results=scores or None,
            metrics=sorted({key.partition(":")[0] for key in quality}) or None,
        )
    return data.to_yaml()


def _models(config: Mapping[str, Any]) -> list[str]:
    """Names of the pretrained models that this one is built from."""
    model = config["model"]
    sides = {"llm": ["llm"], "slm": ["slm"]}.get(model["kind"], ["llm", "slm"])
    named = [model[side] for side in sides if model[side].get("name")]
    return [side["name"] for side in named if side["init"] != RANDOM]


def _teachers(config: Mapping[str, Any]) -> list[str]:
    """The LLM that it was distilled from, if any."""
    return [config["model"]["llm"]["name"]] if config["optim"].get("distill") else []


def _repository(name: str) -> str:
    """A model's repository on the Hub, without the name of a GGUF file."""
    found = on_hub(name) if is_gguf(name) else None
    return name if found is None else found[0]


def _on_hub(name: str, system: Mapping[str, Any]) -> bool:
    """Whether a model's name is a Hub id; the training records which names were local folders."""
    folders = system.get("notes", {}).get("folders", ())
    return not (name.startswith((BUILTIN, "/", ".", "~")) or name in folders or Path(name).exists())


def shown(name: str, system: Mapping[str, Any]) -> str:
    """A model's name for publication: of a local path the last part alone."""
    known = _on_hub(name, system) or name.startswith(BUILTIN)
    return f"`{name}`" if known else f"`{Path(name).name}` (a local {'file' if is_gguf(name) else 'folder'})"


def _purpose(
    config: Mapping[str, Any], system: Mapping[str, Any], llm: Mapping[str, Any] | None, reach: str | None
) -> str:
    model = config["model"]
    if llm is None:
        side = model["llm" if model["kind"] == "llm" else "slm"]
        how = TRAINED.get(side.get("tune"), "trained alone with llm2slm")
        if not side["name"]:
            return f"A language model from random weights, {how}."
        start = "The shape of " if side["init"] == RANDOM else ""
        return f"{start}{shown(side['name'], system)}, {how}."
    slm = model["slm"]
    start = shown(slm["name"], system) if slm["name"] and slm["init"] != RANDOM else "random weights"
    layer = "" if llm["layer"] is None else f", layer {llm['layer']}"
    encoder = f"{_llm_name(llm, system)}{layer} ({llm['dtype']})"
    if llm.get("quantization"):
        encoder += f", quantized ({llm['quantization'].get('quant_method')})"
    if llm.get("prefix") or llm.get("chat"):
        encoder += ", with its own prompt format (`llm_frame` in config.json)"
    found = (
        " The LLM's encoder is in the folder `llm` if this repository has one; otherwise it is loaded by its name, or "
        f"from `llm=`. Its weights are verified by the fingerprint `{llm['fingerprint']}`."
    )
    return _control(model.get("control", NONE)) + (
        f"A frozen LLM, {encoder}, encodes the prompt once; {reach or REACH} a small language "
        f"model (initialized from {start}), which alone generates. LLM-to-SLM generation after {PAPER}; conditioning "
        f"`{model['conditioning']}`, tokenizers `{model['tokenizers']}`.{'' if _lost(llm) else found}"
    )


def _cuts(config: Mapping[str, Any]) -> str:
    """The blocks and vocabulary that a cut model keeps of its pretrained model, by its config; "" if it is not cut."""
    facts = []
    if blocks := config.get("llm2slm_cut"):
        sides = {"": blocks} if "blocks" in blocks else blocks
        for side, cut in sides.items():
            kept = ", ".join(map(str, cut["blocks"]))
            facts.append(f"{side} blocks {kept} of {cut['depth']}".strip())
    if vocabulary := config.get("llm2slm_vocab"):
        facts.append(f"{vocabulary['kept']:,} of {vocabulary['of']:,} vocabulary entries")
    return f"The small model is cut from its pretrained model; it keeps {' and '.join(facts)}." if facts else ""


def _lost(llm: Mapping[str, Any]) -> bool:
    """Whether the LLM of a hybrid's record has random weights, so that the hybrid cannot be loaded."""
    return bool(llm.get("init") == RANDOM)


def _llm_name(llm: Mapping[str, Any], system: Mapping[str, Any]) -> str:
    """The LLM of a hybrid's record, in words."""
    name = llm.get("origin", llm)["name"]
    if not _lost(llm):
        return shown(name, system)
    return "with random weights" if name is None else f"with the shape of {shown(name, system)} and random weights"


def _control(control: str) -> str:
    """A warning that the model is a control; "" for other hybrids."""
    if control == NONE:
        return ""
    replacement = {
        Control.constant: "constant representations replace",
        Control.shuffled: "the representations of another prompt of the batch replace",
        Control.zero: "zeros replace",
    }[Control(control)]
    return (
        f"**A control (`model.control={control}`) for comparison, not for use: in training and inference, "
        f"{replacement} the LLM's representations of the prompt.** Otherwise it is as follows.\n\n"
    )


def _use(source: str, config: Mapping[str, Any], llm: Mapping[str, Any] | None) -> str:
    if llm is not None and _lost(llm):
        return "## Use\n\nThis model cannot be loaded: its LLM has random weights, which are not saved."
    task = config["task"]
    prefix, suffix = (task.get(key) or "" for key in ("prefix", "suffix"))
    prompt = repr(f"{prefix}...{suffix}")
    if task["name"] == MIXTURE:
        form = "each with the prefix of its task (`llm2slm.data.tasks`)."
    elif suffix:
        form = f"as {prompt}."
    else:
        form = f"with the prefix {prefix!r}." if prefix else "without a prefix."
    return (
        "## Use\n\n```python\nfrom llm2slm import LLM2SLM\n\n"
        f"model = LLM2SLM.from_pretrained({source!r})"
        + ("" if llm is None else "  # llm=... if the LLM has moved")
        + f"\nprint(model.generate_text([{prompt}], max_new_tokens=64))\n```\n\n"
        "The package is llm2slm (distribution: llm-to-slm; `llm2slm` on PyPI is an unrelated project). Prompts "
        f"are formatted as in training: {form}"
    )


def _corpus(config: Mapping[str, Any]) -> str:
    data = config["data"]
    if data["name"] == BUILTIN:
        return f"llm2slm built-in {data['corpus']}"
    if data["name"] == "json":
        return Path(data["train"] or data["test"] or "own files").name
    if data["name"] == "mixture":
        return "a mixture of " + ", ".join(_corpus({"data": part}) for part in data["parts"])
    return str(data.get("path") or data["name"])


def _split(system: Mapping[str, Any]) -> str:
    return str(system.get("notes", {}).get("split", "test"))


def _data(config: Mapping[str, Any], system: Mapping[str, Any]) -> str:
    data, task = config["data"], config["task"]["name"]
    lines = [f"## Data\n\n{_corpus(config)}, task {task}."]
    if data.get("labels", "gold") != "gold":
        lines.append(f"* trained on labels: {data['labels']}")
    for teacher in _teachers(config):
        weight, temperature = config["optim"]["distill"], config["optim"]["distill_temperature"]
        source = f"the next-token distribution of {shown(teacher, system)}"
        lines.append(f"* distilled: also trained on {source} (weight {weight:g}, temperature {temperature:g})")
    for split, facts in system.get("notes", {}).get("data", {}).items():
        keys = ("overlong_prompts", "overlong_responses", "lost_responses", "dropped", "in_train")
        over = {key: facts[key] for key in keys if facts.get(key)}
        counts = "".join(f", {key.replace('_', ' ')} {value}" for key, value in over.items())
        lines.append(f"* {split}: {counted(facts['rows'], 'row')}{counts}")
    limits = f"{data['max_prompt_tokens']} (prompt) or {data['max_response_tokens']} (response)"
    return "\n".join([*lines, f"* texts longer than {limits} tokens: {data['overlong']}"])


def _training(result: Mapping[str, Any], system: Mapping[str, Any]) -> str:
    notes, parameters = system.get("notes", {}), system.get("parameters", {})
    total, trained = (count(parameters.get(key)) for key in ("total", "trainable"))
    reads = ", the LLM's encoder included" if system["kind"] == "llm2slm" else ""
    packages = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
    facts = [
        f"* {counted(notes['optimizer_steps'], 'step')} in {seconds(notes.get('training_seconds'))}",
        f"* {total} parameters{reads}; {trained} trained",
        f"* seed {result['seed']}, on {result['device']}",
        f"* {_code(FOLDERS.sub('', result['command']))}",
        f"* commit `{result['git_commit'] or 'unknown'}`, {packages}",
    ]
    return "\n".join(["## Training\n", *facts])


def _code(text: str) -> str:
    """Inline code, whatever characters it holds."""
    fence = "``" if "`" in text else "`"
    return f"{fence}{' '.join(text.split())}{fence}"


def _measured(own: Mapping[str, Any] | None, others: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for result in [*([] if own is None else [own]), *others]:
        found = entries([result])
        if any(entry.system.get("quality") for entry in found):
            parts.append(_quality(found))
        if any(entry.system.get("speed") for entry in found):
            parts.append(_speed(result, found))
    return "\n\n".join(parts)


def _quality(found: Sequence[Entry]) -> str:
    keys = metric_keys(found)
    heads = ["", *(metric_name(key) for key in keys), "rows"]
    rows: list[list[str]] = []
    signatures: dict[str, str] = {}
    for entry in found:
        quality = entry.system.get("quality", {})
        if not quality:
            continue
        values = {cell.key: cell.text for cell in cells(entry, keys)}
        rows.append([entry.label, *(values[f"quality/{key}"] for key in keys), str(next(iter(quality.values()))["n"])])
        signatures |= {metric_name(key): score["signature"] for key, score in quality.items()}
    named = "\n".join(f"* {key}: `{signature}`" for key, signature in signatures.items())
    return f"## Quality\n\nOn the {_split(found[-1].system)} split.\n\n{_table(heads, rows)}\n\n{named}"


def _speed(result: Mapping[str, Any], found: Sequence[Entry]) -> str:
    keys = ("prefill_ms", "ms_per_token", "total_ms", "speedup", "peak_memory_mb")
    names = dict(columns(()))
    heads = ["", "weights", "batch", "prompt tokens", "response tokens", *(names[key] for key in keys)]
    timed = [(entry, row) for entry in found for row in entry.system.get("speed", [])]
    rows = []
    for entry, row in timed:
        shape = [row["dtype"], str(row["batch"]), length(row["prompt_tokens"]), length(row["response_tokens"])]
        figures = [_with_range(cell) for cell in cells(replace(entry, row=row), ()) if cell.key in keys]
        rows.append([entry.label, *shape, *figures])
    first = timed[0][1]
    rounds = f"medians of {counted(first['repeats'], 'round')} after {first['warmup']} of warm-up, with their range"
    how = f"{first['decoding']} decoding, {counted(first['threads'], 'thread')}"
    return (
        f"## Speed\n\nMeasured in one process, interleaved: {rounds}; {how}; on {result['device']}, "
        f"{result['created'][:10]}, commit `{result['git_commit'] or 'unknown'}`.\n\n{_table(heads, rows)}"
    )


def _with_range(cell: Cell) -> str:
    return cell.text + (f" ({cell.remark})" if cell.remark else "")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _rights(config: Mapping[str, Any], system: Mapping[str, Any], license: str | None) -> str:
    made_of = " and ".join(dict.fromkeys(shown(name, system) for name in [*_models(config), *_teachers(config)]))
    own = f"License: {license}." if license else "License: not stated."
    rest = f" It is made with {made_of}" if made_of else " It is made"
    return f"## License\n\n{own}{rest} and trained on {_corpus(config)}: their own licenses apply to them."
