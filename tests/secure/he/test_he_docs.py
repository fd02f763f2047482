"""The documentation's code runs, block after block, in one namespace."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "homomorphic-projection.md"


def test_every_block_of_the_page_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) >= 7
    namespace: dict = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), namespace)
    assert "128-bit security" in capsys.readouterr().out


def test_the_table_of_the_page_is_the_table_of_the_code():
    from secure.he.params import MAX_MODULUS_BITS

    row = next(line for line in PAGE.read_text().splitlines() if "at most | 26" in line)
    assert [int(cell) for cell in row.split("|")[2:-1]] == list(MAX_MODULUS_BITS.values())
