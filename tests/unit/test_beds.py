"""What the beds share: the cache that several runs on one machine use, and the list of what must be installed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import beds

SETUP = Path(beds.__file__).with_name("setup.sh")


@pytest.mark.skipif(os.geteuid() != 0, reason="the cache among everybody's files is root's")
def test_a_cache_that_others_can_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "beds"
    monkeypatch.delenv("TESGATE_BEDS", raising=False)
    monkeypatch.setattr(beds, "ROOTS_CACHE", place)
    before = os.umask(0)
    try:
        assert beds.cache_directory() == place
    finally:
        os.umask(before)
    assert place.stat().st_mode & 0o022 == 0
    os.chown(place, 54321, -1)
    with pytest.raises(beds.BedUnavailable, match="TESGATE_BEDS"):
        beds.cache_directory()
    os.chown(place, 0, -1)
    place.chmod(0o777)
    with pytest.raises(beds.BedUnavailable, match="TESGATE_BEDS"):
        beds.cache_directory()
    place.rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").chmod(0o755)
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(beds.BedUnavailable, match="TESGATE_BEDS"):
        beds.cache_directory()
