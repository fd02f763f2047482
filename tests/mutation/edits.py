"""The deliberate faults: a place, what stands there, what is put there, and who should notice."""

from dataclasses import dataclass

from tests.mutation import _crypto, _federated


@dataclass(frozen=True)
class Edit:
    """One deliberate fault.

    Attributes:
        package: The package that it is in.
        file: Path from the root.
        old: Text that stands in the file exactly once.
        new: What is put there.
        tests: Test files, or single tests, that are run; one should fail.
        survives: Why no test can notice, where none can; empty otherwise.
    """

    package: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    survives: str = ""

    @property
    def name(self) -> str:
        """A short name: package, file, and the start of what is put in."""
        stem = self.file.rsplit("/", 1)[-1]
        return f"{self.package} {stem}: {' '.join(self.old.split())[:48]}"


EDITS = tuple(
    Edit(
        package,
        f"{package}/{file}",
        old,
        new,
        tuple(f"tests/{test}" for test in tests.split()),
        *survives,
    )
    for records in (_federated.RECORDS, _crypto.RECORDS)
    for package, file, old, new, tests, *survives in records
)
