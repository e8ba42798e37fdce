"""One typed tree that says everything about a run; `piti.config.presets` reads it from YAML."""

from piti.config.data import (
    Ade20kSourceConfig,
    BundledSourceConfig,
    CocoStuffSourceConfig,
    DataConfig,
    DegradationConfig,
    DiodeSourceConfig,
    ListSourceConfig,
    Modality,
    PairedSourceConfig,
    SketchConfig,
    SketchInversion,
    WebdatasetSourceConfig,
)
from piti.config.evaluation import EvaluationConfig, Sampler, SamplingConfig
from piti.config.models import ENCODER_STRIDE, DiffusionConfig, ModelConfig, ModelsConfig, ScheduleConfig
from piti.config.section import WeightsRef
from piti.config.training import (
    STAGE_LABELS,
    STAGES,
    PhaseConfig,
    PretrainedConfig,
    Stage,
    StageConfig,
    TrainingConfig,
    UpsamplerStageConfig,
)
from piti.config.tree import ClusterConfig, Config, TrackingConfig, WorkerRange

__all__ = [
    "ENCODER_STRIDE", "STAGES", "STAGE_LABELS", "Ade20kSourceConfig", "BundledSourceConfig", "ClusterConfig",
    "CocoStuffSourceConfig", "Config", "DataConfig", "DegradationConfig", "DiffusionConfig", "DiodeSourceConfig",
    "EvaluationConfig", "ListSourceConfig", "Modality", "ModelConfig", "ModelsConfig", "PairedSourceConfig", "PhaseConfig",
    "PretrainedConfig", "Sampler", "SamplingConfig", "ScheduleConfig", "SketchConfig", "SketchInversion",
    "Stage", "StageConfig", "TrackingConfig", "TrainingConfig", "UpsamplerStageConfig", "WebdatasetSourceConfig", "WeightsRef",
    "WorkerRange",
]  # fmt: skip
