"""Places in shared memory: what is put there is there for others, whole, whatever happens to who put it."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator

import pytest

from ipc import shelf, tally
from ipc.shelf import Shelf, Shelves
from ipc.tally import DURATION, Tally, key, observe


@pytest.fixture
def memory() -> Iterator[int]:
    descriptor = shelf.create()
    yield descriptor
    os.close(descriptor)


def test_what_is_put_is_read_by_another_one_with_the_same_memory(memory: int) -> None:
    """Owners have places of their own, found by name, whatever order the names come in."""
    one, other = Shelves(memory, ["b", "a"]), Shelves(memory, ["a", "b"])
    assert other.of("a").read() == b""
    one.of("a").put(b"first")
    one.of("b").put(b"second")
    assert (other.of("a").read(), other.of("b").read()) == (b"first", b"second")
    one.of("a").put(b"")
    assert other.of("a").read() == b""


def test_what_does_not_fit_is_refused_and_the_old_document_stays(memory: int) -> None:
    """A place is full at some point; what is there is not harmed."""
    place = Shelf(memory, 0)
    place.put(b"old")
    with pytest.raises(ValueError, match="do not fit"):
        place.put(bytes(shelf.SIZE // 2))
    assert place.read() == b"old"
    longest = b"x" * (shelf.SIZE // 2 - 8)
    place.put(longest)
    place.put(longest)
    assert place.read() == longest
    assert Shelf(memory, 1).read() == b""


def test_owners_beyond_the_places_have_memory_of_their_own(memory: int) -> None:
    """Nobody writes into another's place for want of one."""
    names = [f"{number:04}" for number in range(shelf.PLACES + 2)]
    shelves = Shelves(memory, names)
    shelves.of(names[-1]).put(b"mine")
    assert shelves.of(names[-1]).read() == b"mine"
    assert Shelves(memory, names).of(names[-1]).read() == b""


def _write_for_ever(descriptor: int) -> None:
    place = Shelf(descriptor, 0)
    number = 0
    while True:
        number += 1
        place.put((b"%d," % (number % 10)) * (1 + number % 5000))


def test_a_writer_that_is_killed_leaves_a_whole_document(memory: int) -> None:
    """Killed at any point, it leaves the old document or the new one; a reader beside it never sees half of one."""
    place = Shelf(memory, 0)
    for _ in range(5):
        process = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(memory,), daemon=True)
        process.start()
        seen = set()
        while len(seen) < 20:
            document = place.read()
            assert document == document[:2] * (len(document) // 2)
            seen.add(document)
        process.kill()
        process.join()
        left = place.read()
        assert left
        assert left == left[:2] * (len(left) // 2)


def test_histograms_of_several_owners_merge_exactly(memory: int) -> None:
    """The sum of the parts is what one owner would have counted."""
    parts = [Tally(), Tally()]
    whole = Tally()
    for number, value in enumerate([0, 1, 50_000, 50_001, 10**9, 10**15]):
        for mine in (parts[number % 2], whole):
            observe(mine.histogram("h", DURATION), DURATION, value)
            mine.count(key("c", "label"))
    together = Tally()
    for number, part in enumerate(parts):
        place = Shelf(memory, number)
        part.put(place)
        together.add(Tally.load(place))
    assert together == whole
    assert tally.split(key("c", "label", "")) == ("c", ("label", ""))


def test_a_place_that_cannot_be_read_counts_for_nothing(memory: int) -> None:
    """Neither garbage nor another version's figures end whoever reads them."""
    place = Shelf(memory, 0)
    for garbage in (b"{", b"[]", b'{"counters":{"a":"b"}}', b'{"histograms":{"h":[1.5]}}', b"\xff"):
        place.put(garbage)
        assert Tally.load(place) == Tally()
    place.put(b'{"histograms":{"h":[1,2]}}')
    assert Tally.load(place).histogram("h", DURATION) == tally.empty(DURATION)
