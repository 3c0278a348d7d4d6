"""One file a block kind; a new kind is one file and one line in `BLOCKS`."""

from search_spaces.blocks.attention_embed import AttentionEmbed
from search_spaces.blocks.attention_pool import AttentionPool
from search_spaces.blocks.base import BlockSpec, Row
from search_spaces.blocks.conv import Conv
from search_spaces.blocks.embed import Embed
from search_spaces.blocks.head import Head
from search_spaces.blocks.inverted_residual import InvertedResidual
from search_spaces.blocks.lite_bottleneck import LiteBottleneck
from search_spaces.blocks.map_attention import MapAttention
from search_spaces.blocks.mb3d import MB3D
from search_spaces.blocks.mb4d import MB4D
from search_spaces.blocks.mobile_former import MobileFormer
from search_spaces.blocks.mobile_former_embed import MobileFormerEmbed
from search_spaces.blocks.mobile_former_pool import MobileFormerPool
from search_spaces.blocks.mobilevit import MobileViT
from search_spaces.blocks.norm import Norm
from search_spaces.blocks.normalise import Normalise
from search_spaces.blocks.patch import ClassToken, Patch
from search_spaces.blocks.position import Position
from search_spaces.blocks.reuse import Reuse
from search_spaces.blocks.side_tokens import SideTokens
from search_spaces.blocks.stem import Stem
from search_spaces.blocks.token_prune import TokenPrune
from search_spaces.blocks.tokens_to_token import TokensToToken

__all__ = [
    "BLOCKS",
    "MB3D",
    "MB4D",
    "AttentionEmbed",
    "AttentionPool",
    "BlockSpec",
    "ClassToken",
    "Conv",
    "Embed",
    "Head",
    "InvertedResidual",
    "LiteBottleneck",
    "MapAttention",
    "MobileFormer",
    "MobileFormerEmbed",
    "MobileFormerPool",
    "MobileViT",
    "Norm",
    "Normalise",
    "Patch",
    "Position",
    "Reuse",
    "Row",
    "SideTokens",
    "Stem",
    "TokenPrune",
    "TokensToToken",
]

BLOCKS: dict[str, type[BlockSpec]] = {
    "stem": Stem,
    "embed": Embed,
    "mb4d": MB4D,
    "mb3d": MB3D,
    "head": Head,
    "position": Position,
    "token_prune": TokenPrune,
    "patch": Patch,
    "class_token": ClassToken,
    "norm": Norm,
    "map_attention": MapAttention,
    "attention_embed": AttentionEmbed,
    "attention_pool": AttentionPool,
    "lite_bottleneck": LiteBottleneck,
    "side_tokens": SideTokens,
    "mobile_former": MobileFormer,
    "mobile_former_embed": MobileFormerEmbed,
    "mobile_former_pool": MobileFormerPool,
    "conv": Conv,
    "inverted_residual": InvertedResidual,
    "mobilevit": MobileViT,
    "normalise": Normalise,
    "tokens_to_token": TokensToToken,
    "reuse": Reuse,
}
