import numpy as np
import pytest

from research.data.clean import LISTED, Pool, judge
from research.data.duplicates import find

KEEP = {
    "unreadable": "error",
    "shape": "error",
    "nan": "error",
    "blank": "keep",
    "duplicate": "keep",
    "near_duplicate": "keep",
    "cross_split": "keep",
}
TRAIN, VALIDATION, TEST = range(20), range(20, 25), range(25, 30)


@pytest.fixture
def pictures():
    """30 pictures that have nothing in common: 20 of train, 5 of validation, 5 of test."""
    return np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), np.uint8)


def clean(images, policy=None, labels=None, problems=(), cut=lambda parts: (parts, [])):
    parts = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
    pool = Pool(
        place="/pictures",
        keys=np.array([f"{i:02d}.png" for i in range(len(images))]),
        labels=np.zeros(len(images), np.int32) if labels is None else labels,
        class_names=("cat", "dog"),
        parts={name: np.array(indices) for name, indices in parts.items()},
        findings=find(images),
        problems=list(problems),
    )
    return judge(pool, KEEP | (policy or {}), cut)


def gone(judged):
    left = np.concatenate(list(judged.splits.values()))
    return sorted(set(range(30)) - set(left.tolist()))


def relit(picture):
    return np.rint(picture * 0.7 + 20).astype(np.uint8)


def test_good_pictures_are_left_alone(pictures):
    judged = clean(pictures, dict.fromkeys(KEEP, "error"))
    assert judged.errors == [] and gone(judged) == []
    assert all(found["total"] == 0 for found in judged.found.values())


def test_blank_pictures(pictures):
    pictures[3] = 7
    assert gone(clean(pictures, {"blank": "keep"})) == []
    assert gone(clean(pictures, {"blank": "drop"})) == [3]
    (line,) = clean(pictures, {"blank": "error"}).errors
    assert "03.png" in line and "blank" in line and "data.clean.blank=drop" in line


@pytest.mark.parametrize(
    ("copies", "lost"),
    [
        ({4: 26}, [4]),  # train and test: never test
        ({4: 21}, [4]),  # train and validation
        ({21: 26}, [21]),  # validation and test
        ({4: 26, 21: 26, 5: 26}, [4, 5, 21]),
        ({4: 5}, []),  # both in train: that is no crossing
    ],
)
def test_copies_across_splits_leave_the_less_precious_side(pictures, copies, lost):
    for target, source in copies.items():
        pictures[target] = pictures[source]
    judged = clean(pictures, {"cross_split": "drop"})
    assert gone(judged) == lost
    assert judged.found["cross_split"]["dropped"] == len(lost)
    kept = clean(pictures, {"cross_split": "keep"})
    assert gone(kept) == [] and kept.found["cross_split"]["total"] == len(lost)
    assert len(clean(pictures, {"cross_split": "error"}).errors) == len(lost)


def test_a_crossing_is_reported_with_both_sides(pictures):
    pictures[4] = pictures[26]
    labels = np.zeros(30, np.int32)
    labels[26] = 1
    found = clean(pictures, {"cross_split": "drop"}, labels).found
    pair = {
        "key": "04.png",
        "split": "train",
        "label": "cat",
        "partner_key": "26.png",
        "partner_split": "test",
        "partner_label": "dog",
    }
    assert found["cross_split"]["listed"] == [pair | {"action": "dropped"}]
    assert found["label_conflict"]["total"] == 1


def test_duplicates_of_one_split_leave_the_first_key(pictures):
    pictures[9] = pictures[12] = pictures[2]
    assert gone(clean(pictures, {"duplicate": "drop"})) == [9, 12]
    kept = clean(pictures)
    assert gone(kept) == [] and kept.found["duplicate"]["total"] == 2
    errors = clean(pictures, {"duplicate": "error"}).errors
    assert len(errors) == 2 and all("02.png" in line for line in errors)


def test_duplicates_are_dropped_before_the_splits_are_cut(pictures):
    pictures[9] = pictures[2]
    seen = []
    clean(pictures, {"duplicate": "drop"}, cut=lambda parts: (seen.append(parts) or parts, []))
    assert 9 not in seen[0]["train"] and 2 in seen[0]["train"]


def test_near_duplicates_go_by_their_own_policy_and_across_splits_by_both(pictures):
    pictures[9], pictures[4] = relit(pictures[2]), relit(pictures[26])
    both = {"near_duplicate": "drop", "cross_split": "drop"}
    assert gone(clean(pictures, both)) == [4, 9]
    assert gone(clean(pictures, both | {"cross_split": "keep"})) == [9]
    assert gone(clean(pictures, both | {"near_duplicate": "keep"})) == []
    assert len(clean(pictures, both | {"near_duplicate": "error"}).errors) == 2
    found = clean(pictures).found
    assert found["near_duplicate"]["listed"][0]["partner_key"] == "02.png"
    assert found["near_cross_split"]["listed"][0]["partner_key"] == "26.png"
    assert 0 < found["near_cross_split"]["listed"][0]["distance"] < 0.1


def test_nobody_goes_on_account_of_one_who_is_gone(pictures):
    rng = np.random.default_rng(1)
    base, noise = pictures[0].astype(float), rng.normal(0, 1, (8, 8, 1))
    noise *= base.std() * 0.07 / noise.std()
    pictures[1], pictures[2] = (np.clip(np.rint(base + k * noise), 0, 255) for k in (1, 2))
    chain = clean(pictures)
    assert chain.found["near_duplicate"]["total"] == 2, "0 and 1, 1 and 2, but not 0 and 2"
    assert gone(clean(pictures, {"near_duplicate": "drop"})) == [1]


def test_many_findings_are_counted_but_not_all_listed(pictures):
    images = np.concatenate([pictures, np.zeros((300, 8, 8, 1), np.uint8)])
    judged = clean(images, {"blank": "error"})
    assert judged.found["blank"]["total"] == 300
    assert len(judged.found["blank"]["listed"]) == LISTED
    assert len(judged.errors) == 11 and "290 more" in judged.errors[-1]


def test_what_could_not_be_read_is_refused_or_reported(pictures):
    problem = {"kind": "nan", "key": "x.npy", "detail": "/pictures/x.npy: holds NaN", "label": 0}
    (line,) = clean(pictures, problems=[problem]).errors
    assert line.startswith("/pictures/x.npy: holds NaN") and "data.clean.nan=drop" in line
    judged = clean(pictures, {"nan": "drop"}, problems=[problem])
    assert judged.errors == [] and judged.found["nan"]["listed"][0]["key"] == "x.npy"


def test_a_cut_that_fails_is_listed_with_the_rest(pictures):
    pictures[3] = 7
    cut = lambda parts: (parts, ["class 'dog' has one picture"])  # noqa: E731
    assert len(clean(pictures, {"blank": "error"}, cut=cut).errors) == 2


def test_no_test_loses_a_picture_to_another_split():
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), np.uint8)
    images[2] = images[22] = images[27] = images[12]  # once in each part
    images[28] = images[23]  # in both tests
    images[29] = relit(images[24])  # nearly, in both tests
    images[3] = relit(images[29])
    parts = {"train": (0, 10), "validation": (10, 20), "test": (20, 25), "test_night": (25, 30)}
    pool = Pool(
        place="/pictures",
        keys=np.array([f"{i:02d}.png" for i in range(30)]),
        labels=np.zeros(30, np.int32),
        class_names=("cat", "dog"),
        parts={name: np.arange(*ends) for name, ends in parts.items()},
        findings=find(images),
        problems=[],
    )
    policy = KEEP | {"cross_split": "drop", "near_duplicate": "drop"}
    judged = judge(pool, policy, lambda parts: (parts, []))
    assert gone(judged) == [2, 3, 12]
    assert {e["key"]: e["partner_split"] for e in judged.found["cross_split"]["listed"]} == {
        "02.png": "test_night",
        "12.png": "test_night",
    }
    assert judged.found["cross_split"]["total"] == 2  # tests are not held against one another
    assert judge(pool, policy | {"cross_split": "error"}, lambda p: (p, [])).errors
