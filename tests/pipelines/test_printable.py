"""Which characters the fonts of documents have."""

import unicodedata

from pipelines.printable import characters, unprintable


def test_the_letters_that_are_not_looked_up_are_in_the_fonts() -> None:
    usual = [one for one in range(0x20, 0x180) if unicodedata.category(chr(one)) not in ("Cc", "Cf")]
    assert [hex(one) for one in usual if one not in characters()] == []


def test_what_no_font_has_is_named_once_and_what_is_not_drawn_is_left_out() -> None:
    assert unprintable("Müller & Söhne, 東京, Ελλάς, שלום, 1\u200b2\ufeff") == ""
    assert unprintable("a\U00012000b\U00012000\x85") == "\x85\U00012000"
