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
from piti.config.section import Positive, Section, Share, WeightsRef
from piti.config.tree import (
    ENCODER_STRIDE,
    STAGE_LABELS,
    STAGES,
    ClusterConfig,
    Config,
    DiffusionConfig,
    EvaluationConfig,
    ModelConfig,
    ModelsConfig,
    PhaseConfig,
    PretrainedConfig,
    SamplingConfig,
    ScheduleConfig,
    Stage,
    StageConfig,
    TrackingConfig,
    TrainingConfig,
    UpsamplerStageConfig,
    WorkerRange,
)

__all__ = [
    "CONDITION_CHANNELS", "ENCODER_STRIDE", "STAGES", "STAGE_LABELS", "Ade20kSourceConfig", "BundledSourceConfig", "ClusterConfig",
    "CocoStuffSourceConfig", "Config", "DataConfig", "DegradationConfig", "DiffusionConfig", "DiodeSourceConfig",
    "EvaluationConfig", "ListSourceConfig", "Modality", "ModelConfig", "ModelsConfig", "PairedSourceConfig", "PhaseConfig",
    "Positive", "PretrainedConfig", "SamplingConfig", "Scenes", "ScheduleConfig", "Section", "Share", "SketchConfig", "SketchInversion",
    "SourceConfig", "Stage", "StageConfig", "TrackingConfig", "TrainingConfig", "UpsamplerStageConfig", "WebdatasetSourceConfig", "WeightsRef",
    "WorkerRange",
]  # fmt: skip
