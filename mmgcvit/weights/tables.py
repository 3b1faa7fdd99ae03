"""Relative position bias tables of another window size."""

from torch import Tensor

from .. import ops
from ..errors import UserError


def resize_bias_table(table: Tensor, num_offsets: int) -> Tensor:
    """Resize a table as :func:`mmgcvit.ops.resize_bias_table` does.

    Raises:
        UserError: If the table is not 2-dimensional or does not belong to square windows.
    """
    try:
        return ops.resize_bias_table(table, num_offsets)
    except ValueError as error:
        raise UserError(str(error)) from error
