"""The sentence for a mistake, whoever raises it, and what an interrupt says."""

import errno
import os

import gin
import pytest

from promot_t5x.configuration import mistakes, program


def _raised_by(function, *arguments):
    with pytest.raises(Exception) as caught:
        function(*arguments)
    return caught.value


@pytest.mark.parametrize(
    "path,reason",
    [
        ("absent", "does not exist"),
        ("file/x", "a part of this path is a file"),
        ("folder", "is a folder, expected a file"),
        ("x" * 300, "too long for the file system"),
    ],
)
def test_what_the_operating_system_refuses_is_named_with_its_path(path, reason, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    error = _raised_by(open, tmp_path / path)
    assert mistakes.sentence(error).startswith(f"{tmp_path / path} ") and reason in mistakes.sentence(error)
    assert not mistakes.is_from_library(error)


@pytest.mark.parametrize("code", sorted(errno.errorcode))
def test_every_code_of_the_operating_system_is_one_sentence(code):
    sentence = mistakes.sentence(OSError(code, os.strerror(code), "some/path"))
    assert sentence.startswith("some/path ") and "\n" not in sentence and "; " in sentence


def test_gins_copy_of_an_error_keeps_the_path(tmp_path):
    @gin.configurable(module="mistakes_test")
    def outer():
        inner()

    @gin.configurable(module="mistakes_test")
    def inner():
        os.listdir(tmp_path / "absent")

    error = _raised_by(outer)
    assert "In call to configurable 'outer'" in str(error)
    assert mistakes.sentence(error) == f"{tmp_path / 'absent'} does not exist; check the path"


def test_an_error_of_the_program_is_no_mistake():
    assert mistakes.sentence(KeyError("name")) is None
    assert mistakes.sentence(AssertionError()) is None


def test_an_interrupt_says_how_to_continue(capsys):
    def interrupted(argv):
        interrupt = KeyboardInterrupt()
        interrupt.add_note("it was in step 3 of 9")
        interrupt.add_note("the same command resumes")
        raise interrupt

    assert program.run_main(interrupted, []) == 130
    assert capsys.readouterr().err == "\ninterrupted; it was in step 3 of 9; the same command resumes\n"


def test_a_reader_that_stops_reading_is_no_mistake(capsys):
    """As in `promot-t5x eval --list | head -1`."""

    def reads_no_more(argv):
        raise BrokenPipeError

    with open(os.devnull, "w") as nobody, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", nobody)
        assert program.run_main(reads_no_more, []) == 1
    assert capsys.readouterr().err == ""
