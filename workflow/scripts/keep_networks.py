"""Keep the trained networks of a study beside its records, as ``networks/<run>.pt``.

``make tables`` puts them back where the study looks for them: attacks and other experiments on
trained networks then go on elsewhere without training again.
"""

import argparse
from pathlib import Path

from rapa_lib.experiments.archive import keep_networks


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("results", type=Path, help="the study's folder")
    options = arguments.parse_args()
    kept = keep_networks(options.results)
    if not kept:
        raise SystemExit(f"networks not kept: {options.results} has no trained network")
    size = sum(path.stat().st_size for path in kept) / 1e6
    print(f"{options.results.name}: {len(kept)} networks are kept, {size:.1f} MB")
    print(f"  {kept[0].parent}")


if __name__ == "__main__":
    main()
