"""Names of Hugging Face's MaskFormerForInstanceSegmentation and ours, both ways.

Their attention has query, key and value apart, ours joined. The names written are those of their files,
which all versions of transformers read; in memory, version 5 has some others, which are read as well.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from mask_former.conversion.renaming import Rules, State, refuse_unknown, renamed

ENCODER = "model.pixel_level_module.encoder"
DECODER = "model.pixel_level_module.decoder"
TRANSFORMER = "model.transformer_module"

SWIN_TO_HF: Rules = (
    (r"^backbone\.patch_embed\.proj", f"{ENCODER}.model.embeddings.patch_embeddings.projection"),
    (r"^backbone\.patch_embed\.norm", f"{ENCODER}.model.embeddings.norm"),
    (r"^backbone\.norm(\d)", rf"{ENCODER}.hidden_states_norms.\1"),
    (r"^backbone\.layers", f"{ENCODER}.model.encoder.layers"),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.attn\.", ".attention.self."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
RESNET_TO_HF: Rules = (
    (r"^backbone\.stem\.conv1\.norm", f"{ENCODER}.embedder.embedder.normalization"),
    (r"^backbone\.stem\.conv1", f"{ENCODER}.embedder.embedder.convolution"),
    (r"\.norm\.", ".normalization."),
    (r"(conv\d|shortcut)\.weight$", r"\1.convolution.weight"),
    (
        r"^backbone\.res(\d)\.(\d+)\.",
        lambda found: f"{ENCODER}.encoder.stages.{int(found[1]) - 2}.layers.{found[2]}.",
    ),
    (r"\.conv(\d)\.", lambda found: f".layer.{int(found[1]) - 1}."),
)
HEAD_TO_HF: Rules = (
    (r"^sem_seg_head\.pixel_decoder\.mask_features", f"{DECODER}.mask_projection"),
    (r"^sem_seg_head\.pixel_decoder\.layer_4\.norm", f"{DECODER}.fpn.stem.1"),
    (r"^sem_seg_head\.pixel_decoder\.layer_4", f"{DECODER}.fpn.stem.0"),
    # Theirs counts from the coarse maps to the fine, ours from the fine to the coarse.
    (
        r"^sem_seg_head\.pixel_decoder\.(adapter|layer)_(\d)(\.norm)?",
        lambda found: (
            f"{DECODER}.fpn.layers.{3 - int(found[2])}."
            f"{'proj' if found[1] == 'adapter' else 'block'}.{1 if found[3] else 0}"
        ),
    ),
    (r"^sem_seg_head\.predictor\.query_embed", f"{TRANSFORMER}.queries_embedder"),
    (r"^sem_seg_head\.predictor\.input_proj", f"{TRANSFORMER}.input_projection"),
    (r"^sem_seg_head\.predictor\.class_embed", "class_predictor"),
    (r"^sem_seg_head\.predictor\.mask_embed\.layers\.(\d)", r"mask_embedder.\1.0"),
    (r"^sem_seg_head\.predictor\.transformer\.decoder\.norm", f"{TRANSFORMER}.decoder.layernorm"),
    (r"^sem_seg_head\.predictor\.transformer\.decoder", f"{TRANSFORMER}.decoder"),
    (r"\.multihead_attn\.", ".encoder_attn."),
    (r"\.linear(\d)\.", r".fc\1."),
    (r"\.norm1\.", ".self_attn_layer_norm."),
    (r"\.norm2\.", ".encoder_attn_layer_norm."),
    (r"\.norm3\.", ".final_layer_norm."),
)

SWIN_FROM_HF: Rules = (
    (rf"^{ENCODER}\.model\.embeddings\.patch_embeddings\.projection", "backbone.patch_embed.proj"),
    (rf"^{ENCODER}\.model\.embeddings\.norm", "backbone.patch_embed.norm"),
    (rf"^{ENCODER}\.hidden_states_norms\.stage(\d)", lambda found: f"backbone.norm{int(found[1]) - 1}"),
    (rf"^{ENCODER}\.hidden_states_norms\.(\d)", r"backbone.norm\1"),
    (rf"^{ENCODER}\.model\.encoder\.layers", "backbone.layers"),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.attention\.self\.", ".attn."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)
RESNET_FROM_HF: Rules = (
    (rf"^{ENCODER}\.embedder\.embedder\.convolution", "backbone.stem.conv1"),
    (rf"^{ENCODER}\.embedder\.embedder\.normalization", "backbone.stem.conv1.norm"),
    (
        rf"^{ENCODER}\.encoder\.stages\.(\d)\.layers\.(\d+)\.",
        lambda found: f"backbone.res{int(found[1]) + 2}.{found[2]}.",
    ),
    (r"\.layer\.(\d)\.", lambda found: f".conv{int(found[1]) + 1}."),
    (r"\.convolution\.", "."),
    (r"\.normalization\.", ".norm."),
)
HEAD_FROM_HF: Rules = (
    (rf"^{DECODER}\.mask_projection", "sem_seg_head.pixel_decoder.mask_features"),
    (rf"^{DECODER}\.fpn\.stem\.0", "sem_seg_head.pixel_decoder.layer_4"),
    (rf"^{DECODER}\.fpn\.stem\.1", "sem_seg_head.pixel_decoder.layer_4.norm"),
    (
        rf"^{DECODER}\.fpn\.layers\.(\d)\.(proj|block)\.(\d)",
        lambda found: (
            f"sem_seg_head.pixel_decoder.{'adapter' if found[2] == 'proj' else 'layer'}_{3 - int(found[1])}"
            f"{'.norm' if found[3] == '1' else ''}"
        ),
    ),
    (rf"^{TRANSFORMER}\.queries_embedder", "sem_seg_head.predictor.query_embed"),
    (rf"^{TRANSFORMER}\.input_projection", "sem_seg_head.predictor.input_proj"),
    (r"^class_predictor", "sem_seg_head.predictor.class_embed"),
    (r"^mask_embedder\.(\d)\.0", r"sem_seg_head.predictor.mask_embed.layers.\1"),
    (rf"^{TRANSFORMER}\.decoder\.layernorm", "sem_seg_head.predictor.transformer.decoder.norm"),
    (rf"^{TRANSFORMER}\.decoder", "sem_seg_head.predictor.transformer.decoder"),
    (r"\.encoder_attn\.", ".multihead_attn."),
    (r"\.o_proj\.", ".out_proj."),
    (r"\.(?:mlp\.)?fc(\d)\.", r".linear\1."),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.encoder_attn_layer_norm\.", ".norm2."),
    (r"\.final_layer_norm\.", ".norm3."),
)

# Counters, weights of losses, and the norm of a pooled output that nobody reads.
DROPPED = re.compile(rf"num_batches_tracked$|^criterion\.|^{re.escape(ENCODER)}\.model\.layernorm\.")
SWIN_PART = re.compile(r"(.+\.attn\.)(query|key|value)\.(weight|bias)")
ATTENTION_PART = re.compile(r"(.+_attn\.)(q|k|v)_proj\.(weight|bias)")


def to_hugging_face(state: Mapping[str, Tensor], no_object_weight: float = 0.1) -> State:
    """Return a MaskFormer with BasePixelDecoder in their names, with all entries their files have."""
    is_swin = "backbone.patch_embed.proj.weight" in state
    result: State = {}
    for name, tensor in state.items():
        rules = HEAD_TO_HF if name.startswith("sem_seg_head.") else SWIN_TO_HF if is_swin else RESNET_TO_HF
        theirs = renamed(name, rules)
        if name.startswith("criterion."):
            continue
        if ".qkv." in name:
            parts, joined = ("query.", "key.", "value."), "qkv."
        elif ".in_proj_" in name:
            parts, joined = ("q_proj.", "k_proj.", "v_proj."), "in_proj_"
        else:
            result[theirs] = tensor
            continue
        for part, third in zip(parts, tensor.chunk(3), strict=True):
            result[theirs.replace(joined, part)] = third
    refuse_unknown(
        (name for name in result if name.startswith(("backbone.", "sem_seg_head."))), "MaskFormer's"
    )
    return result | _entries_without_use(result, state, no_object_weight)


def _entries_without_use(theirs: State, ours: Mapping[str, Tensor], no_object_weight: float) -> State:
    """Return entries that their files have and that no result depends on."""
    last_norm = ours.get("backbone.norm3.weight")
    loss_weights = torch.ones_like(theirs["class_predictor.bias"])
    loss_weights[-1] = no_object_weight
    extra: State = {"criterion.empty_weight": loss_weights}
    if last_norm is not None:
        extra[f"{ENCODER}.model.layernorm.weight"] = torch.ones_like(last_norm)
        extra[f"{ENCODER}.model.layernorm.bias"] = torch.zeros_like(last_norm)
    for name in theirs:
        if name.endswith(".running_var"):
            counter = name.replace("running_var", "num_batches_tracked")
            extra[counter] = torch.zeros((), dtype=torch.int64)
    return extra


def from_hugging_face(state: Mapping[str, Tensor]) -> State:
    """Return a model of theirs in our names."""
    is_swin = any(name.startswith(f"{ENCODER}.model.") for name in state)
    backbone = SWIN_FROM_HF if is_swin else RESNET_FROM_HF
    result: State = {}
    for name, tensor in state.items():
        if not DROPPED.search(name):
            result[renamed(name, backbone if name.startswith(ENCODER) else HEAD_FROM_HF)] = tensor
    unknown = (name for name in result if not name.startswith(("backbone.", "sem_seg_head.")))
    refuse_unknown(unknown, "Hugging Face's MaskFormer's")
    joined = _joined(result, SWIN_PART, ("query", "key", "value"), "{}qkv.{}")
    return _joined(joined, ATTENTION_PART, ("q", "k", "v"), "{}in_proj_{}")


def _joined(state: State, pattern: re.Pattern[str], parts: tuple[str, ...], form: str) -> State:
    """Put query, key and value together where the first of them stands."""
    result: State = {}
    for name, tensor in state.items():
        found = pattern.fullmatch(name)
        if found is None:
            result[name] = tensor
        elif found[2] == parts[0]:
            names = [name[: found.start(2)] + part + name[found.end(2) :] for part in parts]
            missing = [part for part in names if part not in state]
            if missing:
                raise ValueError(
                    f"The file lacks {', '.join(missing)}, which belong to {name}: fetch it again."
                )
            result[form.format(found[1], found[3])] = torch.cat([state[part] for part in names])
    return result
