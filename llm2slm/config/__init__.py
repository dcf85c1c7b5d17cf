"""The typed schema of the configuration: every key that a user can override is a field here, with unit and default.

`cli` registers these classes with Hydra, so that an unknown key or a wrong type fails before anything is loaded.
YAML files under `conf/` contain only values that differ from these defaults. All code below the CLI receives these
dataclasses, never a DictConfig, and therefore works from a notebook too.
"""

from llm2slm.config.data import CorpusConfig, DataConfig, PartConfig, TaskConfig
from llm2slm.config.model import (
    LanguageModelConfig,
    LLMConfig,
    ModelConfig,
    PlainLLMConfig,
    PlainModelConfig,
    ProjectorConfig,
    SLMConfig,
)
from llm2slm.config.recorded import before_zero_start, other_rows, recorded_changes, upgraded
from llm2slm.config.run import BenchmarkConfig, CalibrateConfig, EncodeConfig, LabelConfig, RunConfig, TokenizerConfig
from llm2slm.config.training import CallbacksConfig, LoggerConfig, OptimConfig, TrainerConfig
from llm2slm.config.verbs import (
    CompareConfig,
    CostsConfig,
    DashboardConfig,
    ExportConfig,
    GenerateConfig,
    JudgeConfig,
    ReportConfig,
)

__all__ = [
    "BenchmarkConfig",
    "CalibrateConfig",
    "CallbacksConfig",
    "CompareConfig",
    "CorpusConfig",
    "CostsConfig",
    "DashboardConfig",
    "DataConfig",
    "EncodeConfig",
    "ExportConfig",
    "GenerateConfig",
    "JudgeConfig",
    "LLMConfig",
    "LabelConfig",
    "LanguageModelConfig",
    "LoggerConfig",
    "ModelConfig",
    "OptimConfig",
    "PartConfig",
    "PlainLLMConfig",
    "PlainModelConfig",
    "ProjectorConfig",
    "ReportConfig",
    "RunConfig",
    "SLMConfig",
    "TaskConfig",
    "TokenizerConfig",
    "TrainerConfig",
    "before_zero_start",
    "other_rows",
    "recorded_changes",
    "upgraded",
]
