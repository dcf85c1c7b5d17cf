"""The command line: help, user errors, single runs. The commands themselves are stubs."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

import pytest
import yaml
from command_line import mistake, python, replace_command
from omegaconf import OmegaConf
from sampling import representatives

from llm2slm import runs
from llm2slm.cli import VERBS, main
from llm2slm.cli.help import shown
from llm2slm.cli.reads_verbs import TABLES
from llm2slm.cli.schema import SCHEMAS, keys, nearest_keys
from llm2slm.config import GenerateConfig, JudgeConfig, RunConfig
from llm2slm.types import Labels, UserError

# Help


@pytest.mark.parametrize(
    "arguments",
    representatives(
        [["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)],
        [["--help"], ["--version"], ["train", "--help"], ["generate", "--help"], ["judge", "--help"]],
    ),
)
def test_help_imports_nothing_heavy(arguments):
    heavy = "'torch', 'hydra', 'omegaconf', 'transformers', 'lightning', 'datasets', 'rich'"
    code = (
        f"import sys; from llm2slm.cli import main; code = main({arguments}); "
        f"print([name for name in ({heavy}) if name in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    done = python("-c", code)
    assert (done.returncode, done.stderr.strip()) == (0, "[]")
    assert done.stdout.strip()


def test_overview_lists_every_verb_on_a_line(capsys):
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    for verb, text in VERBS.items():
        assert any(line.split(maxsplit=1) == [verb, text] for line in lines)
    assert VERBS.keys() == SCHEMAS.keys()


def test_details_show_groups_keys_and_help(capsys, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("name: json\n")
    assert main(["train", "--help", "--config-dir", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    names = set(re.findall(r"^    (\S+?)=", text, re.M))
    assert {"optim.lr", "data.train", "trainer.max_steps", "model.conditioning"} <= names
    assert not {"exact_rows", "quality_kept", "split"} & names
    assert "model/conditioning  add, cross_attention, kv, memory, none, prepend, replace" in text
    assert "json, mine, mixture, multi30k" in " ".join(text.split())
    assert "add | cross_attention | kv | memory | none | prepend | replace" in " ".join(text.split())
    assert "trainer.max_steps=1000                Optimizer steps." in text
    main(["dashboard", "--help"])
    assert "GROUP=OPTION):" not in capsys.readouterr().out
    main(["generate", "--help"])
    generate = capsys.readouterr().out
    assert "logger              csv, mlflow, several, tensorboard, wandb" in generate and "model/slm" not in generate
    assert "prompt=null" in generate


@pytest.mark.parametrize("verb", VERBS)
def test_details_show_the_defaults_that_the_verb_starts_from(capsys, verb):
    """The values that Hydra composes from the verb's file, without its groups, for the keys that the verb reads."""
    path = Path(__file__).parents[1] / "conf" / f"{verb}.yaml"
    own = OmegaConf.merge(OmegaConf.structured(SCHEMAS[verb]), OmegaConf.masked_copy(
        OmegaConf.load(path), [field.name for field in dataclasses.fields(SCHEMAS[verb])]))  # fmt: skip
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    rows = TABLES.get(SCHEMAS[verb], {})
    for key in keys(SCHEMAS[verb]).values():
        read = key.name not in rows or any(verb in each.verbs for each in rows[key.name])
        if not read:
            assert not re.search(rf"^    {re.escape(key.name)}=", text, re.M), key.name
        elif not key.section:
            value = OmegaConf.select(own, key.name)
            value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            assert re.search(rf"^    {re.escape(f'{key.name}={shown(value)}')}(  |$)", text, re.M), key.name


def test_every_key_has_a_help_text():
    assert len(keys(RunConfig)) > 100
    bare = {
        name for schema in SCHEMAS.values() for name, key in keys(schema).items() if not key.section | bool(key.help)
    }
    assert bare == set()


def test_the_help_of_a_key_shows_null_and_lists_choices_once(capsys):
    assert main(["train", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "model.llm.layer=null Layer" in text and "null: the last layer of an encoder" in text
    assert "data.overlong=error Treatment" in text and text.count("error | truncate | drop | split") == 1
    assert "None" not in text


def test_inherited_fields_keep_their_help_text():
    assert keys(RunConfig)["model.llm.revision"].help == "Hub branch, tag or commit."
    assert keys(RunConfig)["model.llm.layer"].help.startswith("Layer whose output represents the prompt")


# User errors

WRONG = {
    "verb": (["trian"], "unknown verb 'trian'; did you mean train?"),
    "verb far from any": (["xyzzy"], "unknown verb 'xyzzy'; one of: train, evaluate"),
    "key": (["train", "trainer.max_step=3"], "unknown key 'trainer.max_step'; did you mean trainer.max_steps?"),
    "key without section": (["train", "max_steps=3"], "unknown key 'max_steps'; did you mean trainer.max_steps"),
    "key of the wrong section": (["train", "model.lr=1"], "unknown key 'model.lr'; did you mean optim.lr"),
    "key far from any": (["train", "foo.bar=1"], "unknown key 'foo.bar'; keys start with one of: model, data, task"),
    "new key": (["train", "+foo=1"], "unknown key 'foo'"),
    "key of another verb": (["generate", "data=json"], "unknown key 'data'; keys start with one of: run, llm, model, "),
    "option": (["train", "model=llm2slmm"], "no option model=llm2slmm; did you mean model=llm2slm? model has: llm, "),
    "nested option": (["train", "model/slm=t5mini"], "no option model/slm=t5mini; did you mean model/slm=t5_mini? "),
    "experiment": (["train", "experiment=nope"], "no option experiment=nope; "),
    "integer": (["train", "trainer.max_steps=abc"], "trainer.max_steps=abc: expected an integer"),
    "fraction": (["train", "seed=1.5"], "seed=1.5: expected an integer"),
    "null": (["train", "seed=null"], "seed=null: expected an integer"),
    "number": (["train", "optim.lr=fast"], "optim.lr=fast: expected a number"),
    "optional": (["train", "data.train_size=many"], "data.train_size=many: expected an integer or null"),
    "truth": (["train", "trainer.progress=maybe"], "trainer.progress=maybe: expected true or false"),
    "enum": (
        ["train", "model.conditioning=ad"],
        "model.conditioning=ad: expected one of add, cross_attention, kv, memory, none, prepend, replace",
    ),
    "list": (["train", "benchmark.batch=[1,x]"], "benchmark.batch=[1, 'x']: expected a list of integers, [A,B]"),
    "section": (["train", "optim=adam"], "optim=adam: optim is a section; set optim.KEY=VALUE"),
    "group by its dots": (
        ["train", "model.llm=t5_base"],
        "model.llm=t5_base: model.llm is a section; choose model/llm=OPTION or set model.llm.KEY=VALUE",
    ),
    "syntax": (["train", "trainer.max_steps=[1"], "override 'trainer.max_steps=[1' is malformed"),
    "no value": (["train", "seed"], "override 'seed' is malformed; write KEY=VALUE"),
    "deleted": (["train", "~data.name"], "~data.name: data.name cannot be deleted"),
    "several values": (["train", "seed=1,2"], "seed=1,2: several values; add -m to run each of them"),
    "interpolation": (["train", "seed=${foo}"], "Interpolation key 'foo' not found"),
    "hydra's key": (["train", "hydra.foo=1"], "Could not override 'hydra.foo'"),
    "flag": (["train", "--foo"], "unrecognized arguments: --foo"),
    "config dir": (["train", "--config-dir", "nowhere"], "--config-dir nowhere: no such folder"),
    "config dir in help": (["train", "--help", "--config-dir", "nowhere"], "--config-dir nowhere: no such folder"),
    "config name": (["train", "-cn", "nope"], "--config-name nope: no such config"),
    "swept key": (["train", "-m", "seeds=1,2"], "unknown key 'seeds'; did you mean seed?"),
    "swept value": (["train", "-m", "seed=1,2", "model.conditioning=add,ad"], "model.conditioning=ad: expected one of"),
    "swept option": (["train", "-m", "model/slm=t5_mini,gpt2_mni"], "no option model/slm=gpt2_mni; did you mean"),
    "swept list": (["train", "-m", "task.metrics=bleu,chrf"], "task.metrics=bleu: expected a list of texts"),
    "endless sweep": (["train", "-m", "optim.lr=interval(0,1)"], "an interval needs hydra/sweeper=optuna"),
    "sweep of ddp": (
        ["train", "-m", "hydra/launcher=basic", "seed=1,2", "trainer=ddp_cpu"],
        "-m hydra/launcher=basic with trainer.dev",
    ),
    "one job of ddp": (
        ["train", "-m", "hydra/launcher=basic", "trainer=cpu,ddp_cpu"],
        "-m hydra/launcher=basic with ",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=list(WRONG))
def test_mistakes_are_reported_on_one_line_before_anything_runs(calls, capsys, tmp_path, arguments, message):
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"llm2slm: error: {message}")
    assert shown.err.count("\n") == 1
    assert shown.out == ""
    assert calls == []
    assert list(tmp_path.iterdir()) == []


def refusing(config, folder):
    raise UserError("no")


def test_a_mistake_that_a_command_reports_leaves_no_empty_folders(calls, capsys, tmp_path, monkeypatch):
    """Hydra makes the run directory before the command is called."""
    replace_command(monkeypatch, "train", refusing)
    assert main(["train"]) == 2
    assert main(["train", "hydra.run.dir=a/b/c"]) == 2
    assert main(["encode", "run=RUN"]) == 2
    assert list(tmp_path.iterdir()) == []
    # existing folders remain, and so do folders with files
    (tmp_path / "a").mkdir()
    (tmp_path / "own").mkdir()
    assert main(["train", "hydra.run.dir=a/b/c"]) == 2
    assert main(["train", "hydra.run.dir=own"]) == 2
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["a", "own"]

    def writing(config, folder):
        (folder / "rows").write_text("some")
        raise UserError("no")

    replace_command(monkeypatch, "train", writing)
    assert main(["train", "hydra.run.dir=a/b/c"]) == 2
    assert (tmp_path / "a/b/c/rows").read_text() == "some"
    replace_command(monkeypatch, "train", lambda config, folder: None)
    assert main(["train", "hydra.run.dir=done"]) == 0 and (tmp_path / "done").is_dir()


def test_mistakes_are_reported_before_torch_is_imported():
    code = (
        "import sys; from llm2slm.cli import main; code = main(['train', '-m', 'seed=1,x']); "
        "print('torch' in sys.modules, 'transformers' in sys.modules); sys.exit(code)"
    )
    done = python("-c", code)
    assert (done.returncode, done.stdout.strip()) == (2, "False False")
    assert done.stderr == "llm2slm: error: seed=x: expected an integer\n"


def test_nearest_prefers_the_same_section():
    names = ["optim.lr", "model.slm.name", "model.llm.name", "logger.name"]
    assert nearest_keys("logger.nam", names) == ["logger.name"]
    assert set(nearest_keys("name", names)) == {"model.slm.name", "model.llm.name", "logger.name"}
    assert nearest_keys("zzzz", names) == []


# A single run


def test_run_is_called_with_a_typed_configuration_and_hydras_folder(calls, tmp_path):
    arguments = ["train", "model/conditioning=memory", "trainer=cpu", "optim.betas=[0.8,0.9]", "hydra.run.dir=a b/c=d"]
    assert main(arguments) == 0
    [(config, folder)] = calls
    assert type(config) is RunConfig
    assert config.model.conditioning == "memory"
    assert config.trainer.accelerator == "cpu"
    assert config.optim.betas == (0.8, 0.9)
    assert config.model.slm.config["d_model"] == 64
    assert type(config.model.slm.config) is dict
    assert folder == tmp_path / "a b" / "c=d"
    assert folder.is_dir()
    assert Path.cwd() == tmp_path


def test_value_and_group_choose_the_same_conditioning(calls):
    assert main(["train", "model/conditioning=replace", "hydra.run.dir=a"]) == 0
    assert main(["train", "model.conditioning=replace", "hydra.run.dir=b"]) == 0
    assert calls[0][0] == calls[1][0]
    assert calls[0][0].model.conditioning == "replace"


@pytest.mark.slow
def test_default_folders_of_all_verbs(calls, tmp_path):
    for verb in VERBS:
        assert main([verb]) == 0
    folders = dict(zip(VERBS, (folder.relative_to(tmp_path) for _, folder in calls), strict=True))
    assert folders["demo"] == Path("outputs/demo")
    for verb in ("train", "evaluate", "benchmark"):
        assert folders[verb].parts[:2] == ("outputs", verb)
        assert len(folders[verb].parts) == 4  # date, time
    assert folders["generate"] == folders["judge"] == folders["report"] == folders["tokenizer"] == Path()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]  # no .hydra, no log


def test_train_run_resumes_in_the_folder_of_the_run_by_default(calls, tmp_path):
    runs.write_config(tmp_path / "runs/a", RunConfig())
    assert main(["train", "run=runs/a"]) == 0
    assert main(["train", "run=runs/a", "hydra.run.dir=elsewhere"]) == 0
    assert [folder for _, folder in calls] == [tmp_path / "runs/a", tmp_path / "elsewhere"]


@pytest.mark.parametrize(
    "text",
    representatives(
        [
            "no",
            "12",
            "1e5",
            "a, b",
            "Is {this} [ok]: x = ${y}?",
            'it\'s "so"',
            "two\nlines",
            "back\\slash\\",
            "",
            " a ",
            "ü%",
        ],
        ["1e5", "Is {this} [ok]: x = ${y}?", "two\nlines", "ü%"],
    ),
)
def test_a_prompt_is_passed_verbatim(calls, text):
    assert main(["generate", f"prompt={text}"]) == 0
    assert type(calls[0][0]) is GenerateConfig
    assert calls[0][0].prompt == text


@pytest.mark.parametrize(
    "text", representatives(["translate English to German: ", "a, b", "1e5", "on", "x=y,z"], ["a, b", "x=y,z"])
)
def test_text_needs_no_quotes_except_those_of_the_shell(calls, text):
    assert main(["train", f"task.prefix={text}", "model.llm.revision=null"]) == 0
    assert calls[0][0].task.prefix.strip() == text.strip()
    assert calls[0][0].model.llm.revision is None


def test_lists_need_no_brackets_and_open_dicts_need_no_plus(calls):
    arguments = ["train", "task.metrics=bleu,chrf", "model.slm.config.n_layer=3", "model.slm.config.d_model=32"]
    assert main(arguments) == 0
    config = calls[0][0]
    assert config.task.metrics == ["bleu", "chrf"]
    assert (config.model.slm.config["n_layer"], config.model.slm.config["d_model"]) == (3, 32)
    assert main(["report", "runs=outputs/a,outputs/b"]) == 0
    assert main(["report", "runs=outputs/a"]) == 0
    assert [c.runs for c, _ in calls[1:]] == [["outputs/a", "outputs/b"], ["outputs/a"]]


@pytest.mark.parametrize("verb", ["compare", "report", "judge"])
def test_runs_may_be_given_as_positional_arguments(calls, verb):
    """With any name; the folder of a sweep's job looks like an override."""
    Path("swept/seed=1,lr=2").mkdir(parents=True)
    words = ["outputs/a b", "out=there", "swept/seed=1,lr=2", "it's", "1.50"]
    assert main([verb, *words]) == 0
    (config, _), *_ = calls
    assert (config.runs, config.out) == (["outputs/a b", "swept/seed=1,lr=2", "it's", "1.50"], "there")


def test_positional_runs_are_shown(calls, capsys):
    assert main(["compare", "--cfg", "job", "a", "b/c"]) == 0
    assert "runs:\n- a\n- b/c\n" in capsys.readouterr().out
    for verb in ("compare", "report", "judge"):
        assert main([verb, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"usage: llm2slm {verb} RUN [RUN ...] [KEY=VALUE ...]")


def test_positional_runs_and_the_key_runs_are_refused_together(calls, capsys):
    assert main(["compare", "a", "runs=[b]"]) == 2
    assert mistake(capsys) == "runs are given twice, as a and as runs=[b]; give all of them in one way"
    assert main(["train", "a"]) == 2  # train takes no positional runs
    assert "override 'a' is malformed" in mistake(capsys)
    assert not calls


def test_a_dict_is_given_by_single_keys_or_as_a_whole(calls):
    """A whole dict is merged into the values of the chosen group."""
    arguments = ["train", "model.slm.config={n_layer: 3, d_model: 32}", "model.llm.quantization={quant_method: quanto}"]
    assert main(arguments) == 0
    config = calls[0][0]
    assert (config.model.slm.config["n_layer"], config.model.slm.config["d_model"]) == (3, 32)
    assert config.model.slm.config["model_type"] == "t5"
    assert config.model.llm.quantization == {"quant_method": "quanto"}


@pytest.mark.slow
def test_a_key_may_have_the_name_of_another_verbs_group(calls, capsys, tmp_path):
    """`model` is a group of train, and a text for judge; a sweep runs over its values."""
    names = "runs=[a]", "endpoint=http://h/v1"
    assert main(["judge", *names, "model=Org/Some-Model:7b", "parameters={a: 1, b: null}", "parameters.c=x"]) == 0
    assert type(calls[0][0]) is JudgeConfig
    assert (calls[0][0].model, calls[0][0].parameters) == ("Org/Some-Model:7b", {"a": 1, "b": None, "c": "x"})
    assert main(["judge", "-m", *names, "model=slm,llm", f"hydra.sweep.dir={tmp_path}/sweep"]) == 0
    assert [config.model for config, _ in calls[1:]] == ["slm", "llm"]
    assert main(["judge", *names, "model/llm=t5_base"]) == 2
    assert "unknown key 'model/llm'" in capsys.readouterr().err
    assert main(["judge", "--help"]) == 0
    groups = capsys.readouterr().out.partition("GROUP=OPTION):")[2].partition("\n\n")[0]
    assert [line.split()[0] for line in groups.splitlines() if line.strip()] == ["logger"]


def test_config_dir_adds_the_users_configs(calls, tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "quick.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model/slm: gpt2_mini\nseed: 7\n"
    )
    (tmp_path / "mine" / "own.yaml").write_text("defaults:\n  - train\n  - _self_\nseed: 8\n")
    assert main(["train", "--config-dir", "mine", "experiment=quick"]) == 0
    assert main(["train", "--config-dir", "mine", "-cn", "own"]) == 0
    assert [config.seed for config, _ in calls] == [7, 8]
    assert calls[0][0].model.slm.config["model_type"] == "gpt2"


def test_options_of_hydra_are_supported(calls, capsys):
    assert main(["train", "--cfg", "job", "seed=5", "-p", "trainer"]) == 0
    assert yaml.safe_load(capsys.readouterr().out.partition("\n")[2])["max_steps"] == 1000
    assert main(["train", "--cfg", "job", "sed=5"]) == 2
    assert calls == []


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (UserError("data.csv, line 3: no column de"), 2, "llm2slm: error: data.csv, line 3: no column de\n"),
        (KeyboardInterrupt(), 130, "llm2slm: interrupted\n"),
    ],
)
def test_user_errors_and_interrupts_are_shown_on_one_line(calls, capsys, monkeypatch, error, code, shown):
    def run(config, folder):
        raise error

    replace_command(monkeypatch, "train", run)
    assert main(["train"]) == code
    assert capsys.readouterr().err == shown


def test_an_internal_error_keeps_its_traceback(calls, capsys, monkeypatch):
    def run(config, folder):
        return 1 / 0

    replace_command(monkeypatch, "train", run)
    assert main(["train"]) == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "return 1 / 0" in shown
    assert shown.strip().endswith("ZeroDivisionError: division by zero")


# The configuration of a run as the base of evaluate and benchmark


def test_evaluate_starts_from_the_runs_configuration(calls):
    trained = RunConfig(seed=9)
    trained.data.name, trained.data.root, trained.task.name = "samsum", "corpora", "summarization"
    trained.optim.lr = 0.5
    runs.write_config(Path("run"), trained)
    assert main(["evaluate", "run=run", "split=validation"]) == 0
    assert main(["evaluate", "run=run", "data=multi30k", "seed=1", "task.num_beams=4"]) == 0
    first, second = (config for config, _ in calls)
    assert (first.data, first.task.name, first.seed, first.optim.lr) == (trained.data, "summarization", 9, 0.5)
    assert (first.run, first.split) == ("run", "validation")
    assert (second.data.name, second.data.root, second.seed) == ("multi30k", None, 1)
    assert (second.task.name, second.task.num_beams, second.split) == ("summarization", 4, "test")


def test_labels_of_an_llm_are_references_only_if_requested(calls):
    """A run that was trained on labels of an LLM is evaluated on the corpus' references, on its training split too."""
    trained = RunConfig()
    trained.data.labels, trained.data.labels_from = Labels.llm, "labels"
    runs.write_config(Path("run"), trained)
    assert main(["evaluate", "run=run", "split=train"]) == 0
    assert main(["evaluate", "run=run", "split=train", "data.labels=llm"]) == 0
    assert main(["train", "run=run"]) == 0
    assert [config.data.labels for config, _ in calls[:2]] == [Labels.gold, Labels.llm]


@pytest.mark.parametrize("verb", representatives(["evaluate", "label", "benchmark"], ["evaluate"]))
def test_overrides_cannot_change_a_trained_model(calls, capsys, verb):
    """Otherwise the result would state the quality of a hybrid without its control."""
    runs.write_config(Path("run"), RunConfig())
    assert main([verb, "run=run", "model.control=shuffled"]) == 2
    message = "model.control=shuffled: the model of run=run was trained with none, and is used as it is; leave it out"
    assert capsys.readouterr().err.startswith(f"llm2slm: error: {message}")
    assert main([verb, "run=run", "model.control=none", "model/conditioning=add"]) == 0
    assert len(calls) == 1
    capsys.readouterr()
    for group, key, was in [
        ("model=slm", "model.kind=slm", "llm2slm"),
        ("model.llm.config={num_layers: 1}", "model.llm.config.num_layers=1", "None"),
        ("model/projector=linear", "model.projector.hidden=0", "None"),
    ]:
        assert main([verb, "run=run", group]) == 2
        assert mistake(capsys).startswith(f"{key}: the model of run=run was trained with {was}, and is used as it is")
    assert len(calls) == 1


def test_a_stored_configuration_with_an_unknown_key_is_reported(calls, capsys):
    runs.write_config(Path("run"), RunConfig())
    text = Path("run/config.yaml").read_text().replace("batch_tokens:", "batch_token:")
    Path("run/config.yaml").write_text(text)
    assert main(["evaluate", "run=run"]) == 2
    message = "run/config.yaml: unknown key 'data.batch_token'; did you mean data.batch_tokens?"
    assert capsys.readouterr().err == f"llm2slm: error: {message}\n"


# Several processes


def test_ranks_that_lightning_starts_get_the_same_folder(calls, monkeypatch, tmp_path):
    """Lightning starts rank 1 with the arguments of this command, followed by the run's folder."""
    from lightning.fabric.strategies.launchers.subprocess_script import _hydra_subprocess_cmd

    arguments = ["train", "seed=3", "task.prefix=a: b, c", "model.slm.config.n=5", "trainer=ddp_cpu"]
    started = []

    def run(config, folder):
        calls.append((config, folder))
        if len(calls) == 1:
            started.append(_hydra_subprocess_cmd(local_rank=1))

    replace_command(monkeypatch, "train", run)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.setattr(sys, "argv", ["entry.py", *arguments])
    assert main(arguments) == 0
    [(command, cwd)] = started
    assert command[:2] == [sys.executable, str(tmp_path / "entry.py")]
    assert cwd == str(tmp_path)
    assert main(command[2:]) == 0
    (first, folder), (second, same) = calls
    assert first == second
    assert (first.seed, first.task.prefix, first.model.slm.config["n"]) == (3, "a: b, c", 5)
    assert folder == same


def test_of_several_processes_that_are_stopped_the_first_reports_it(calls, capsys, monkeypatch):
    """A launcher and a terminal stop all of them."""

    def run(*_):
        raise KeyboardInterrupt

    replace_command(monkeypatch, "train", run)
    shown = []
    for rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert main(["train"]) == 130
        shown.append(capsys.readouterr().err)
    assert shown == ["llm2slm: interrupted\n", ""]
