"""The name in our model of each weight of an official BEiT-3 file. Source: microsoft/unilm, beit3/modeling_utils.py."""

from convert.instancevg import backbone_rules
from convert.rules import Ignore, RuleTable

TABLE = RuleTable(
    rules=backbone_rules("beit3", "backbone"),
    ignores=(
        Ignore(r"beit3\.vision_embed\.mask_token", "masked pretraining only"),
        Ignore(r"m[li]m_head\..*", "masked pretraining's heads"),
        Ignore(r"(head|fc_norm|pooler|vision_head|language_head)\..*|logit_scale", "heads of fine-tuning tasks"),
    ),
)
