"""The Unigram language model's pieces and scores, the same bits from the same word counts.

The trainer of the `tokenizers` library walks through a randomly seeded hash map, so that its sums and with them its
scores and ties differ from run to run. This is the same algorithm over sorted words:

  seeds: every character and the substrings of the highest frequency * length;
  EM: expected counts by forward-backward over all segmentations, then log probabilities
      score_i = digamma(count_i) - digamma(sum_j count_j);
  pruning: pieces whose loss of likelihood is least go, a quarter at a time, until the size is reached; the loss of a
      piece supposes that its occurrences are segmented by its own second best segmentation.

Source: T. Kudo, Subword Regularization, ACL 2018, section 3.2, with the constants of SentencePiece.

Glossary: W words, N nodes (places between characters of all words), E edges (a piece at a place), P pieces.
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

LONGEST = 16  # characters of a piece
_WORD = 128  # characters of a word, which is cut there
_WORDS = 100_000  # most frequent words that are looked at
_SEEDS = 10  # seeds for each piece that is wanted in the end
_SHRINK = 0.75
_ROUNDS = 2  # of EM before each pruning
_RARE = 0.5  # expected counts below this drop a piece


def pieces(counts: Mapping[str, int], *, size: int) -> list[tuple[str, float]]:
    """Returns `size` or fewer (piece, log probability), all characters of the words among them, the likeliest first.

    Args:
      counts: word -> how often it occurs.
      size: pieces wanted, at least the number of different characters.
    """
    words = _words(counts)
    names = _seeds(words, size)
    number = np.array([len(name) for name in names])
    weights = np.array(list(words.values()), np.float64)  # [W]
    lattice = _lattice(list(words), {name: i for i, name in enumerate(names)})
    scores = np.log(_occurrences(lattice, weights, len(names)) * number)
    scores -= np.log(np.exp(scores).sum())

    while True:
        for _ in range(_ROUNDS):
            expected = _expected(lattice, scores, weights)
            keep = (expected >= _RARE) | (number == 1)
            lattice = _restricted(lattice, keep)
            names, number = [names[i] for i in np.flatnonzero(keep)], number[keep]
            expected = np.maximum(expected[keep], _RARE)
            scores = _digamma(expected) - _digamma(expected.sum())
        if len(names) <= max(size * 11 // 10, (number == 1).sum()):
            break
        wanted = max(size * 11 // 10, int(len(names) * _SHRINK))
        keep = _pruned(names, number, lattice, scores, weights, wanted)
        lattice = _restricted(lattice, keep)
        names, number, scores = [names[i] for i in np.flatnonzero(keep)], number[keep], scores[keep]

    scores = np.round(
        scores, 6
    )  # so that the last bits of another processor's logarithms don't matter
    order = sorted(range(len(names)), key=lambda i: (number[i] > 1, -scores[i], names[i]))
    chosen = sorted(order[:size], key=lambda i: (-scores[i], names[i]))
    return [(names[i], float(scores[i])) for i in chosen]


class _Lattice(NamedTuple):
    """All ways to make each word of pieces, as a graph; the edges are sorted by `place` and, within it, by `end`."""

    first: np.ndarray  # [W] node before a word
    last: np.ndarray  # [W] node after it
    word: np.ndarray  # [E]
    piece: np.ndarray  # [E]
    start: np.ndarray  # [E] node
    end: np.ndarray  # [E] node
    place: np.ndarray  # [E] characters of the word up to `end`


def _words(counts: Mapping[str, int]) -> dict[str, int]:
    """Returns the most frequent words, cut to a bearable length, in their order; every character stays in."""
    cut: Counter[str] = Counter()
    for word, count in counts.items():
        for i in range(0, len(word), _WORD):
            cut[word[i : i + _WORD]] += count
    kept = dict(sorted(cut.items(), key=lambda item: (-item[1], item[0]))[:_WORDS])
    seen = set().union(*kept)
    for character in set().union(*cut) - seen:
        kept[character] = 1
    return dict(sorted(kept.items()))


def _seeds(words: Mapping[str, int], size: int) -> list[str]:
    found: Counter[str] = Counter()
    for word, count in words.items():
        for i in range(len(word)):
            for j in range(i + 2, min(i + LONGEST, len(word)) + 1):
                found[word[i:j]] += count
    often = [(-count * len(name), name) for name, count in found.items() if count > 1]
    characters = sorted(set().union(*words))
    return characters + [name for _, name in sorted(often)[: _SEEDS * size]]


def _lattice(words: Sequence[str], index: Mapping[str, int], *, whole: bool = True) -> _Lattice:
    """Returns the graph of `words`; without `whole`, no edge spans a whole word of several characters."""
    edges = []
    first, node = [], 0
    for w, word in enumerate(words):
        first.append(node)
        for i in range(len(word)):
            for j in range(i + 1, min(i + LONGEST, len(word)) + 1):
                piece = index.get(word[i:j])
                if piece is not None and (whole or j - i < len(word) or j == 1):
                    edges.append((j, node + j, node + i, piece, w))
        node += len(word) + 1
    columns = np.array(edges, np.int64).reshape(-1, 5)
    place, end, start, piece, owner = columns[np.lexsort(columns.T[2::-1])].T
    before = np.array(first, np.int64)
    behind = before + [len(word) for word in words]
    return _Lattice(before, behind, owner, piece, start, end, place)


def _restricted(lattice: _Lattice, keep: np.ndarray) -> _Lattice:
    """Returns the graph of the pieces for which `keep` [P] is true, which are numbered anew."""
    if keep.all():
        return lattice
    chosen = keep[lattice.piece]
    new = np.cumsum(keep) - 1
    rest = lattice._replace(
        **{name: getattr(lattice, name)[chosen] for name in _Lattice._fields[2:]}
    )
    return rest._replace(piece=new[rest.piece])


def _occurrences(lattice: _Lattice, weights: np.ndarray, pieces: int) -> np.ndarray:
    return np.bincount(lattice.piece, weights[lattice.word], pieces)


def _groups(key: np.ndarray) -> np.ndarray:
    """Returns where runs of equal values of a sorted array begin, and its length."""
    return np.concatenate([[0], np.flatnonzero(np.diff(key)) + 1, [len(key)]])


def _sums(lattice: _Lattice, scores: np.ndarray, *, backward: bool) -> np.ndarray:
    """Returns for each node the log of the summed probability of all paths to it, or from it to the word's end."""
    target, source, level = lattice.end, lattice.start, lattice.place
    edge = scores[lattice.piece]
    if backward:
        level = level - (lattice.end - lattice.start)
        order = np.lexsort((target, source, -level))
        target, source = lattice.start[order], lattice.end[order]
        level, edge = -level[order], edge[order]
    values = np.full(int(lattice.last[-1]) + 1, -np.inf)
    values[lattice.last if backward else lattice.first] = 0.0
    bounds = _groups(level)
    for a, b in itertools.pairwise(bounds):
        runs = _groups(target[a:b])
        x = values[source[a:b]] + edge[a:b]
        top = np.maximum.reduceat(x, runs[:-1])
        total = np.add.reduceat(np.exp(x - np.repeat(top, np.diff(runs))), runs[:-1])
        values[target[a:b][runs[:-1]]] = top + np.log(total)
    return values


def _expected(lattice: _Lattice, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns how often each piece is expected to occur [P], over all segmentations of all words."""
    to = _sums(lattice, scores, backward=False)
    onward = _sums(lattice, scores, backward=True)
    total = to[lattice.last][lattice.word]
    share = np.exp(to[lattice.start] + scores[lattice.piece] + onward[lattice.end] - total)
    return np.bincount(lattice.piece, share * weights[lattice.word], len(scores))


def _best(lattice: _Lattice, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the likeliest segmentations (Viterbi): words and pieces of their edges, and the words' scores [W]."""
    values = np.full(int(lattice.last[-1]) + 1, -np.inf)
    values[lattice.first] = 0.0
    back = np.full(len(values), -1)
    bounds = _groups(lattice.place)
    for a, b in itertools.pairwise(bounds):
        runs = _groups(lattice.end[a:b])
        x = values[lattice.start[a:b]] + scores[lattice.piece[a:b]]
        top = np.maximum.reduceat(x, runs[:-1])
        # of equal ones the first, which is the longest last piece
        equal = np.where(x == np.repeat(top, np.diff(runs)), np.arange(a, b), b)
        ends = lattice.end[a:b][runs[:-1]]
        values[ends] = top
        back[ends] = np.minimum.reduceat(equal, runs[:-1])
    words, found = [], []  # of the last edges, of those before them, and so on
    node, word = lattice.last, np.arange(len(lattice.last))
    while len(node):
        edge = back[node]
        words.append(word)
        found.append(lattice.piece[edge])
        inside = lattice.start[edge] != lattice.first[word]
        node, word = lattice.start[edge][inside], word[inside]
    return np.concatenate(words), np.concatenate(found), values[lattice.last]


def _pruned(names, number, lattice, scores, weights, wanted: int) -> np.ndarray:
    """Returns which pieces stay [P]: characters, and of the others those whose loss would cost most likelihood."""
    word, piece, _ = _best(lattice, scores)
    often = np.bincount(piece, weights[word], len(names))  # whole numbers, so exact in any order
    longer = np.flatnonzero(number > 1)
    index = {name: i for i, name in enumerate(names)}
    others = _lattice([names[i] for i in longer], index, whole=False)
    owner, part, second = _best(others, scores)

    total = often.sum()
    parts = np.bincount(owner, minlength=len(longer))
    after = np.log(total + often[longer] * (parts - 1))  # log of all pieces' count without this one
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = np.log(often[part] + often[longer][owner])
        instead = np.bincount(owner, gain, len(longer)) - parts * after
        loss = often[longer] / weights.sum() * (np.log(often[longer]) - np.log(total) - instead)
    useful = (often[longer] > 0) & (scores[longer] >= second)
    loss = np.where(useful, loss, -np.inf)
    room = max(wanted - int((number == 1).sum()), 0)
    chosen = np.argsort(-loss, kind="stable")[:room]
    keep = number == 1
    keep[longer[chosen[useful[chosen]]]] = True
    return keep


def _digamma(x):
    """Returns the logarithmic derivative of the gamma function, by its asymptotic series above 7."""
    x = np.asarray(x, np.float64)
    shift = np.zeros_like(x)
    for _ in range(7):
        low = x < 7
        shift -= np.where(low, 1 / x, 0)
        x = np.where(low, x + 1, x)
    y = (1 / (x - 0.5)) ** 2
    series = y / 24 - 7 * y**2 / 960 + 31 * y**3 / 8064 - 127 * y**4 / 30720
    return shift + np.log(x - 0.5) + series
