"""Ready-made tiles: what published devices are, with their sources."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from rapa_lib.analog._compound_config import (
    BufferedTransferCompound,
    ChoppedTransferCompound,
    MixedPrecisionCompound,
    TransferCompound,
)
from rapa_lib.analog._config import TileConfig
from rapa_lib.analog._device_config import (
    ConstantStepDevice,
    ExpStepDevice,
    IdealDevice,
    LinearStepDevice,
    PulsedDevice,
    SoftBoundsDevice,
)
from rapa_lib.analog._io_config import IOParameters, UpdateParameters


def ideal() -> TileConfig:
    """A digital layer in other clothes: exact products, exact updates by any optimizer."""
    perfect = IOParameters.perfect()
    return TileConfig(perfect, perfect, UpdateParameters(), IdealDevice())


def rpu_baseline() -> TileConfig:
    """The baseline resistive processing unit: constant steps, 7-bit DAC, 9-bit ADC.

    Devices: the specification of Gokmen & Vlasov, Front. Neurosci. 10:333 (2016). Noise, bound and
    update management: Gokmen, Onen & Haensch, Front. Neurosci. 11:538 (2017). As aihwkit 1.2.0's
    defaults have it.
    """
    return TileConfig()


def reram() -> TileConfig:
    """A resistive memory with soft bounds.

    Devices: aihwkit's ``ReRamSBPresetDevice``, its loose fit of Gong et al., Nat. Commun. 9:2102
    (2018). Without that preset's write noise, and with cycle-to-cycle noise in proportion to the
    step where the preset adds it to it (``ReRamSBPreset`` has both). Periphery and pulses as in
    :func:`rpu_baseline`.
    """
    return TileConfig(
        device=SoftBoundsDevice(
            dw_min=0.002, dw_min_std=3.75, w_max=1.25, w_max_dtod=0.24, w_min=-0.75, w_min_dtod=0.4
        )
    )


PRESET_DEVICES: Mapping[str, PulsedDevice] = MappingProxyType(
    {
        # Fit of Gong et al., Nat. Commun. 9:2102 (2018), exponential steps.
        "ReRamESPresetDevice": ExpStepDevice(
            dw_min=0.00135, up_down=0.259359, w_max=1.0, w_min=-1.0, a=-0.5, b=-0.5,
            gamma_up=5.0, gamma_down=5.0, A_up=-1.18445, A_down=-0.081404, dw_min_dtod=0.2,
            up_down_dtod=0.05, w_max_dtod=0.3, w_min_dtod=0.3, dw_min_std=5.0,
            write_noise_std=75.0,
        ),
        # Loose fit of the same, calibrated to the symmetry point by a reference device.
        "ReRamSBPresetDevice": SoftBoundsDevice(
            dw_min=0.002, w_max=1.25, w_min=-0.75, mult_noise=False, dw_min_dtod=0.3,
            up_down_dtod=0.01, w_max_dtod=0.24, w_min_dtod=0.4, dw_min_std=3.75,
            write_noise_std=56.0,
        ),
        # A capacitor, Li et al., VLSI 2018 (doi 10.1109/VLSIT.2018.8510648), with leakage.
        "CapacitorPresetDevice": LinearStepDevice(
            dw_min=0.005, w_max=1.0, w_min=-1.0, mult_noise=False, gamma_up=0.05,
            gamma_down=0.05, dw_min_dtod=0.1, up_down_dtod=0.06, w_max_dtod=0.07,
            w_min_dtod=0.07, gamma_up_dtod=0.01, gamma_down_dtod=0.01, dw_min_std=0.3,
            lifetime=1e6, lifetime_dtod=0.3,
        ),
        # Lithium-based electrochemical memory, Tang et al., IEDM 2018
        # (doi 10.1109/IEDM.2018.8614551), the range shifted to the symmetry point.
        "EcRamPresetDevice": LinearStepDevice(
            dw_min=0.002, w_max=1.1724, w_min=-0.8276, gamma_up=0.1153, gamma_down=0.5085,
            dw_min_dtod=0.1, up_down_dtod=0.01, w_max_dtod=0.05, w_min_dtod=0.05,
            gamma_up_dtod=0.05, gamma_down_dtod=0.05, dw_min_std=0.3,
        ),
        # Metal-oxide electrochemical memory, Kim et al., IEDM 2019
        # (doi 10.1109/IEDM19573.2019.8993463).
        "EcRamMOPresetDevice": LinearStepDevice(
            dw_min=2.8214e-4, w_max=1.1714, w_min=-0.8286, gamma_up=0.4152, gamma_down=0.7342,
            dw_min_dtod=0.1, up_down_dtod=0.01, w_max_dtod=0.05, w_min_dtod=0.05,
            gamma_up_dtod=0.05, gamma_down_dtod=0.05, dw_min_std=2.0,
        ),
        # Symmetric on average, with 10,000 steps: Rasch, Gokmen & Haensch, arXiv 1906.02698.
        "IdealizedPresetDevice": ConstantStepDevice(
            dw_min=0.0002, up_down_dtod=0.0, w_max=1.0, w_min=-1.0
        ),
        # Gokmen & Vlasov, Front. Neurosci. 10:333 (2016), scaled to the range ±1.
        "GokmenVlasovPresetDevice": ConstantStepDevice(dw_min=0.0016, w_max=1.0, w_min=-1.0),
    }
)  # fmt: skip
"""Published devices under aihwkit's names, with its numbers, each with its source."""


def _of(name: str) -> Callable[[], TileConfig]:
    return lambda: TileConfig(device=PRESET_DEVICES[f"{name}Device"])


def _compound(kind: type, name: str) -> Callable[[], TileConfig]:
    device = PRESET_DEVICES[f"{name}Device"]
    if kind is MixedPrecisionCompound:
        return lambda: TileConfig(device=MixedPrecisionCompound(device))
    # A transfer once a mini-batch, as aihwkit's presets have it.
    return lambda: TileConfig(device=kind(device, device, units_in_mbatch=True))


PRESETS: Mapping[str, Callable[[], TileConfig]] = MappingProxyType(
    {
        "ideal": ideal,
        "rpu_baseline": rpu_baseline,
        "reram": reram,
        **{name[: -len("Device")]: _of(name[: -len("Device")]) for name in PRESET_DEVICES},
        "TikiTakaReRamSBPreset": _compound(TransferCompound, "ReRamSBPreset"),
        "TikiTakaEcRamPreset": _compound(TransferCompound, "EcRamPreset"),
        "TTv2ReRamSBPreset": _compound(BufferedTransferCompound, "ReRamSBPreset"),
        "TTv2EcRamPreset": _compound(BufferedTransferCompound, "EcRamPreset"),
        "ChoppedTTv2ReRamSBPreset": _compound(ChoppedTransferCompound, "ReRamSBPreset"),
        "ChoppedTTv2EcRamPreset": _compound(ChoppedTransferCompound, "EcRamPreset"),
        "MixedPrecisionReRamSBPreset": _compound(MixedPrecisionCompound, "ReRamSBPreset"),
        "MixedPrecisionEcRamPreset": _compound(MixedPrecisionCompound, "EcRamPreset"),
    }
)
"""Every preset by name. Those with aihwkit's names have its devices of
:data:`PRESET_DEVICES`; periphery and pulses are as in :func:`rpu_baseline`."""
