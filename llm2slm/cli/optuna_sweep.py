"""The search space of `hydra/sweeper=optuna` from the overrides of the command line and of a configuration file.

`KEY=A,B` and `choice(A,B)` are choices, `range(1,9)` numbers with a step, `interval(1,9)` a range of numbers (of whole
ones where the key is an integer), and `tag(log, interval(1e-4,1e-2))` one on a logarithmic scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import OmegaConf

from llm2slm.cli.schema import lookup
from llm2slm.cli.sweep import Plan
from llm2slm.commands.preflight import check_monitor
from llm2slm.config import RunConfig
from llm2slm.data.sources.sources import task_of
from llm2slm.sweeps.jobs import Job, JobRecord
from llm2slm.sweeps.launchers import need
from llm2slm.sweeps.settings import LauncherSettings, OptunaSettings, SlurmSettings
from llm2slm.types import UserError

if TYPE_CHECKING:
    from llm2slm.sweeps.study import Axis, Trials


class Space:
    """The swept keys of a study, and the jobs that it makes.

    Attributes:
        template: a job with the resources of any trial.

    Raises:
        UserError: a package is missing, nothing is swept, the objective is no validation metric of these runs, or a
            value is invalid.
    """

    def __init__(self, plan: Plan) -> None:
        need("optuna", "sweep", "hydra/sweeper=optuna")
        from llm2slm.sweeps.study import check_settings

        if plan.verb != "train":
            raise UserError(f"hydra/sweeper=optuna: {plan.verb} has no validation score; it optimizes train alone")
        settings = OmegaConf.to_object(plan.composed.hydra.sweeper)
        assert isinstance(settings, OptunaSettings)
        check_settings(settings)
        self.plan, self.settings = plan, settings
        parsed = [plan.composer.parse(override) for override in plan.composer.swept(plan.composed)]
        self.axes = [self._axis(each) for each in parsed if each.is_sweep_override()]
        self.fixed = [str(each.input_line) for each in parsed if not each.is_sweep_override()]
        if not self.axes:
            raise UserError(
                "hydra/sweeper=optuna: no key has several values; give at least one, as "
                "'optim.lr=tag(log, interval(1e-4, 1e-2))' or model.conditioning=add,memory"
            )
        for axis in self.axes:
            axis.distribution()
        ends = [[axis.ends()[last] for axis in self.axes] for last in (0, 1)]
        configs = [self._config(own) for own in ends]
        self.objective = self._objective(configs)
        self.template = plan.add_job([*self.fixed, *ends[0]])
        plan.jobs.clear()

    def trials(self, launcher: LauncherSettings) -> Trials:
        """The trials of the stored study."""
        from llm2slm.sweeps.study import Trials, open_study

        if launcher.jobs is None and isinstance(launcher, SlurmSettings):
            raise UserError(
                "hydra/sweeper=optuna with hydra/launcher=slurm: set jobs=N, the number of trials at the same time"
            )
        study = open_study(self.settings, self.plan.folder, self.objective)
        self.source = Trials(
            study,
            self.settings,
            axes=self.axes,
            objective=self.objective,
            make=self._make,
            template=self.template,
            records=self.plan.records,
            folder=self.plan.folder,
        )
        return self.source

    def counts(self) -> tuple[int, int]:
        """The number of trials, and of those that are complete."""
        return self.source.total, self.source.complete

    def _make(self, swept: Sequence[str], record: JobRecord | None, trial: int) -> Job:
        job = self.plan.add_job([*self.fixed, *swept], record, trial)
        job.varied = tuple(axis.key.lstrip("+") for axis in self.axes)
        self.plan.write_pending(job)
        return job

    def _config(self, swept: Sequence[str]) -> RunConfig:
        composed = self.plan.composer.compose([*self.plan.hydra, *self.fixed, *swept])
        config = self.plan.composer.typed(composed)
        assert isinstance(config, RunConfig)
        return config

    def _objective(self, configs: Sequence[RunConfig]) -> str:
        """The validation metric, which every trial computes."""
        given = self.settings.objective
        if given is not None and not given.startswith("val/"):
            raise UserError(
                f"hydra.sweeper.objective={given}: a study optimizes a validation metric, never a test score; give "
                f"val/{given.removeprefix('test/')}"
            )
        found = given or configs[0].callbacks.monitor
        for config in configs:
            own = replace(config, callbacks=replace(config.callbacks, monitor=found))
            try:
                check_monitor(own, task_of(config.task, config.data))
            except UserError as error:
                raise UserError(str(error).replace("callbacks.monitor=", "hydra.sweeper.objective=")) from None
        return found

    def _axis(self, override: Override) -> Axis:
        from llm2slm.sweeps.study import Axis

        key, value = override.get_key_element(), override.value()
        known = lookup(self.plan.composer.schema, override.key_or_group)
        whole = known is not None and int in known.members and float not in known.members
        if isinstance(value, IntervalSweep):
            assert value.start is not None and value.end is not None
            low, high = float(value.start), float(value.end)
            if whole and not (low.is_integer() and high.is_integer()):
                raise UserError(f"{override.input_line}: {key} is an integer; give whole bounds")
            return Axis(key, low=low, high=high, log="log" in value.tags, whole=whole)
        if isinstance(value, RangeSweep) and not value.shuffle:
            numbers = [float(number) for number in value.range()]
            if not numbers:
                raise UserError(f"{override.input_line}: the range is empty")
            integers = all(number.is_integer() for number in numbers)
            return Axis(key, low=numbers[0], high=numbers[-1], step=float(value.step), whole=integers)
        return Axis(key, tuple(override.sweep_string_iterator()))
