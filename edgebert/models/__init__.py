"""The student, the BERT image classifier, and loading of any teacher.

Importing this package makes the Auto classes of transformers know both architectures.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForImageClassification

from edgebert.models.bert import BertForImageClassification, BertImageConfig
from edgebert.models.student import StudentConfig, StudentForImageClassification

AutoConfig.register(StudentConfig.model_type, StudentConfig, exist_ok=True)
AutoConfig.register(BertImageConfig.model_type, BertImageConfig, exist_ok=True)
AutoModelForImageClassification.register(StudentConfig, StudentForImageClassification, exist_ok=True)
AutoModelForImageClassification.register(BertImageConfig, BertForImageClassification, exist_ok=True)
