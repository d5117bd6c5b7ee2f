"""The student, the BERT image classifier, small CNNs, the fusion teacher, and loading of any teacher.

Importing this package makes the Auto classes of transformers know our architectures.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForImageClassification, PretrainedConfig, PreTrainedModel

from edgebert.models.bert import BertForImageClassification, BertImageConfig
from edgebert.models.cnn import CnnConfig, CnnForImageClassification
from edgebert.models.fusion import FusionConfig, FusionForImageClassification
from edgebert.models.student import StudentConfig, StudentForImageClassification

OURS: dict[type[PretrainedConfig], type[PreTrainedModel]] = {
    StudentConfig: StudentForImageClassification,
    BertImageConfig: BertForImageClassification,
    CnnConfig: CnnForImageClassification,
    FusionConfig: FusionForImageClassification,
}
"""Our architectures: config -> model."""

for _config, _model in OURS.items():
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModelForImageClassification.register(_config, _model, exist_ok=True)
