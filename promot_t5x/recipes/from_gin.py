"""Builds a model from gin files, for Python."""

from collections.abc import Mapping, Sequence
from typing import Any

from promot_t5x.configuration import gin_checks, gin_files, gin_statements
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.runtime import arguments


@arguments.checked
def from_gin(
    files: Sequence[str], bindings: Mapping[str, Any] | None = None, search_paths: Sequence[str] = ()
) -> EncoderDecoderModel:
    """Builds the model that gin files declare.

    Args:
      files: as for `--gin_file`; short names such as `models/mt5_xxl.gin` are files of the package.
      bindings: values of macros or parameters, as set by `--gin.NAME=VALUE`.
      search_paths: folders that are searched for the files before the package.

    Returns:
      The model; gin's global configuration is neither read nor changed.

    Raises:
      FileNotFoundError: a gin file does not exist.
      ConfigError: a mistake in the files or bindings, a macro that nothing uses, or files that declare no model.

    >>> from_gin(["models/mt5_xxl.gin"], {"PROMPT_LENGTH": 50}).config.prompt_length
    50
    """
    with gin_statements.separate():
        gin_files.parse(files, gin_files.statements(bindings or {}), search_paths)
        gin_checks.check_macros()
        gin_checks.check_flags("encoder_decoder.EncoderDecoderModel")
        return gin_files.configurable(EncoderDecoderModel)()
