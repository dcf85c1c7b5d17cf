"""Checks overrides and composes the typed configuration of a verb.

Each override is checked before Hydra composes: syntax, key, option of a group, type of the value. Free text needs no
quotes except those of the shell.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from hydra import version
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString, ValueType
from hydra.core.utils import JobRuntime, setup_globals
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llm2slm.cli import hydra_internals
from llm2slm.cli.folders import conf_folder
from llm2slm.cli.schema import CLOSED, SCHEMAS, Key, has_groups, keys, lookup, nearest_keys, unknown_key
from llm2slm.config import RunConfig
from llm2slm.config.ranges import check_ranges
from llm2slm.config.ranges import check_value as check_field
from llm2slm.sweeps.settings import LAUNCHERS, SWEEPERS
from llm2slm.types import UserError

SCHEMA_NAMES = {verb: f"{verb}_schema" for verb in SCHEMAS if SCHEMAS[verb] is not RunConfig}
FREE_TEXT = ("prompt",)
"""Keys whose value is never parsed as Hydra syntax."""
SHORT = {"launcher": "hydra/launcher", "sweeper": "hydra/sweeper", "jobs": "hydra.launcher.jobs"}
"""Short names of keys of a sweep; no verb has a key of such a name."""
OF_SWEEPS = ("hydra.launcher", "hydra/launcher", "hydra.sweeper", "hydra/sweeper")
FOLDERS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")
OVERRIDE = re.compile(r"^(?P<prefix>\+\+|\+|~)?(?P<key>[\w./@:-]+)(?:=(?P<value>.*))?$", re.DOTALL)


@cache
def blank(schema: type) -> DictConfig:
    """The defaults of a schema as a typed config, on which values are type-checked."""
    created: DictConfig = OmegaConf.structured(schema)
    return created


@cache
def register_schema(verb: str) -> None:
    """Registers the dataclass of a verb with Hydra, under the name in the defaults list of its primary config."""
    name, store = SCHEMA_NAMES.get(verb, "run_schema"), ConfigStore.instance()
    store.store(name=name, node=SCHEMAS[verb], provider="llm2slm")
    for group, schemas in (("hydra/launcher", LAUNCHERS), ("hydra/sweeper", SWEEPERS)):
        for option, node in schemas.items():
            store.store(group=group, name=f"{option}_schema", node=node, provider="llm2slm")


def search_path(main: Path, extra: str | None) -> ConfigSearchPath:
    """Hydra's search path: Hydra's configs, `main`, the user's `extra` folder, the schemas.

    Raises:
        UserError: `extra` is not a folder.
    """
    path = hydra_internals.search_path(str(main))
    if extra is not None:
        folder = Path(extra).expanduser().resolve()
        if not folder.is_dir():
            raise UserError(f"--config-dir {extra}: no such folder")
        path.prepend(provider="command-line", path=f"file://{folder}", anchor=SearchPathQuery(provider="schema"))
    return path


class Composer:
    """Checks the overrides of one verb and composes its configuration."""

    def __init__(
        self, verb: str, config_name: str | None = None, main: str | None = None, extra: str | None = None
    ) -> None:
        version.setbase("1.3")
        setup_globals()  # resolvers: ${now:}, ${hydra:}
        JobRuntime.instance().set("name", verb)
        register_schema(verb)
        self.schema = SCHEMAS[verb]
        self.config_name = config_name or verb
        self._defaults: DictConfig | None = None
        self.path = search_path(Path(main).resolve() if main else conf_folder(), extra)
        plain = {name for name in keys(self.schema) if "." not in name and not has_groups(self.schema, name)}
        self.loader = hydra_internals.config_loader(self.path, plain)
        primary = Path(self.config_name).stem
        if primary not in self.loader.get_group_options("", ObjectType.CONFIG):
            raise UserError(f"--config-name {self.config_name}: no such config in {main or 'conf/'} or --config-dir")

    def prepare(self, override: str, sweeping: bool) -> str:
        """One override, checked and in Hydra's syntax: text quoted, new keys of open dicts marked with `++`.

        Raises:
            UserError: wrong syntax, key, option or value; names it and the valid ones.
        """
        found = OVERRIDE.match(override)
        if found is None or (found["value"] is None and found["prefix"] != "~"):
            raise UserError(f"override {override!r} is malformed; write KEY=VALUE, as trainer.max_steps=100")
        name, value = found["key"], found["value"]
        if name in SHORT and not found["prefix"]:
            name = SHORT[name]
            override = f"{name}={value}"
        if not sweeping and name.startswith(OF_SWEEPS):
            raise UserError(f"{override}: is read with -m alone; add -m (one job is a sweep too)")
        if name == "hydra" or name.startswith(("hydra.", "hydra/")):
            return self.hydra_key(name, value or "", override)
        options = self.options(name.partition("@")[0])
        key = None if "/" in name else lookup(self.schema, name)
        if options and (key is None or key.section):
            self.check_choice(name, self.parse(override), options)
            return override
        if key is None:
            raise unknown_key(self.schema, name, self.groups())
        if found["prefix"] == "~":
            if not key.open:
                raise UserError(f"{override}: {name} cannot be deleted; set it, as {name}=null")
            return override
        if value is not None:
            value = self.quoted(key, value, sweeping)
        prefix = "++" if key.open else ""
        override = f"{prefix}{name}={value}"
        self.check_value(name, key, self.parse(override), sweeping)
        return override

    def hydra_key(self, name: str, value: str, override: str) -> str:
        """An override of a key under `hydra`, which Hydra checks. Names of folders may contain any character."""
        try:
            self.parse(override)
        except UserError:
            if name not in FOLDERS:
                raise
            return f"{name}={quote(value)}"
        return override

    def parse(self, override: str) -> Override:
        """An override as parsed by Hydra.

        Raises:
            UserError: wrong syntax.
        """
        try:
            return OverridesParser.create(config_loader=self.loader).parse_overrides([override])[0]
        except HydraException as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), "no override")
            raise UserError(
                f"override {override!r} is malformed ({reason}); quote the value if it contains any of , : = [ ] {{ }}"
            ) from None

    def quoted(self, key: Key, value: str, sweeping: bool) -> str:
        """The value, quoted if it is text that Hydra would parse as another type, or in brackets if it is a list."""
        if key.text and (value == "" or (key.name in FREE_TEXT and value != "null")):
            return literal(key, value)
        try:
            parsed = self.parse(f"{key.name}={value}")
        except UserError:
            if key.text:
                return literal(key, value)
            if key.texts and not value.startswith("["):  # one item of a list: templates contain braces
                return f"[{quote(value)}]"
            raise
        if sweeping or not (key.text or key.many):
            return value
        read = None if parsed.is_sweep_override() else parsed.value()
        if key.many:
            choices = parsed.value_type == ValueType.SIMPLE_CHOICE_SWEEP
            return f"[{value}]" if choices or isinstance(read, str | int | float) else value
        understood = not parsed.is_sweep_override() and (read is None or isinstance(read, str))
        return value if understood else literal(key, value)

    def options(self, group: str) -> list[str]:
        """The options of a group of this verb; [] for any other name."""
        top = group.partition("/")[0]
        belongs = has_groups(self.schema, top) or (top == "experiment" and self.schema is RunConfig)
        return sorted(self.loader.get_group_options(group, ObjectType.CONFIG)) if group and belongs else []

    def groups(self, parent: str = "") -> list[str]:
        """The groups of this verb, as `model/slm`."""
        found: list[str] = []
        for name in self.loader.list_groups(parent):
            group = f"{parent}/{name}" if parent else name
            if self.options(group):
                found += [group, *self.groups(group)]
        return found

    def check_choice(self, group: str, override: Override, options: list[str]) -> None:
        """Raises UserError if a chosen option (of a sweep each one) does not exist."""
        for value in values(override):
            chosen = value if isinstance(value, list) else [value]
            if not chosen:
                raise UserError(f"{group}=[]: names no option; {group} has: {', '.join(options)}")
            for name in map(str, (c for c in chosen if c is not None)):
                if name not in options:
                    near = nearest_keys(name, options, n=1)
                    hint = f"did you mean {group}={near[0]}? " if near else ""
                    raise UserError(f"no option {group}={name}; {hint}{group} has: {', '.join(options)}")

    def check_value(self, name: str, key: Key, override: Override, sweeping: bool) -> None:
        """Raises UserError if a value (of a sweep each one) does not have the type of the key."""
        if override.is_sweep_override() and not sweeping:
            raise UserError(f"{override.input_line}: several values; add -m to run each of them")
        for value in values(override):
            shown = "null" if value is None else str(value)
            if key.section:
                group = key.name.replace(".", "/")
                ways = [f"choose {group}=OPTION"] if self.options(group) else []
                raise UserError(f"{name}={shown}: {name} is a section; {' or '.join([*ways, f'set {name}.KEY=VALUE'])}")
            if isinstance(value, str) and "${" in value:
                continue
            check_entries(name, key, value)
            if key.name in CLOSED and shown not in key.choices:
                raise UserError(f"{name}={shown}: expected {key.expected}")
            section, _, inner = name.partition(".")  # copying the whole schema takes 10 ms
            tried, key_path = (blank(self.schema)[section], inner) if inner else (blank(self.schema), name)
            try:
                OmegaConf.update(tried := tried.copy(), key_path, value, force_add=key.open and name != key.name)
            except OmegaConfBaseException:
                raise UserError(f"{name}={shown}: expected {key.expected}") from None
            if name == key.name and key.element is None:
                check_field(key.owner, key.field, name, to_plain(OmegaConf.select(tried, key_path)))

    def compose(self, overrides: list[str], mode: RunMode = RunMode.RUN) -> DictConfig:
        """The composed configuration, with Hydra's part under `hydra`.

        Raises:
            UserError: composition failed; Hydra's message on one line.
        """
        try:
            composed: DictConfig = self.loader.load_configuration(self.config_name, list(overrides), run_mode=mode)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(one_line(error)) from None
        return composed

    def defaults(self) -> DictConfig:
        """The configuration of the verb without overrides; composed once."""
        if self._defaults is None:
            self._defaults = self.compose([])
        return self._defaults

    def jobs(self, composed: DictConfig) -> list[list[str]]:
        """The checked overrides of each job of a sweep by Hydra's basic sweeper, without those of Hydra."""
        try:
            return hydra_internals.cross_product([self.parse(override) for override in self.swept(composed)])
        except HydraException as error:
            if "INTERVAL_SWEEP" in str(error):
                raise UserError("an interval needs hydra/sweeper=optuna; or give a list or a range") from None
            raise UserError(one_line(error)) from None

    def swept(self, composed: DictConfig) -> list[str]:
        """The checked overrides of a sweep, of `hydra.sweeper.params` and of the command line, with all values."""
        params = composed.hydra.sweeper.get("params") or {}
        prepared = [self.prepare(f"{key}={value}", sweeping=True) for key, value in params.items()]
        given = OmegaConf.to_container(composed.hydra.overrides.task, resolve=False)
        return [*prepared, *map(str, given if isinstance(given, list) else [])]

    def typed(self, composed: DictConfig) -> Any:
        """The dataclass of the verb from a composed configuration (with or without Hydra's part)."""
        return typed(self.schema, composed)


def runs_named(schema: type, words: list[str]) -> list[str]:
    """Rewrites `compare RUN RUN` as `compare runs=[RUN,RUN]`. Runs are words without `=`, and existing files or folders
    (a job of a sweep may be named seed=1).

    Raises:
        UserError: `runs=` is given too.
    """
    alone = [word for word in words if lookup(schema, "runs") and word and ("=" not in word or Path(word).exists())]
    if not alone:
        return words
    others = [word for word in words if word not in alone]
    if named := next((word for word in others if word.startswith("runs=")), None):
        raise UserError(f"runs are given twice, as {alone[0]} and as {named}; give all of them in one way")
    return [f"runs=[{','.join(map(quote, alone))}]", *others]


def check_entries(name: str, key: Key, value: Any) -> None:
    """Raises UserError if an entry of a list of mappings has an unknown key or a value of the wrong type."""
    if key.element is None or not isinstance(value, list):
        return
    for number, entry in enumerate(value):
        for inner, given in entry.items() if isinstance(entry, dict) else ():
            known, entry_key = lookup(key.element, str(inner)), f"{name}[{number}]"
            if known is None:
                raise UserError(f"{entry_key}: {unknown_key(key.element, str(inner), [])}")
            try:
                OmegaConf.update(blank(key.element).copy(), str(inner), given)
            except OmegaConfBaseException:
                raise UserError(f"{entry_key}.{inner}={given}: expected {known.expected}") from None


def literal(key: Key, value: str) -> str:
    """The value in quotes; Hydra does not parse it."""
    if key.name in FREE_TEXT:
        value = value.replace("${", r"\${")
    return quote(value)


def quote(value: str) -> str:
    """The value in Hydra's single quotes, escaped."""
    return str(QuotedString(text=value, quote=Quote.single).with_quotes())


def values(override: Override) -> Iterator[Any]:
    """The value, or each value of a discrete sweep, without quotes."""
    if not override.is_sweep_override():
        found = [override.value()]
    elif override.is_discrete_sweep():
        found = list(override.sweep_iterator())
    else:
        found = []
    for value in found:
        yield value.text if isinstance(value, QuotedString) else value


def typed(schema: type, composed: DictConfig) -> Any:
    """The dataclass `schema` from a composed configuration, with resolved interpolations.

    Raises:
        UserError: a value of the wrong type or out of range, or an unresolved interpolation.
    """
    try:
        plain = OmegaConf.to_container(composed, resolve=False, enum_to_str=True)
        if isinstance(plain, dict):
            plain.pop("hydra", None)
        merged = OmegaConf.merge(blank(schema), plain)
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(one_line(error)) from None
    check_ranges(config)
    if isinstance(config, RunConfig):
        first, second = config.optim.betas  # OmegaConf stores a tuple as a list
        config.optim.betas = (first, second)
    return config


def to_plain(value: Any) -> Any:
    """A value of a configuration, with lists for OmegaConf's."""
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def one_line(error: BaseException) -> str:
    """The messages of an error and its causes, joined."""
    found: list[str] = []
    while error is not None:
        lines = [line.strip() for line in str(error).splitlines()]
        found += [line for line in lines if line and not line.startswith(("object_type=", "reference_type="))]
        if error.__cause__ is None:
            break
        error = error.__cause__
    return "; ".join(dict.fromkeys(found))
