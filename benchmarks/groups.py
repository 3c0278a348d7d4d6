"""Groups of tokens: with permutation and inverse, without the inverse, without permutation (SReT, arXiv 2111.05297, table 9).

    python benchmarks/groups.py --seeds 0 1 2 --out results/groups.json

Two blocks of two loops on 64 tokens, cut into 4 groups in the first loop and 2 in the second, whose tokens are permuted as
SReT does. Accuracies are on the test split, intervals a paired bootstrap.
"""

from arms import Arm, compare, parser

from nas.train.loop import Recipe
from search_spaces.arch import Arch
from search_spaces.blocks import MB3D, Head, Stem


def network(second: str = "permuted", inverse: bool = True) -> Arch:
    """8 x 8 tokens of width 48."""
    block = MB3D(
        3, 16, 16, 3, layer_scale=0.1, loops=2, nll=1, groups=(4, 2), orders=("contiguous", second), inverse=inverse
    )
    return Arch(64, 3, (Stem(48, convs=3), block, block, Head(16)))


ARMS = {
    "permuted and put back": network(),
    "permuted, not put back": network(inverse=False),
    "not permuted": network(second="contiguous"),
}


def main() -> None:
    options = parser(__doc__, "results/groups.json", epochs=8).parse_args()

    def arms(seed: int) -> list[Arm]:
        return [Arm(name, arch, Recipe(options.epochs, 32, 2e-3, seed=seed)) for name, arch in ARMS.items()]

    pairs = [("permuted and put back", other) for other in ARMS if other != "permuted and put back"]
    compare(arms, pairs, options, "python benchmarks/groups.py")


if __name__ == "__main__":
    main()
