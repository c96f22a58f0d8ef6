"""Sines and cosines of where a token lies in a picture."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_SPAN = 64.0
"""Length of a picture's longer side, whatever its size: its neighbourhoods have the same code at every resolution."""


def position_code(height: int, width: int, channels: int, device: torch.device | None = None) -> Tensor:
    """Code of each position of a picture.

    The first half of the channels tells the row, the other the column; each sines then cosines of geometrically spaced
    rates (Vaswani et al., arXiv 1706.03762), of the middle of the position.

    Args:
        height: Positions of a column.
        width: Positions of a row.
        channels: C, a multiple of 4.
        device: Of the result.

    Returns:
        `[height * width, C]` float32, in row-major order.
    """
    assert channels % 4 == 0, "rows and columns need a sine and a cosine each"
    rates = torch.exp(torch.arange(channels // 4, device=device) * (-math.log(10000.0) / (channels // 4)))
    unit = _SPAN / max(height, width)
    rows = (torch.arange(height, device=device) + 0.5)[:, None] * unit * rates
    columns = (torch.arange(width, device=device) + 0.5)[:, None] * unit * rates
    row_code = torch.cat([rows.sin(), rows.cos()], dim=1)[:, None].expand(-1, width, -1)
    column_code = torch.cat([columns.sin(), columns.cos()], dim=1)[None].expand(height, -1, -1)
    return torch.cat([row_code, column_code], dim=2).flatten(0, 1)
