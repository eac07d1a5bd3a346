"""The demo: recipes/demo.gin, the whole method on a small world, with the pretrained model that the package holds."""

from pathlib import Path

from promot_t5x import flags, pipeline

CHECKPOINT = Path(__file__).resolve().parent / "demo_checkpoint"


def main(argv: list[str]) -> None:
    """Runs the demo's recipe; --gin flags change it, --gin_file replaces it."""
    parser = flags.flag_parser("promot-t5x demo", __doc__)
    parser.add_argument("--out", default="out/demo", help="where results and report go (default: out/demo)")
    invocation = flags.parse_flags(argv, parser)
    files = invocation.gin_files or ("recipes/demo.gin",)
    pipeline.main(
        [
            *(f"--gin_file={file}" for file in files),
            *([f"--gin_search_paths={','.join(invocation.gin_search_paths)}"] if invocation.gin_search_paths else []),
            *(["--dry_run"] if invocation.dry_run else []),
            *([f"--tfds_data_dir={invocation.tfds_data_dir}"] if invocation.tfds_data_dir else []),
            f"--gin_bindings=WORK_DIR = {str(Path(invocation.extra['out']).absolute())!r}",
            f"--gin_bindings=DEMO_CHECKPOINT = {str(CHECKPOINT)!r}",
            *(f"--gin_bindings={binding}" for binding in invocation.gin_bindings),
        ]
    )
