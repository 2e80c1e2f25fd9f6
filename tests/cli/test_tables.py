"""What every command prints with."""

from gpualloc.cli.tables import printable


def test_printable_keeps_letters_of_all_scripts() -> None:
    assert printable("größer 模型\u202e\x00") == "größer 模型\\u202e\\x00"
