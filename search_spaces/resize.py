"""Images in another size: the one resizing that data, training and teachers share."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Resize", "resized"]


def resized(images: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Images (B, C, H, W) -> (B, C, `size`, `size`), or of a (height, width); the very images where that is their size.

    Bilinear with antialiasing: made smaller, every pixel is a weighted mean of all that it covers.
    """
    sides = (size, size) if isinstance(size, int) else size
    if tuple(images.shape[-2:]) == sides:
        return images
    return F.interpolate(images, sides, mode="bilinear", antialias=True)


class Resize(nn.Module):
    """`resized` to `new` pixels a side, of images of `old`; in exported graphs by two matmuls, as exporters lack the operator."""

    weights: Tensor

    def __init__(self, old: int, new: int) -> None:
        super().__init__()
        self.size = new
        pixels = torch.eye(old, device="cpu")[None, None]  # resized along one side, they tell what each one weighs
        weights = F.interpolate(pixels, (new, old), mode="bilinear", antialias=True)[0, 0]
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export():  # by dynamo, by TorchScript
            return self.weights @ images @ self.weights.T
        return resized(images, self.size)
