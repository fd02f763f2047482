"""The documentation's table is the code's; its snippets are run by `tests/docs`."""

from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "homomorphic-projection.md"


def test_the_table_of_the_page_is_the_table_of_the_code():
    from secure.he.params import MAX_MODULUS_BITS

    row = next(line for line in PAGE.read_text().splitlines() if "at most | 26" in line)
    assert [int(cell) for cell in row.split("|")[2:-1]] == list(MAX_MODULUS_BITS.values())
