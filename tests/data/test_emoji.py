"""The emoji builder on made-up packages, in both layouts."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from research.config import defaults, resolve
from research.data import store
from research.data.builders.emoji import CLASSES
from research.data.emoji_groups import group_of
from research.errors import UserError

FACES = [f"1F60{i}" for i in range(6)]
PEOPLE = ["1F468-200D-1F680", "1F469-200D-1F680", "1F9D1-200D-1F680", "1F47B", "1F47D", "1F916"]
SKIN = "1F3FD"


def drawing(seed):
    """64x64 RGBA, a quarter of it transparent and a quarter half so."""
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 4), np.uint8)
    pixels[..., 3] = 255
    pixels[:32, :32, 3], pixels[:32, 32:, 3] = 0, 128
    return pixels


def seed_of(vendor, image):
    return sum(map(ord, vendor + image))


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def entry(unified, category, **more):
    there = {f"has_img_{vendor}": True for vendor in ("google", "twitter", "facebook", "apple")}
    return {"unified": unified, "image": f"{unified.lower()}.png", **there, **more} | {
        "category": category
    }


def content(vendor, version="16.0.0"):
    emoji = [entry(code, CLASSES[0]) for code in FACES] + [
        entry(code, CLASSES[1]) for code in PEOPLE
    ]
    emoji[0]["has_img_apple"] = False
    astronaut = emoji[len(FACES)]
    tone = entry(f"1F468-{SKIN}-200D-1F680", "")
    astronaut["skin_variations"] = {SKIN: tone}
    emoji.append(entry(SKIN, "Component"))
    files = {"package.json": json.dumps({"version": version}).encode()}
    for one in [*emoji, tone]:
        if one[f"has_img_{vendor}"]:
            name = f"img/{vendor}/64/{one['image']}"
            files[name] = png(drawing(seed_of(vendor, one["image"])))
    files[f"img/{vendor}/sheets/64.png"] = b"large"
    return files | {"emoji.json": json.dumps(emoji[::-1]).encode()}  # in no order of ours


@pytest.fixture
def packages(tmp_path):
    """Makes packages: packages('tgz', google='16.0.0', ...) -> the folder that holds them."""

    def make(layout, change=None, **versions):
        versions = versions or dict.fromkeys(("google", "twitter", "facebook", "apple"), "16.0.0")
        base = tmp_path / layout
        base.mkdir(exist_ok=True)
        for vendor, version in versions.items():
            files = content(vendor, version)
            if change:
                change(vendor, files)
            name = f"emoji-datasource-{vendor}"
            if layout == "tgz":
                with tarfile.open(base / f"{name}-{version}.tgz", "w:gz") as archive:
                    for path, data in files.items():
                        member = tarfile.TarInfo(f"package/{path}")
                        member.size = len(data)
                        archive.addfile(member, io.BytesIO(data))
                continue
            place = base / ("node_modules" if layout == "npm" else "") / name
            for path, data in files.items():
                (place / path).parent.mkdir(parents=True, exist_ok=True)
                (place / path).write_bytes(data)
        return base

    return make


def refuse(data):
    with pytest.raises(UserError) as caught:
        store.prepare(data)
    return str(caught.value).splitlines()


@pytest.fixture
def emoji(data_config):
    return lambda path, **options: data_config("emoji", path=str(path), **options)


@pytest.mark.parametrize("layout", ["tgz", "npm", "plain"])
def test_pictures_are_laid_on_the_background(packages, emoji, layout):
    got = store.prepare(emoji(packages(layout), background="255,128,0"))
    assert got.images.shape[1:] == (64, 64, 3) and got.class_names == CLASSES
    wanted = [
        f"{v}/{c.lower()}.png" for v in ("google", "twitter", "facebook") for c in FACES + PEOPLE
    ]
    wanted += [f"apple/{c.lower()}.png" for c in (FACES + PEOPLE)[1:]]
    assert sorted(got.keys) == sorted(wanted)
    for i, key in enumerate(got.keys):
        above = drawing(seed_of(*key.split("/"))).astype(float)
        alpha = above[..., 3:] / 255
        expected = above[..., :3] * alpha + np.array([255, 128, 0]) * (1 - alpha)
        assert abs(got.images[i] - expected).max() <= 1  # Pillow rounds in its own way
        assert got.labels[i] == (key.split("/")[1][:-4].upper() in PEOPLE)


def test_both_layouts_prepare_the_same(packages, emoji):
    tgz, npm = (store.prepare(emoji(packages(layout))) for layout in ("tgz", "npm"))
    assert tgz.fingerprints == npm.fingerprints and tgz.keys.tolist() == npm.keys.tolist()


def test_no_emoji_lies_on_both_sides_and_the_unseen_vendor_is_a_test(packages, emoji):
    got = store.prepare(emoji(packages("npm"), validation_fraction=0.3, test_fraction=0.3))
    kept = [got.keys[i] for i in got.splits["test_vendor"]]
    assert len(kept) == 11 and all(key.startswith("apple/") for key in kept)
    cut = {
        s: {group_of(got.keys[i].split("/")[1][:-4].upper()) for i in got.splits[s]}
        for s in got.splits
    }
    assert not cut["train"] & cut["test"] and not cut["train"] & cut["validation"]
    assert not cut["validation"] & cut["test"] and min(map(len, cut.values())) > 0
    assert sum(len(got.splits[s]) for s in ("train", "validation", "test")) == 36


def test_options_choose_vendors_and_variants(packages, emoji):
    path = packages("tgz")
    got = store.prepare(emoji(path, vendors=("apple", "google"), unseen_vendor="", variants=True))
    assert "test_vendor" not in got.splits and len(got.keys) == 11 + 12 + 2
    tones = [key for key in got.keys if "1f3fd" in key]
    assert sorted(tones) == [f"{v}/1f468-1f3fd-200d-1f680.png" for v in ("apple", "google")]


def test_pictures_are_resized_as_all_others_are(packages, emoji):
    got = store.prepare(emoji(packages("npm"), background="black", image_size=16))
    i = list(got.keys).index("twitter/1f602.png")
    image = Image.fromarray(drawing(seed_of("twitter", "1f602.png")))
    expected = Image.alpha_composite(Image.new("RGBA", (64, 64), "black"), image).convert("RGB")
    expected = np.asarray(expected.resize((16, 16), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(got.images[i], expected)


@pytest.mark.parametrize(
    ("forms", "group"),
    [
        (("1F468-200D-1F680", "1F469-1F3FD-200D-1F680", "1F9D1-200D-1F680"), "1F9D1-200D-1F680"),
        (("1F3C3", "1F3C3-1F3FB-200D-2640-FE0F-200D-27A1-FE0F"), "1F3C3"),
        (("2640-FE0F",), "2640"),  # the sign itself
        (("0023-FE0F-20E3",), "0023-20E3"),
        (("1F46A", "1F468-200D-1F469-200D-1F466"), "1F9D1-200D-1F9D1-200D-1F9D2"),
        (("1F1F8-1F1EF", "1F1E7-1F1FB"), "1F1F3-1F1F4"),  # Svalbard and Bouvet fly Norway's flag
        (("1F468-200D-1F9B0", "1F469", "1F9D1-1F3FF"), "1F9D1"),
        (("1F46B", "1F9D1-1F3FB-200D-1F91D-200D-1F9D1-1F3FC"), "1F9D1-200D-1F91D-200D-1F9D1"),
    ],
)
def test_forms_of_an_emoji_are_one_group(forms, group):
    assert {group_of(form) for form in forms} == {group}


def test_missing_packages_are_named_with_the_command(packages, emoji, tmp_path):
    path = packages("tgz", google="16.0.0", twitter="16.0.0")
    (line,) = refuse(emoji(path))
    assert "holds no emoji-datasource-facebook, emoji-datasource-apple" in line
    command = f"npm pack --pack-destination {path} emoji-datasource-facebook@16.0.0"
    assert f"{command} emoji-datasource-apple@16.0.0" in line and "npm install --prefix" in line
    (line,) = refuse(emoji(""))
    assert "--config.data.path=DIR" in line and "emoji-datasource-google@16.0.0" in line
    assert "mkdir -p" in refuse(emoji(tmp_path / "nowhere"))[0]


@pytest.mark.parametrize("layout", ["tgz", "npm"])
def test_another_release_is_refused(packages, emoji, layout):
    path = packages(layout, google="16.0.0", twitter="15.1.2", facebook="16.0.0", apple="16.0.0")
    (line,) = refuse(emoji(path))
    assert "emoji-datasource-twitter 15.1.2, not 16.0.0" in line
    assert "npm pack" in line and "emoji-datasource-twitter@16.0.0" in line


def test_a_tgz_whose_name_lies_or_that_is_cut_off_is_refused(packages, emoji):
    path = packages(
        "tgz", lambda vendor, files: files.update({"package.json": b'{"version": "9"}'})
    )
    assert "holds release 9, not 16.0.0" in refuse(emoji(path))[0]
    whole = packages("tgz") / "emoji-datasource-twitter-16.0.0.tgz"
    whole.write_bytes(whole.read_bytes()[:3000])
    (line,) = refuse(emoji(path))
    assert "emoji-datasource-twitter-16.0.0.tgz: cannot be read" in line and "npm pack" in line


def test_pictures_that_are_broken_or_missing_are_named(packages, emoji):
    def change(vendor, files):
        if vendor == "google":
            files["img/google/64/1f601.png"] = b"no picture"
            del files["img/google/64/1f602.png"]

    path = packages("npm", change)
    broken, missing = refuse(emoji(path))
    assert "google/1f601.png: is no PNG" in broken and "google/1f602.png: is missing" in missing
    data = emoji(path)
    data.clean.unreadable = "drop"
    assert store.prepare(data).report["found"]["unreadable"]["dropped"] == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"background": "whit"}, ["background is 'whit'", "did you mean 'white'", "r,g,b"]),
        ({"background": "1,2,256"}, ["background is '1,2,256'"]),
        ({"vendors": ("gogle",)}, ["no vendor 'gogle'", "did you mean 'google'"]),
        ({"vendors": ("apple", "google")}, ["'apple' is one of config.data.vendors"]),
        ({"vendors": ()}, ["name one or more"]),
        ({"unseen_vendor": "samsung"}, ["unseen_vendor", "no vendor 'samsung'"]),
    ],
)
def test_options_that_cannot_be(packages, emoji, options, says):
    (line,) = refuse(emoji(packages("npm"), **options))
    assert all(word in line for word in says), line


def test_the_options_are_checked_with_the_config():
    given = [
        ("data.name", "emoji"),
        ("data.background", "255,255,255"),
        ("data.vendors", "('apple',)"),
    ]
    config, found = resolve(defaults(), given)
    assert found == [] and config.data.background == "255,255,255" and config.data.variants is False
    (line,) = resolve(defaults(), [("data.name", "emoji"), ("data.vendor", "apple")])[1]
    assert "did you mean 'data.vendors'" in line
