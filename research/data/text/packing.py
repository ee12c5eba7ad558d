"""Documents laid into rows of T tokens: cut into pieces of at most T, which share rows without room to spare.

Best-fit decreasing, as Ding et al., "Fewer Truncations Improve Language Modeling" (ICML 2024), pack documents: the
longest piece first, each into the row with the least room that still holds it. No more than 11/9 of the fewest rows
possible, and one more (Johnson et al. 1974). A piece is a run of one stream of tokens, where documents lie end to end.

T tokens of a row, D documents, P pieces, R rows, S tokens of some rows together.
"""

import bisect
from typing import NamedTuple

import numpy as np


class Packed(NamedTuple):
    """Which pieces each of R rows holds: pieces offsets[r] to offsets[r + 1] - 1 lie in row r, one after the other."""

    starts: np.ndarray  # int64 [P] where in the stream a piece begins
    lengths: np.ndarray  # int32 [P] its tokens, 1 to T
    offsets: np.ndarray  # int64 [R + 1]


class Layout(NamedTuple):
    """Where the tokens of some rows come from and go to."""

    source: np.ndarray  # int64 [S] a token's place in the stream
    place: np.ndarray  # int64 [S] its place in the rows, counted from the first row's first token
    segment: np.ndarray  # int32 [S] the piece's number in its row, from 1
    position: np.ndarray  # int32 [S] the token's number in its piece, from 0


def pack(starts: np.ndarray, lengths: np.ndarray, capacity: int) -> Packed:
    """Cuts documents into pieces of at most `capacity` tokens and packs these. The same input gives the same rows.

    Args:
      starts, lengths: integers [D], where in the stream a document's tokens begin and how many they are.
      capacity: T.
    """
    counts = -(-lengths // capacity)  # pieces of each document
    document = np.repeat(np.arange(len(lengths)), counts)
    into = ranges(np.zeros_like(counts), counts) * capacity  # where in its document a piece begins
    pieces = np.minimum(lengths[document] - into, capacity).astype(np.int32)
    begins = np.asarray(starts, np.int64)[document] + into
    row = best_fit(pieces, capacity)
    by_row = np.argsort(row, kind="stable")
    rows = row.max() + 1 if len(row) else 0
    offsets = np.zeros(rows + 1, np.int64)
    np.cumsum(np.bincount(row, minlength=rows), out=offsets[1:])
    return Packed(begins[by_row], pieces[by_row], offsets)


def best_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Returns the number of the row that each item goes into, int64 [P], by best-fit decreasing.

    Items of one length are placed together: once one lies in the row with the least sufficient room, that row has the
    least sufficient room for the next, until it has too little. So the work grows with the lengths that occur rather
    than with the items, and is O(P log P) at worst.

    Args:
      lengths: integers [P] from 1 to `capacity`.
    """
    row = np.zeros(len(lengths), np.int64)
    items = np.argsort(-lengths, kind="stable")
    room: dict[int, list[int]] = {}  # rows by the tokens that they still have room for
    rooms: list[int] = []  # the keys of `room`, sorted
    rows = at = 0
    sizes, counts = np.unique(lengths, return_counts=True)
    for size, count in zip(sizes[::-1].tolist(), counts[::-1].tolist(), strict=True):
        end = at + count
        while at < end:
            found = bisect.bisect_left(rooms, size)
            space = rooms[found] if found < len(rooms) else capacity
            each = space // size  # of these items in a row
            wanted = -(-(end - at) // each)
            if found < len(rooms):
                open_rows = room[space]
                chosen = open_rows[-wanted:]
                del open_rows[-wanted:]
                if not open_rows:
                    del room[space], rooms[found]
            else:
                chosen = list(range(rows, rows + wanted))
                rows += wanted
            placed = min(end - at, each * len(chosen))
            row[items[at : at + placed]] = np.repeat(chosen, each)[:placed]
            at += placed
            in_last = placed - each * (len(chosen) - 1)
            for left, these in (
                (space - each * size, chosen[:-1]),
                (space - in_last * size, chosen[-1:]),
            ):
                if left and these:
                    if left not in room:
                        room[left] = []
                        bisect.insort(rooms, left)
                    room[left] += these
    return row


def lay_out(packed: Packed, rows: np.ndarray, capacity: int) -> Layout:
    """Returns where the tokens of the rows of these numbers lie; row k of the result is row rows[k]."""
    first = packed.offsets[rows]
    count = packed.offsets[rows + 1] - first  # pieces of each row, at least one
    pieces = ranges(first, count)
    lengths = packed.lengths[pieces]
    ends = np.cumsum(lengths, dtype=np.int64)
    begins = ends - lengths  # in all the rows' tokens, without the room that is left in each
    of_row = np.repeat(np.arange(len(rows)), count)
    row_begins = begins[np.cumsum(count) - count]
    shift = of_row * capacity - row_begins[of_row]
    number = ranges(np.zeros_like(count), count) + 1
    every = np.arange(ends[-1] if len(ends) else 0)

    def spread(values: np.ndarray) -> np.ndarray:
        return np.repeat(values, lengths)

    return Layout(
        every + spread(packed.starts[pieces] - begins),
        every + spread(shift),
        spread(number.astype(np.int32)),
        (every - spread(begins)).astype(np.int32),
    )


def ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns starts[0], starts[0] + 1, ... (counts[0] numbers), then those from starts[1], and so on, as one array."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - counts), counts)
