"""PP-ATD-light (arXiv 2510.01997): ATD-light whose pure pixels skip category attention.

Pure-Pass adds no parameters: a checkpoint of ATD-light loads as it is. `design` choices where the paper is silent
(number of colours, window, compensation) are options of the model card.
"""

from __future__ import annotations

from torch import Tensor

from ppexport.networks.atd.atd_light import ATDLight, TransformerLayer, mirror_pad
from ppexport.networks.card import Compensation, PurePassOptions
from ppexport.networks.pure_pass import mask_from_labels, pixel_labels, pure_mask


class PPTransformerLayer(TransformerLayer):
    """A layer whose category attention skips pure tokens."""

    kind: Compensation = "value"

    def compensation(self, z: Tensor, qkv: Tensor) -> Tensor | None:
        """What pure tokens take in place of category attention (b, n, c), None for zeros."""
        if self.kind == "value":
            return qkv[..., -z.shape[-1] :]
        return z if self.kind == "normed" else None


class PPATDLight(ATDLight):
    """PP-ATD-light: (b, 3, h, w) in [0, 1] -> (b, 3, h * scale, w * scale), not clipped."""

    arch = "pp_atd_light"
    layer_type = PPTransformerLayer
    options: PurePassOptions

    def __init__(self, scale: int, options: PurePassOptions | None = None) -> None:
        super().__init__(scale, options or PurePassOptions())
        for module in self.modules():
            if isinstance(module, PPTransformerLayer):
                module.kind = self.options.compensation

    def pure_tokens(self, padded: Tensor, mask: Tensor | None) -> Tensor:
        """Pure tokens (b, H' * W') bool of the padded image (b, 3, H', W'), from *mask* (b, H', W') if given."""
        b, _, h, w = padded.shape
        if mask is None:
            o = self.options
            mask = pure_mask(padded, o.colors, o.window, o.csmf)
        elif tuple(mask.shape) != (b, h, w):
            raise ValueError(f"the mask is (b, H', W') = {(b, h, w)} over the padded image, not {tuple(mask.shape)}")
        return mask.bool().flatten(1)

    def pure_pixels(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Labels and pure pixels of the padded *x*."""
        labels = pixel_labels(mirror_pad(x), self.options.colors)
        return labels, mask_from_labels(labels, self.options.window, self.options.csmf)
