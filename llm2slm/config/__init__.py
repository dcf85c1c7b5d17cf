"""The typed schema of the configuration. Every key a user can override is a field here, with its unit and its default.

`cli` registers these classes with Hydra, so that an unknown key or a wrong type fails before anything is loaded.
YAML files under `conf/` state only what differs from these defaults. Code below the CLI gets these dataclasses
(never a DictConfig), so the package works the same from a notebook.
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
from llm2slm.config.recorded import before_zero_start, other_rows, recorded_changes, understood
from llm2slm.config.run import BenchmarkConfig, EncodeConfig, LabelConfig, RunConfig, TokenizerConfig
from llm2slm.config.training import CallbacksConfig, LoggerConfig, OptimConfig, TrainerConfig
from llm2slm.config.verbs import CompareConfig, ExportConfig, GenerateConfig, JudgeConfig, ReportConfig

__all__ = [
    "BenchmarkConfig",
    "CallbacksConfig",
    "CompareConfig",
    "CorpusConfig",
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
    "understood",
]
