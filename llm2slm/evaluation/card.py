"""The model card: a README.md in the Hub's form, written from a run's configuration and results.

Nothing is measured here: every figure is a field of a result.json, with the conditions under which it was taken.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from llm2slm.evaluation.entries import Entry, entries, metric_keys, metric_name
from llm2slm.evaluation.tables import Cell, cells, columns, conditions, count, seconds

BUILTIN = "builtin"
PIPELINES = {"translation": "translation", "summarization": "summarization"}
"""Task -> the Hub's word for it; any other writes text."""
PAPER = "Bergner et al. 2024, [Think Big, Generate Quick](https://arxiv.org/abs/2402.16844)"


def model_card(
    name: str,
    config: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    *,
    license: str | None = None,
    llm: Mapping[str, Any] | None = None,
) -> str:
    """The text of a card.

    Args:
        name: of the model.
        config: the run's, as `config.yaml` has it.
        results: of the run itself, and others (a benchmark's) that measured this model; as `result.json` has them.
        license: identifier as the Hub knows it (apache-2.0); None: not stated.
        llm: the saved model's record of its LLM; None without one.
    """
    parts = [f"# {name}", _purpose(config, llm), _use(name, config, llm), _data(config, results), _training(results)]
    parts += [_measured(results), _rights(config, license, llm)]
    return f"---\n{_metadata(name, config, results, license)}\n---\n\n" + "\n\n".join(p for p in parts if p) + "\n"


def _metadata(name: str, config: Mapping[str, Any], results: Sequence[Mapping[str, Any]], license: str | None) -> str:
    """What the Hub reads: YAML between the dashes."""
    task = PIPELINES.get(config["task"]["name"], "text-generation")
    corpus = _corpus(config)
    quality = {} if not results else results[0]["systems"][-1].get("quality", {})
    scores = [
        EvalResult(
            task_type=task,
            dataset_type=config["data"].get("path") or corpus,
            dataset_name=corpus,
            dataset_split=_split(results[0]),
            metric_type=key,
            metric_value=round(score["value"], 4),
            metric_config=score["signature"],
        )
        for key, score in quality.items()
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a licence that is not stated is said in the text
        data = ModelCardData(
            library_name="llm2slm",
            pipeline_tag=task,
            license=license,
            base_model=[n for n in _models(config) if _on_hub(n)] or None,
            datasets=[config["data"]["path"]] if config["data"].get("path") else None,
            tags=["llm2slm", "llm-to-slm"],
            model_name=name,
            eval_results=scores or None,
            metrics=sorted(quality) or None,
        )
    return data.to_yaml()


def _models(config: Mapping[str, Any]) -> list[str]:
    """Names of the models that this one is made of."""
    model = config["model"]
    sides = {"llm": ["llm"], "slm": ["slm"]}.get(model["kind"], ["llm", "slm"])
    return [model[side]["name"] for side in sides if model[side].get("name")]


def _on_hub(name: str) -> bool:
    return not name.startswith((BUILTIN, "/", ".", "~")) and not Path(name).is_dir()


def _inside(llm: Mapping[str, Any]) -> bool:
    """Whether the LLM's used part is in the model's own folder."""
    return "origin" in llm


def shown(name: str | None) -> str:
    """A model's name as others may read it: of a local folder its last part alone."""
    if name is None:
        return "a model from random weights"
    return f"`{name}`" if _on_hub(name) or name.startswith(BUILTIN) else f"`{Path(name).name}` (a local folder)"


def _purpose(config: Mapping[str, Any], llm: Mapping[str, Any] | None) -> str:
    model = config["model"]
    if llm is None:
        return f"{shown(next(iter(_models(config)), None))}, trained alone with llm2slm."
    slm = model["slm"]
    start = "random weights" if slm["init"] == "random" or slm["name"] is None else shown(slm["name"])
    inside = _inside(llm)
    layer = "" if llm["layer"] is None else f", layer {llm['layer']}"
    kept = "Its used part is in this folder" if inside else "It is not in this folder"
    return (
        f"A frozen LLM, {shown(llm.get('origin', llm)['name'])}{layer} ({llm['dtype']}), reads the prompt once; a "
        f"projector maps what it reads into a small language model (started from {start}), which alone writes the "
        f"answer. LLM-to-SLM generation after {PAPER}; conditioning `{model['conditioning']}`, tokenizers "
        f"`{model['tokenizers']}`. {kept}; its weights are checked by the fingerprint `{llm['fingerprint']}`."
    )


def _use(name: str, config: Mapping[str, Any], llm: Mapping[str, Any] | None) -> str:
    prefix = config["task"].get("prefix") or ""
    at_hand = llm is None or _inside(llm) or _on_hub(llm["name"]) or llm["name"].startswith(BUILTIN)
    where = "" if at_hand else ', llm="WHERE THE LLM IS"'
    return (
        "## Use\n\n```python\nfrom llm2slm import LLM2SLM\n\n"
        f'model = LLM2SLM.from_pretrained("{name}"{where})\n'
        f'print(model.generate_text(["{prefix}..."], max_new_tokens=64))\n```\n\n'
        "`pip install llm-to-slm`. Prompts are read as in training"
        + (f": with `{prefix}` in front." if prefix else ", without a prefix.")
    )


def _corpus(config: Mapping[str, Any]) -> str:
    data = config["data"]
    if data["name"] == BUILTIN:
        return f"llm2slm built-in {data['corpus']}"
    if data["name"] == "json":
        return Path(data["train"] or data["test"] or "own files").name
    return str(data.get("path") or data["name"])


def _split(result: Mapping[str, Any]) -> str:
    return str(result["systems"][-1].get("notes", {}).get("split", "test"))


def _data(config: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> str:
    data, task = config["data"], config["task"]["name"]
    lines = [f"## Data\n\n{_corpus(config)}, task {task}."]
    report = results[0]["systems"][-1].get("notes", {}).get("data", {}) if results else {}
    for split, facts in report.items():
        over = {key: facts[key] for key in ("overlong_prompts", "overlong_responses", "dropped") if facts.get(key)}
        said = "".join(f", {key.replace('_', ' ')} {value}" for key, value in over.items())
        lines.append(f"* {split}: {facts['rows']} rows{said}")
    limit = f"prompts of at most {data['max_prompt_tokens']} tokens, responses of {data['max_response_tokens']}"
    return "\n".join([*lines, f"* longer texts: {data['overlong']} ({limit})"])


def _training(results: Sequence[Mapping[str, Any]]) -> str:
    if not results:
        return ""
    result = results[0]
    system = result["systems"][-1]
    notes, parameters = system.get("notes", {}), system.get("parameters", {})
    total, trained = (count(parameters.get(key)) for key in ("total", "trainable"))
    facts = [
        f"* {total} parameters, those of the LLM's part included; {trained} trained",
        f"* seed {result['seed']}, on {result['device']}",
        f"* `{result['command']}`",
        f"* commit `{result['git_commit'] or 'unknown'}`, "
        + ", ".join(f"{package} {version}" for package, version in result["versions"].items()),
    ]
    if "optimizer_steps" in notes:
        facts.insert(0, f"* {notes['optimizer_steps']} steps in {seconds(notes.get('training_seconds'))}")
    return "\n".join(["## Training\n", *facts])


def _measured(results: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for result in results:
        found = entries([result])
        if any(entry.system.get("quality") for entry in found):
            parts.append(_quality(result, found))
        if any(entry.row for entry in found):
            parts.append(_speed(result, found))
    return "\n\n".join(parts)


def _quality(result: Mapping[str, Any], found: Sequence[Entry]) -> str:
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
    return f"## Quality\n\nOn the {_split(result)} split.\n\n{_table(heads, rows)}\n\n{named}"


def _speed(result: Mapping[str, Any], found: Sequence[Entry]) -> str:
    keys = ("prefill_ms", "ms_per_token", "total_ms", "speedup", "peak_memory_mb")
    timed = [entry for entry in found if entry.row]
    heads = ["", *(dict(columns(()))[key] for key in keys)]
    rows = [[entry.label, *(_with_range(cell) for cell in cells(entry, ()) if cell.key in keys)] for entry in timed]
    row = timed[0].row
    assert row is not None
    return (
        f"## Speed\n\nAll measured in one process, in turn: {conditions(row)}; on {result['device']}, "
        f"{result['created'][:10]}, commit `{result['git_commit'] or 'unknown'}`.\n\n{_table(heads, rows)}"
    )


def _with_range(cell: Cell) -> str:
    return cell.text + (f" ({cell.remark})" if cell.remark else "")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _rights(config: Mapping[str, Any], license: str | None, llm: Mapping[str, Any] | None) -> str:
    made_of = " and ".join(dict.fromkeys(shown(name) for name in _models(config)))
    own = f"License: {license}." if license else "License: not stated by whoever trained this model."
    rest = f" It is made with {made_of}" if made_of else " It is made"
    with_llm = ", of which the part that reads is included," if llm is not None and _inside(llm) else ""
    return f"## License\n\n{own}{rest}{with_llm} and trained on {_corpus(config)}: their own licenses apply to them."
