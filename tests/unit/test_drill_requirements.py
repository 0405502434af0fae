"""What a drill's report says of requirements: nothing that was not seen."""

from __future__ import annotations

from service.drill_requirements import requirements


def not_shown(*, sealed: bool | None, by_tpm: bool = False, passed: bool = True) -> list[str]:
    found = requirements(passed=passed, sealed=sealed, by_tpm=by_tpm)
    return [line for each in found for line in each["not_shown"]]


def test_who_made_an_archive_is_not_shown_when_it_is_not_sealed_and_not_said_to_be_so_when_it_was_not_opened() -> None:
    unsealed = "Who made the archive: it is not sealed."
    assert unsealed in not_shown(sealed=False)
    assert not any("Who made" in line for line in not_shown(sealed=True, by_tpm=True))
    told = not_shown(sealed=None, passed=False)
    assert unsealed not in told
    assert "Who made the archive: it was not opened." in told


def test_a_drill_that_failed_shows_nothing() -> None:
    for sealed in (True, False, None):
        assert all(each["shown"] == [] for each in requirements(passed=False, sealed=sealed, by_tpm=False))
