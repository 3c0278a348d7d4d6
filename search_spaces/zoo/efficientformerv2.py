"""EfficientFormerV2 S0, S1, S2 and L (arXiv 2212.08059)."""

from collections.abc import Iterator

from search_spaces.arch import Arch
from search_spaces.blocks import MB4D, AttentionEmbed, BlockSpec, Embed, Head, MapAttention, Stem
from search_spaces.zoo.efficientformer import numbered
from search_spaces.zoo.released import Entry, Family, Naming, places

__all__ = ["FAMILY"]


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


def _paired(name: str, *pairs: tuple[str, str]) -> str:
    """A part's name with convolution and BN under one name, as timm's."""
    part, _, leaf = name.partition(".")
    found = next(((conv, "bn" if part == norm else "conv") for conv, norm in pairs if part in (conv, norm)), None)
    return name if found is None else f"{found[0]}.{found[1]}.{leaf}"


def _mixer(name: str) -> str:
    """The name of a weight of attention in timm, without the attention's own."""
    name = name.replace(".norm.", ".bn.").removeprefix("core.")
    return name.replace("talking_logits", "talking_head1").replace("talking_weights", "talking_head2")


def _theirs(spec: BlockSpec, name: str) -> str:
    """A weight's name in timm, without its block's."""
    first, _, rest = name.partition(".")
    if first == "mlp":
        return f"mlp.{_paired(rest, ('fc1', 'norm1'), ('mid', 'norm_mid'), ('fc2', 'norm2'))}"
    if first == "token_mixer":
        return f"token_mixer.{_mixer(rest)}"
    if first == "attention":  # whose queries come of two paths
        part, _, leaf = _mixer(rest).partition(".")
        part = {"local": "q.local", "q": "q.proj"}.get(part, part)
        return f"attn.{part}.{leaf}" if leaf else f"attn.{part}"
    if isinstance(spec, Stem):
        return _paired(name, ("conv1", "norm1"), ("conv2", "norm2"))
    return _paired(name, ("conv", "norm")) if isinstance(spec, Embed | AttentionEmbed) else name


def _namings(arch: Arch) -> Iterator[Naming]:
    """The only one that is known: timm's."""
    found: dict[str, Entry] = {}
    stages = numbered(arch)
    for place in places(arch):
        position, name = int(place.split(".")[1]), place.split(".", 2)[2]
        spec, (stage, number) = arch.blocks[position], stages[position]
        theirs = _theirs(spec, name)
        if isinstance(spec, Stem):
            theirs = f"stem.{theirs}"
        elif isinstance(spec, Embed | AttentionEmbed):
            theirs = f"stages.{stage}.downsample.{theirs}"
        elif not isinstance(spec, Head):
            theirs = f"stages.{stage}.blocks.{number}.{theirs}"
        found[theirs] = Entry(place)
    yield found


FAMILY = Family(
    {
        "efficientformerv2_s0": _arch((32, 48, 96, 176), S0, 2),
        "efficientformerv2_s1": _arch((32, 48, 120, 224), S1, 2),
        "efficientformerv2_s2": _arch((32, 64, 144, 288), S2, 4),
        "efficientformerv2_l": _arch((40, 80, 192, 384), L, 6),
    },
    _namings,
    tables=("attention_bias_idxs",),
)
