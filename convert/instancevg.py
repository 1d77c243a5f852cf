"""The name in our model of each weight of the original InstanceVG, including its BEiT-3.

Keys on the left are the original's, with A for its image expert and B for its text expert; paths on the right are those of
`InstanceVG`'s state. `{i}` and `{j}` are numbers. Source: state_dict of Dmmm1997/InstanceVG, commit 49fd8fa.
"""

from convert.rules import Ignore, Rule, RuleTable

EXPERTS = (("A", "vision"), ("B", "text"))


def _norm(source: str, target: str) -> list[Rule]:
    return [Rule(f"{source}.weight", f"{target}.scale", "none"), Rule(f"{source}.bias", f"{target}.bias", "none")]


def _linear(source: str, target: str) -> list[Rule]:
    return [Rule(f"{source}.weight", f"{target}.kernel", "transpose"), Rule(f"{source}.bias", f"{target}.bias", "none")]


def _attention(source: str, target: str) -> list[Rule]:
    return [
        Rule(f"{source}.in_proj_weight", f"{target}.in_proj.kernel", "transpose"),
        Rule(f"{source}.in_proj_bias", f"{target}.in_proj.bias", "none"),
        *_linear(f"{source}.out_proj", f"{target}.out_proj"),
    ]


def _feed_forward(source: str, target: str) -> list[Rule]:
    return [*_linear(f"{source}.layers.0.0", f"{target}.fc1"), *_linear(f"{source}.layers.1", f"{target}.fc2")]


def backbone_rules(source: str, target: str) -> list[Rule]:
    """BEiT-3. `source` and `target` are prefixes: "vis_enc.beit3" and "backbone" inside InstanceVG."""
    rules = [
        Rule(f"{source}.text_embed.weight", f"{target}.text_embed.embedding", "none"),
        Rule(f"{source}.vision_embed.cls_token", f"{target}.class_token", "none"),
        Rule(f"{source}.vision_embed.proj.weight", f"{target}.patch_embed.kernel", "patch"),
        Rule(f"{source}.vision_embed.proj.bias", f"{target}.patch_embed.bias", "none"),
    ]
    for letter, expert in EXPERTS:
        layer, block = f"{source}.encoder.layers.{{i}}", f"{target}.blocks.{{i}}.{expert}"
        rules += [
            Rule(f"{source}.encoder.embed_positions.{letter}.weight", f"{target}.{expert}_positions", "none"),
            *_norm(f"{layer}.self_attn_layer_norm.{letter}", f"{block}.attention_norm"),
            *_linear(f"{layer}.self_attn.q_proj.{letter}", f"{block}.query"),
            *_linear(f"{layer}.self_attn.k_proj.{letter}", f"{block}.key"),
            *_linear(f"{layer}.self_attn.v_proj.{letter}", f"{block}.value"),
            *_norm(f"{layer}.self_attn.inner_attn_ln.{letter}", f"{block}.attention_inner_norm"),
            *_linear(f"{layer}.self_attn.out_proj.{letter}", f"{block}.out"),
            *_norm(f"{layer}.final_layer_norm.{letter}", f"{block}.mlp_norm"),
            *_linear(f"{layer}.ffn.{letter}.fc1", f"{block}.fc1"),
            *_norm(f"{layer}.ffn.{letter}.ffn_layernorm", f"{block}.mlp_inner_norm"),
            *_linear(f"{layer}.ffn.{letter}.fc2", f"{block}.fc2"),
            *_norm(f"{source}.encoder.layer_norm.{letter}", f"{target}.{expert}_norm"),
        ]
    return rules


def _pyramid_rules() -> list[Rule]:
    up = [
        rule
        for source, target in (("fpn1.0", "up4_first"), ("fpn1.3", "up4_second"), ("fpn2.0", "up2"))
        for rule in (
            Rule(f"head.neck.{source}.weight", f"pyramid.{target}.kernel", "conv_transpose"),
            Rule(f"head.neck.{source}.bias", f"pyramid.{target}.bias", "none"),
        )
    ]
    level = "pyramid.levels.{i}"
    return [
        *up,
        *_norm("head.neck.fpn1.1", "pyramid.up4_norm"),
        Rule("head.neck.lateral_convs.{i}.conv.weight", f"{level}.lateral.kernel", "squeeze_conv"),
        *_norm("head.neck.lateral_convs.{i}.norm_layer", f"{level}.lateral_norm"),
        Rule("head.neck.fpn_convs.{i}.conv.weight", f"{level}.conv.kernel", "conv"),
        *_norm("head.neck.fpn_convs.{i}.norm_layer", f"{level}.conv_norm"),
    ]


def _mask_decoder_rules() -> list[Rule]:
    rules = []
    for stage, level in enumerate((4, 3, 2)):
        for i in (1, 2):
            source, target = "head.unet_decoder", f"mask_decoder.stages.{stage}"
            rules += [
                Rule(f"{source}.conv{i}_{level}.weight", f"{target}.conv{i}.kernel", "conv"),
                *_norm(f"{source}.bn{i}_{level}", f"{target}.norm{i}"),
                Rule(f"{source}.bn{i}_{level}.running_mean", f"{target}.norm{i}.mean", "none"),
                Rule(f"{source}.bn{i}_{level}.running_var", f"{target}.norm{i}.variance", "none"),
            ]
    return rules


def _query_rules() -> list[Rule]:
    layer, target = "head.query_generation.T2I_decoder.layers.0", "queries.text_to_image"
    return [
        *_attention(f"{layer}.attentions.0.attn", f"{target}.self_attention"),
        *_attention(f"{layer}.attentions.1.attn", f"{target}.cross_attention"),
        *_feed_forward(f"{layer}.ffns.0", f"{target}.mlp"),
        *_norm(f"{layer}.norms.{{i}}", f"{target}.norms.{{i}}"),
        *_norm("head.query_generation.T2I_decoder.post_norm_layer", f"{target}.final_norm"),
        *_linear("head.query_generation.mlp.layers.{i}", "queries.mlp.layers.{i}"),
    ]


def _decoder_rules() -> list[Rule]:
    layer, target = "head.decoder_transformer.decoder.layers.{i}", "decoder.layers.{i}"
    cross = [
        rule
        for name in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
        for rule in _linear(f"{layer}.attentions.1.{name}", f"{target}.cross_attention.{name}")
    ]
    return [
        *_attention(f"{layer}.attentions.0.attn", f"{target}.self_attention"),
        *cross,
        *_feed_forward(f"{layer}.ffns.0", f"{target}.mlp"),
        *_norm(f"{layer}.norms.{{j}}", f"{target}.norms.{{j}}"),
        *_linear("head.decoder_transformer.reference_points", "decoder.reference_points"),
    ]


def _head_rules() -> list[Rule]:
    return [
        Rule("head.img_embedding.weight", "image_proj.kernel", "squeeze_conv"),
        Rule("head.lan_embedding.weight", "text_proj.kernel", "transpose"),
        *_linear("head.query_pos_embedding", "query_positions"),
        *_linear("head.class_embed.0", "class_head"),
        *_linear("head.bbox_embed.0.layers.{i}", "box_head.layers.{i}"),
        *_linear("head.nt_embed.layers.{i}", "existence_head.layers.{i}"),
        Rule("head.seg_branch.predict.weight", "global_mask_head.kernel", "squeeze_conv"),
        Rule("head.seg_branch.predict.bias", "global_mask_head.bias", "none"),
    ]


IGNORED = [
    Ignore(r"vis_enc\.beit3\.vision_embed\.mask_token", "masked pretraining only"),
    Ignore(r"head\.query_embedding\.weight", "projection of the class token, computed and never used"),
    Ignore(r"head\.query_generation\.query_embed\.weight", "learned queries, replaced by words"),
    Ignore(r"head\.proj_pixel_level_cons\..*", "contrastive loss that no official config switches on"),
    Ignore(r"head\.decoder_transformer\.level_embeds", "level embeddings of the memory, computed and never used"),
    Ignore(r"head\.detrloss\.criterion\.empty_weight", "class weights of the loss, a constant of its config"),
    Ignore(
        r"head\.unet_decoder\.bn[12]_[234]\.num_batches_tracked",
        "BatchNorm's step counter, unused with a fixed momentum",
    ),
]

TABLE = RuleTable(
    rules=[
        *backbone_rules("vis_enc.beit3", "backbone"),
        *_pyramid_rules(),
        *_mask_decoder_rules(),
        *_query_rules(),
        *_decoder_rules(),
        *_head_rules(),
    ],
    aliases=[("head.class_embed.{i}.", "head.class_embed.0."), ("head.bbox_embed.{i}.", "head.bbox_embed.0.")],
    ignores=IGNORED,
)
