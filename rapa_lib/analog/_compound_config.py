"""Compound devices: how pulses reach the weights that products read. Names are aihwkit's.

Sources: Tiki-Taka, Gokmen & Haensch, Front. Neurosci. 14:103 (2020); its buffered second version,
Gokmen, Front. Artif. Intell. 4:699148 (2021); choppers, Rasch, Carta, Fagbohungbe & Gokmen, Nat.
Commun. 15:7133 (2024); mixed precision, Nandakumar et al., Front. Neurosci. 14:406 (2020).
"""

from dataclasses import dataclass, field
from typing import Any

from rapa_lib._checks import Checked, flag, integer, real
from rapa_lib.analog._device_config import PulsedDevice, SoftBoundsDevice
from rapa_lib.analog._io_config import IOParameters, UpdateParameters


def _few_pulses() -> UpdateParameters:
    return UpdateParameters(1, update_management=False, update_bl_management=False)


@dataclass(frozen=True)
class TransferCompound(Checked):
    """Tiki-Taka: gradients go to a fast device, whose columns are transferred to a slow one.

    After each transfer_every mini-batches (or vectors) the next columns of the fast devices are
    read, as a product with unit vectors, and added to the slow ones by pulses. What products read
    is gamma times the fast plus the slow weight.

    Args:
        fast_device, slow_device: the two devices of a cross-point.
        gamma: weight of the fast device.
        transfer_every: updates between transfers, 0: none; in mini-batches if units_in_mbatch.
        units_in_mbatch: see there; else in vectors, those that a mini-batch makes due being
            transferred at its end.
        n_reads_per_transfer: columns in a transfer.
        transfer_lr: rate of a transfer.
        scale_transfer_lr: multiply that by the learning rate.
        fast_lr: rate of the fast device; 0: the learning rate.
        transfer_forward: periphery of a read; its bound management is not used.
        transfer_update: pulses of a transfer.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    fast_device: PulsedDevice = field(default_factory=SoftBoundsDevice)
    slow_device: PulsedDevice = field(default_factory=SoftBoundsDevice)
    gamma: float = real(0.0, low=0)
    transfer_every: float = real(1.0, low=0)
    units_in_mbatch: bool = flag(True)
    n_reads_per_transfer: int = integer(1, low=1)
    transfer_lr: float = real(1.0, low=0)
    scale_transfer_lr: bool = flag(True)
    fast_lr: float = real(0.0, low=0)
    transfer_forward: IOParameters = field(
        default_factory=lambda: IOParameters(bound_management="none")
    )
    transfer_update: UpdateParameters = field(default_factory=UpdateParameters)

    def _check(self) -> None:
        wanted = {
            "fast_device": PulsedDevice,
            "slow_device": PulsedDevice,
            "transfer_forward": IOParameters,
            "transfer_update": UpdateParameters,
        }
        for name, kind in wanted.items():
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"{name}: got {getattr(self, name)!r}, expected {kind.__name__}")
        if self.transfer_forward.bound_management != "none":
            raise ValueError("transfer_forward.bound_management: got 'iterative', allowed: none")

    @property
    def device(self) -> PulsedDevice:
        """The device that holds the weight."""
        return self.slow_device


@dataclass(frozen=True)
class BufferedTransferCompound(TransferCompound):
    """Tiki-Taka's second version: what is read gathers in a digital buffer.

    Where the buffer exceeds thres_scale steps of the slow device, so many pulses are sent.

    Args:
        thres_scale: see there.
        step: size of a buffered pulse, in steps of the slow device.
        momentum: the share of a buffer that stays when pulses are sent.
        forget_buffer: the rest is dropped; else only what was sent is subtracted.
        others: of :class:`TransferCompound`.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    thres_scale: float = real(1.0, low=0, open_low=True)
    step: float = real(1.0, low=0, open_low=True)
    momentum: float = real(0.1, low=0, high=1)
    forget_buffer: bool = flag(True)
    transfer_update: UpdateParameters = field(default_factory=_few_pulses)


@dataclass(frozen=True)
class ChoppedTransferCompound(BufferedTransferCompound):
    """Buffered transfer whose gradients change their sign at random, column by column.

    A column's sign is put right when it is read: what does not depend on it, as a device's pull to
    its symmetry point, averages out.

    Args:
        in_chop_prob: probability that a column's sign changes after it was read.
        buffer_granularity: the buffer's threshold, in steps of the fast device.
        others: of :class:`BufferedTransferCompound`; the threshold there is not used.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    units_in_mbatch: bool = flag(False)
    fast_lr: float = real(1.0, low=0)
    momentum: float = real(0.0, low=0, high=1)
    in_chop_prob: float = real(0.1, low=0, high=1)
    buffer_granularity: float = real(1.0, low=0, open_low=True)

    def _check(self) -> None:
        super()._check()
        if self.n_reads_per_transfer != 1:
            raise ValueError(
                f"n_reads_per_transfer: got {self.n_reads_per_transfer}, allowed with choppers: 1"
            )


@dataclass(frozen=True)
class MixedPrecisionCompound(Checked):
    """Gradients are computed and summed digitally; whole steps of them are sent row by row.

    Args:
        device: holds the weight.
        transfer_every: mini-batches between transfers.
        granularity: step of the digital sum that is sent as one pulse; 0: the device's.
        transfer_lr: factor on what is sent.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    device: PulsedDevice = field(default_factory=SoftBoundsDevice)
    transfer_every: int = integer(1, low=1)
    granularity: float = real(0.0, low=0)
    transfer_lr: float = real(1.0, low=0, open_low=True)

    def _check(self) -> None:
        if not isinstance(self.device, PulsedDevice):
            raise TypeError(f"device: got {self.device!r}, expected PulsedDevice")


Compound = TransferCompound | MixedPrecisionCompound
COMPOUNDS: dict[str, Any] = {
    cls.__name__: cls
    for cls in (
        TransferCompound,
        BufferedTransferCompound,
        ChoppedTransferCompound,
        MixedPrecisionCompound,
    )
}
"""Every compound by name."""
