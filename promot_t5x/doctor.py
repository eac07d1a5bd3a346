"""The doctor verb: what a person who helps would ask first."""

import os
import platform

import jax

from promot_t5x.configuration import flags, gin_files
from promot_t5x.runtime.versions import versions


def main(argv: list[str]) -> None:
    """Prints versions, devices, the data folder and where gin files come from."""
    parser = flags.flag_parser("promot-t5x doctor", __doc__)
    invocation = flags.parse_flags(argv, parser)
    for name, version in versions().items():
        print(f"{name:24} {version}")
    print(f"{'machine':24} {platform.platform()}, {os.cpu_count()} CPU cores")
    print(f"{'backend':24} {jax.default_backend()}: {', '.join(map(str, jax.devices()))}")
    print(f"{'processes':24} {jax.process_count()}")
    data_dir = invocation.tfds_data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets (the default)"
    print(f"{'TFDS data':24} {data_dir}")
    files = gin_files.gin_files_packaged()
    print(f"{'gin files':24} {len(files)} in {files[0].parents[1] if files else 'nowhere'}")
