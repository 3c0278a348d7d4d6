"""EfficientFormerV2 S0, S1, S2 and L (arXiv 2212.08059), and what their released weights are called here."""

from collections.abc import Mapping

from torch import Tensor

from search_spaces.arch import Arch
from search_spaces.blocks import MB4D, AttentionEmbed, BlockSpec, Embed, Head, MapAttention, Stem
from search_spaces.zoo.efficientformer import carried

__all__ = ["ARCHS", "released"]


def _arch(widths: tuple[int, ...], ratios: tuple[tuple[int, ...], ...], attention: int) -> Arch:
    """Four stages with a block for each FFN ratio; the last `attention` of the third and of the fourth have attention."""
    blocks: list[BlockSpec] = []
    for stage, (width, own) in enumerate(zip(widths, ratios, strict=True)):
        embeds = (Stem(width, act="gelu"), Embed(width), Embed(width), AttentionEmbed(width))
        local = len(own) - (attention if stage > 1 else 0)
        stride = 2 if stage == 2 else 1
        blocks += [embeds[stage], *(MB4D(ratio, mixer="depthwise") for ratio in own[:local])]
        blocks += [MapAttention(ratio=ratio, stride=stride) for ratio in own[local:]]
    return Arch(224, 3, (*blocks, Head(1000, distilled=True, norm="batch")))


S0 = ((4,) * 2, (4,) * 2, (4, *(3,) * 3, 4, 4), (4, 3, 3, 4))
S1 = ((4,) * 3, (4,) * 3, (4, 4, *(3,) * 4, *(4,) * 3), (4, 4, 3, 3, 4, 4))
S2 = ((4,) * 4, (4,) * 4, (4, 4, *(3,) * 6, *(4,) * 4), (4, 4, *(3,) * 4, 4, 4))
L = ((4,) * 5, (4,) * 5, (*(4,) * 4, *(3,) * 7, *(4,) * 4), (*(4,) * 3, *(3,) * 4, *(4,) * 3))

ARCHS = {
    "efficientformerv2_s0": _arch((32, 48, 96, 176), S0, 2),
    "efficientformerv2_s1": _arch((32, 48, 120, 224), S1, 2),
    "efficientformerv2_s2": _arch((32, 64, 144, 288), S2, 4),
    "efficientformerv2_l": _arch((40, 80, 192, 384), L, 6),
}

NAMES = (  # timm's parts of a name, and ours
    ("stem.conv1.conv.", "stem.conv1."),
    ("stem.conv1.bn.", "stem.norm1."),
    ("stem.conv2.conv.", "stem.conv2."),
    ("stem.conv2.bn.", "stem.norm2."),
    ("downsample.conv.conv.", "downsample.conv."),
    ("downsample.conv.bn.", "downsample.norm."),
    ("downsample.attn.", "downsample.attention."),
    (".q.local.", ".local."),
    (".q.proj.", ".q."),
    (".attention_biases", ".core.attention_biases"),
    (".talking_head1.", ".core.talking_logits."),
    (".talking_head2.", ".core.talking_weights."),
    (".mlp.fc1.conv.", ".mlp.fc1."),
    (".mlp.fc1.bn.", ".mlp.norm1."),
    (".mlp.mid.conv.", ".mlp.mid."),
    (".mlp.mid.bn.", ".mlp.norm_mid."),
    (".mlp.fc2.conv.", ".mlp.fc2."),
    (".mlp.fc2.bn.", ".mlp.norm2."),
    (".bn.", ".norm."),
)


def released(state: Mapping[str, Tensor], arch: Arch) -> dict[str, Tensor]:
    """A state dict in timm's naming as that of `arch`; index tables, which networks make anew, are left out.

    Raises:
        InputError: an entry that has no place in such a network.
    """
    return carried(state, arch, _ours)


def _ours(name: str) -> str:
    """The entry's name in timm, with our name behind its block's."""
    for timm, ours in NAMES:
        name = name.replace(timm, ours)
    return name
