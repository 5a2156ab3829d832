"""Make hpo/decoder/demo/spoken_digits.npz from a ptDecoder_ctc pickle (see its README.md there).

    python benchmarks/make_demo_data.py PATH/TO/ptDecoder_ctc

The features must have float16 precision already: the file then holds exactly the same numbers in
half the space.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpo.data.formats import DEMO_FILE, read_sentences


def main(source: Path) -> None:
    arrays: dict[str, NDArray[Any]] = {}
    # The competition partition must stay unseen, so it is not shipped.
    for partition in ("train", "test"):
        sentences = read_sentences(source, partition)
        features = sentences.features_NC.astype(np.float16)
        if not np.array_equal(features.astype(np.float32), sentences.features_NC):
            raise SystemExit(f"{source}: features need more than float16")
        arrays |= {
            f"{partition}_features": features,
            f"{partition}_lengths": sentences.lengths_S.astype(np.int32),
            f"{partition}_labels": sentences.labels_L.astype(np.uint8),
            f"{partition}_label_lengths": sentences.label_lengths_S.astype(np.int32),
            f"{partition}_days": sentences.days_S.astype(np.uint8),
        }
    np.savez_compressed(DEMO_FILE, **arrays)  # type: ignore[arg-type]
    print(f"{DEMO_FILE}: {DEMO_FILE.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
