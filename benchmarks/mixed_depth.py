"""Mixed-depth against fixed-depth training of a recursive network at equal steps (SReT, arXiv 2111.05297, section 4).

    python benchmarks/mixed_depth.py --seeds 0 1 2 --out results/mixed_depth.json

Two blocks of three loops each. "fixed": every step trains all three loops. "mixed": every step draws 1, 2 or 3. Each is
read with one, two and three loops, BN statistics told anew on training images. Accuracies are on the test split, intervals a paired bootstrap over its images.
"""

from collections.abc import Mapping

from arms import Arm, Hits, compare, parser

from nas.data import Data
from nas.evaluate import calibration_batches, correct
from nas.train.loop import Recipe
from search_spaces.arch import Arch, Network
from search_spaces.blocks import MB3D, Head, Stem
from search_spaces.variants import extract_variant, most_loops, recalibrate_variant


def network(loops: int) -> Arch:
    """8 x 8 tokens of width 48, two blocks with a projection after each loop."""
    block = MB3D(3, 16, 16, 3, layer_scale=0.1, loops=loops, nll=1)
    return Arch(64, 3, (Stem(48, convs=3), block, block, Head(16)))


def by_loops(trained: Network, arch: Arch, data: Data) -> Mapping[str, Hits]:
    """The readings with every number of loops."""
    found, batches = {}, calibration_batches(data, seed=0)
    for loops in range(1, most_loops(arch) + 1):
        variant = arch.with_loops(loops)
        stats = recalibrate_variant(trained, arch, variant, batches)
        found[f"read with {loops}"] = correct(extract_variant(trained, arch, variant, stats), data, "test")
    return found


def main() -> None:
    options = parser(__doc__, "results/mixed_depth.json", epochs=8).parse_args()

    def arms(seed: int) -> list[Arm]:
        def recipe(mixed: bool) -> Recipe:
            return Recipe(options.epochs, 32, 2e-3, seed=seed, mixed_depth=mixed)

        return [Arm(name, network(3), recipe(name == "mixed"), by_loops) for name in ("fixed", "mixed")]

    pairs = [(f"mixed read with {loops}", f"fixed read with {loops}") for loops in (1, 2, 3)]
    compare(arms, pairs, options, "python benchmarks/mixed_depth.py")


if __name__ == "__main__":
    main()
