"""Names of Hugging Face's MaskFormerForInstanceSegmentation and ours, both ways.

Their attention has query, key and value apart, ours joined. The names written are those of their files,
which all versions of transformers read; in memory, version 5 has some others, which are read as well.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mask_former.conversion.backbones import State, refuse_unknown

ENCODER = "model.pixel_level_module.encoder"
DECODER = "model.pixel_level_module.decoder"
TRANSFORMER = "model.transformer_module"
OUR_DECODER = "sem_seg_head.pixel_decoder"
PREDICTOR = "sem_seg_head.predictor"

# (part of our name, part of theirs): replaced in this order, in both directions.
Pairs = Sequence[tuple[str, str]]
SWIN: Pairs = (
    ("backbone.patch_embed.proj.", f"{ENCODER}.model.embeddings.patch_embeddings.projection."),
    ("backbone.patch_embed.norm.", f"{ENCODER}.model.embeddings.norm."),
    ("backbone.layers.", f"{ENCODER}.model.encoder.layers."),
    ("backbone.norm", f"{ENCODER}.hidden_states_norms."),
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
    (".attn.proj.", ".attention.output.dense."),
    (".attn.", ".attention.self."),
    (".mlp.fc1.", ".intermediate.dense."),
    (".mlp.fc2.", ".output.dense."),
)
RESNET: Pairs = (
    ("backbone.stem.conv1.weight", f"{ENCODER}.embedder.embedder.convolution.weight"),
    ("backbone.stem.conv1.norm.", f"{ENCODER}.embedder.embedder.normalization."),
    *((f"backbone.res{stage + 2}.", f"{ENCODER}.encoder.stages.{stage}.layers.") for stage in range(4)),
    (".shortcut.weight", ".shortcut.convolution.weight"),
    (".shortcut.norm.", ".shortcut.normalization."),
    *((f".conv{number + 1}.weight", f".layer.{number}.convolution.weight") for number in range(3)),
    *((f".conv{number + 1}.norm.", f".layer.{number}.normalization.") for number in range(3)),
)
# Their levels count from the coarse maps to the fine, ours from the fine to the coarse.
LEVELS = [(level, f"{DECODER}.fpn.layers.{3 - level}") for level in (1, 2, 3)]
HEAD: Pairs = (
    (f"{OUR_DECODER}.mask_features.", f"{DECODER}.mask_projection."),
    (f"{OUR_DECODER}.layer_4.norm.", f"{DECODER}.fpn.stem.1."),
    (f"{OUR_DECODER}.layer_4.", f"{DECODER}.fpn.stem.0."),
    *((f"{OUR_DECODER}.adapter_{level}.norm.", f"{theirs}.proj.1.") for level, theirs in LEVELS),
    *((f"{OUR_DECODER}.adapter_{level}.", f"{theirs}.proj.0.") for level, theirs in LEVELS),
    *((f"{OUR_DECODER}.layer_{level}.norm.", f"{theirs}.block.1.") for level, theirs in LEVELS),
    *((f"{OUR_DECODER}.layer_{level}.", f"{theirs}.block.0.") for level, theirs in LEVELS),
    (f"{PREDICTOR}.query_embed.", f"{TRANSFORMER}.queries_embedder."),
    (f"{PREDICTOR}.input_proj.", f"{TRANSFORMER}.input_projection."),
    (f"{PREDICTOR}.class_embed.", "class_predictor."),
    *((f"{PREDICTOR}.mask_embed.layers.{layer}.", f"mask_embedder.{layer}.0.") for layer in range(3)),
    (f"{PREDICTOR}.transformer.decoder.norm.", f"{TRANSFORMER}.decoder.layernorm."),
    (f"{PREDICTOR}.transformer.decoder.", f"{TRANSFORMER}.decoder."),
    (".multihead_attn.", ".encoder_attn."),
    (".linear1.", ".fc1."),
    (".linear2.", ".fc2."),
    (".norm1.", ".self_attn_layer_norm."),
    (".norm2.", ".encoder_attn_layer_norm."),
    (".norm3.", ".final_layer_norm."),
)
# Names of transformers 5 in memory, and those of its files.
IN_MEMORY = ((r"(\.hidden_states_norms\.)stage(\d)", lambda match: f"{match[1]}{int(match[2]) - 1}"),)
IN_MEMORY_HEAD: Pairs = ((".o_proj.", ".out_proj."), (".mlp.fc", ".fc"))

# Counters, weights of losses, and the norm of a pooled output that nobody reads.
DROPPED = re.compile(rf"num_batches_tracked$|^criterion\.|^{re.escape(ENCODER)}\.model\.layernorm\.")
# Our joined entry -> the parts of theirs.
JOINED = {"qkv.": ("query.", "key.", "value."), "in_proj_": ("q_proj.", "k_proj.", "v_proj.")}


def to_hugging_face(state: Mapping[str, Tensor], no_object_weight: float = 0.1) -> State:
    """Return a MaskFormer with BasePixelDecoder in their names, with all entries their files have."""
    backbone = SWIN if "backbone.patch_embed.proj.weight" in state else RESNET
    result: State = {}
    for name, tensor in state.items():
        if name.startswith("criterion."):
            continue
        theirs = name
        for our_part, their_part in HEAD if name.startswith("sem_seg_head.") else backbone:
            theirs = theirs.replace(our_part, their_part)
        joined = next((part for part in JOINED if f".{part}" in name), None)
        parts = JOINED[joined] if joined else ("",)
        for part, piece in zip(parts, tensor.chunk(len(parts)) if joined else [tensor], strict=True):
            result[theirs.replace(joined, part) if joined else theirs] = piece
    refuse_unknown(
        (name for name in result if name.startswith(("backbone.", "sem_seg_head."))), "MaskFormer's"
    )
    return result | _entries_without_use(result, state, no_object_weight)


def _entries_without_use(theirs: State, ours: Mapping[str, Tensor], no_object_weight: float) -> State:
    """Return entries that their files have and that no result depends on."""
    loss_weights = torch.ones_like(theirs["class_predictor.bias"])
    loss_weights[-1] = no_object_weight
    extra: State = {"criterion.empty_weight": loss_weights}
    last_norm = ours.get("backbone.norm3.weight")
    if last_norm is not None:
        extra[f"{ENCODER}.model.layernorm.weight"] = torch.ones_like(last_norm)
        extra[f"{ENCODER}.model.layernorm.bias"] = torch.zeros_like(last_norm)
    counters = [
        name.replace("running_var", "num_batches_tracked") for name in theirs if name.endswith("running_var")
    ]
    return extra | {name: torch.zeros((), dtype=torch.int64) for name in counters}


def from_hugging_face(state: Mapping[str, Tensor]) -> State:
    """Return a model of theirs in our names."""
    is_swin = any(name.startswith(f"{ENCODER}.model.") for name in state)
    result: State = {}
    for theirs, tensor in state.items():
        if DROPPED.search(theirs):
            continue
        name, pairs = theirs, HEAD
        if theirs.startswith(ENCODER):
            pairs = SWIN if is_swin else RESNET
            for pattern, replacement in IN_MEMORY:
                name = re.sub(pattern, replacement, name)
        else:
            for in_memory, in_file in IN_MEMORY_HEAD:
                name = name.replace(in_memory, in_file)
        for our_part, their_part in pairs:
            name = name.replace(their_part, our_part)
        result[name] = tensor
    unknown = (name for name in result if not name.startswith(("backbone.", "sem_seg_head.")))
    refuse_unknown(unknown, "Hugging Face's MaskFormer's")
    return _with_joined_attention(result)


def _with_joined_attention(state: State) -> State:
    """Join query, key and value where the query is."""
    result: State = {}
    for name, tensor in state.items():
        found = next(((joined, parts) for joined, parts in JOINED.items() if f".{parts[0]}" in name), None)
        if found:
            joined, parts = found
            names = [name.replace(parts[0], part) for part in parts]
            missing = [part for part in names if part not in state]
            if missing:
                raise ValueError(
                    f"The file lacks {', '.join(missing)}, which belong to {name}: download it again."
                )
            result[name.replace(parts[0], joined)] = torch.cat([state[part] for part in names])
        elif not any(f".{part}" in name for _, *rest in JOINED.values() for part in rest):
            result[name] = tensor
    return result
