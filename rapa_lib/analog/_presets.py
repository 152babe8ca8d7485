"""Ready-made tiles: what published devices are, with their sources."""

from rapa_lib.analog._config import IOParameters, TileConfig, UpdateParameters
from rapa_lib.analog._device_config import IdealDevice, SoftBoundsDevice


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
    step where the preset adds it to it. Periphery and pulses as in :func:`rpu_baseline`.
    """
    return TileConfig(
        device=SoftBoundsDevice(
            dw_min=0.002, dw_min_std=3.75, w_max=1.25, w_max_dtod=0.24, w_min=-0.75, w_min_dtod=0.4
        )
    )


PRESETS = {"ideal": ideal, "rpu_baseline": rpu_baseline, "reram": reram}
"""Every preset by name."""
