"""Rules on how names are spelt across the package."""

import pathlib
import re

import promot_t5x

PACKAGE = pathlib.Path(promot_t5x.__file__).parent

# A parameter's name in quotes: "soft_prompt" or "soft_prompt/embedding"; features such as "soft_prompt_ids" are not.
PARAMETER_NAME = re.compile(r"""["']soft_prompt(/|["'])""")

# A checkpoint format of that name is the value of --to_format.
FORMAT = re.compile(r"""\("soft_prompt", "npy", "peft"\)|to_format == "soft_prompt\"""")


def test_only_parameter_names_spells_the_soft_prompt():
    """An adapter that is added or renamed there is known everywhere."""
    spelt = {
        str(file.relative_to(PACKAGE))
        for file in PACKAGE.rglob("*.py")
        for line in file.read_text().splitlines()
        if PARAMETER_NAME.search(line) and not FORMAT.search(line)
    }
    assert spelt == {"models/parameter_names.py"}
