"""How the matrix of a layer is laid out on arrays, and scaled to what their devices hold."""

from dataclasses import dataclass
from itertools import pairwise

from rapa_lib._checks import Checked, flag, real
from rapa_lib.runtime import AnalogArrays


@dataclass(frozen=True)
class MappingParameters(Checked):
    """How weights get onto devices. Names are aihwkit's; the defaults leave matrices as they are.

    Args:
        weight_scaling_omega: scale each array's weights so that the largest magnitude is so many
            times the devices' mean bound (the smaller of w_max and −w_min; ``IdealDevice.w_max``),
            the factor being applied digitally to what is read; 0: weights are written as they are.
            Pulses are sent for the step of the scaled weight: the learning rate keeps its meaning.
        weight_scaling_columnwise: a factor for each output of an array instead of one for all.
        arrays: the hardware, as the run-time model knows it: matrices of more rows or columns than
            :attr:`AnalogArrays.max_size` are split evenly over several arrays, each with its own
            converters, and their partial sums are added digitally; None: an array is as large as
            its matrix.

    Raises:
        ValueError, TypeError: naming the argument.

    Examples:
        >>> hardware = AnalogArrays(max_size=(512, 256))
        >>> mapping = MappingParameters(weight_scaling_omega=0.6, arrays=hardware)
        >>> mapping.max_input_size, mapping.max_output_size
        (512, 256)
    """

    weight_scaling_omega: float = real(0.0, low=0)
    weight_scaling_columnwise: bool = flag(False)
    arrays: AnalogArrays | None = None

    def _check(self) -> None:
        if self.arrays is None:
            return
        if not isinstance(self.arrays, AnalogArrays):
            raise TypeError(f"arrays: got {self.arrays!r}, expected AnalogArrays or None")
        if self.arrays.analog_bias:
            raise ValueError("arrays: got analog_bias=True, allowed for simulated tiles: False")

    @property
    def max_input_size(self) -> int | None:
        """The most rows of an array; None: any number."""
        return None if self.arrays is None else self.arrays.array_size[0]

    @property
    def max_output_size(self) -> int | None:
        """The most columns of an array; None: any number."""
        return None if self.arrays is None else self.arrays.array_size[1]

    def splits(self, in_features: int, out_features: int) -> bool:
        """Whether a matrix takes more than one array."""
        return len(_parts(in_features, self.max_input_size)) > 1 or (
            len(_parts(out_features, self.max_output_size)) > 1
        )

    def parts(self, in_features: int, out_features: int) -> tuple[list[slice], list[slice]]:
        """The rows and the columns of a matrix that lie together on an array."""
        return _parts(in_features, self.max_input_size), _parts(out_features, self.max_output_size)


def _parts(size: int, most: int | None) -> list[slice]:
    """As few parts as possible, of sizes that differ by at most one."""
    n = 1 if most is None else -(-size // most)
    ends = [size * i // n for i in range(n + 1)]
    return [slice(begin, end) for begin, end in pairwise(ends)]
