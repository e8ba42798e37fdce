"""One typed tree that says everything about a run; `piti.config.presets` reads it from YAML."""

from piti.config.data import (
    CONDITION_CHANNELS,
    Ade20kSourceConfig,
    BundledSourceConfig,
    CocoStuffSourceConfig,
    DataConfig,
    DegradationConfig,
    DiodeSourceConfig,
    ListSourceConfig,
    Modality,
    PairedSourceConfig,
    Scenes,
    SketchConfig,
    SketchInversion,
    SourceConfig,
    WebdatasetSourceConfig,
)
from piti.config.evaluation import EvaluationConfig, Sampler, SamplingConfig
from piti.config.models import ENCODER_STRIDE, DiffusionConfig, ModelConfig, ModelsConfig, ScheduleConfig
from piti.config.section import Positive, Section, Share, WeightsRef
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
    "CONDITION_CHANNELS", "ENCODER_STRIDE", "STAGES", "STAGE_LABELS", "Ade20kSourceConfig", "BundledSourceConfig", "ClusterConfig",
    "CocoStuffSourceConfig", "Config", "DataConfig", "DegradationConfig", "DiffusionConfig", "DiodeSourceConfig",
    "EvaluationConfig", "ListSourceConfig", "Modality", "ModelConfig", "ModelsConfig", "PairedSourceConfig", "PhaseConfig",
    "Positive", "PretrainedConfig", "Sampler", "SamplingConfig", "Scenes", "ScheduleConfig", "Section", "Share", "SketchConfig", "SketchInversion",
    "SourceConfig", "Stage", "StageConfig", "TrackingConfig", "TrainingConfig", "UpsamplerStageConfig", "WebdatasetSourceConfig", "WeightsRef",
    "WorkerRange",
]  # fmt: skip
