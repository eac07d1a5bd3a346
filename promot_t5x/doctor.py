"""The doctor command: versions, folders and devices, the first things to ask for when something fails."""

import argparse
import os
import platform

from promot_t5x.configuration import flags, gin_files
from promot_t5x.runtime import files
from promot_t5x.runtime.versions import versions


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    examples = ("promot-t5x doctor", "promot-t5x doctor --tfds_data_dir=gs://bucket/tfds")
    return flags.flag_parser("promot-t5x doctor", __doc__, examples=examples)


def main(argv: list[str]) -> None:
    """Prints versions and the folders of data, caches and gin files at once, then the devices."""
    invocation = flags.parse_flags(argv, parser())
    flags.refuse_configuration(invocation, "doctor", but=("tfds_data_dir",))
    for name, version in versions().items():
        _show(name, version)
    _show("machine", f"{platform.platform()}, {os.cpu_count()} CPU cores")
    data_dir = invocation.tfds_data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets (the default)"
    _show("TFDS data", data_dir)
    _show("cache", f"{files.cache_folder()} (PROMOT_CACHE)")
    shipped = gin_files.gin_files_packaged()
    _show("gin files", f"{len(shipped)} in {shipped[0].parents[1] if shipped else 'nowhere'}")

    import jax  # only now, as finding devices can take long or fail

    _show("backend", f"{jax.default_backend()}: {', '.join(map(str, jax.devices()))}")
    _show("processes", str(jax.process_count()))


def _show(name: str, value: str) -> None:
    print(f"{name:24} {value}", flush=True)
