"""Import is strict, its rules do what NumPy does, and what is wrong is told in lines that hold the mend."""

import ast
import re

import ml_dtypes
import numpy as np
import pytest

from research.transfer.load import load


@pytest.fixture
def vit(build):
    return build("vit")


@pytest.fixture
def arrays(vit):
    return vit.dump(vit.trees(), "timm")


def given(arrays, **how):
    """Loads a model of two parameters, whose own names and shapes are x/kernel [2, 3] and y [4]."""
    params = {"x": {"kernel": np.zeros((2, 3), np.float32)}, "y": np.zeros(4, np.float32)}
    about = {"model": "mlp", "options": {}, "params": params, "model_state": {}}
    return load(arrays, **about, **how).params


X = np.arange(6, dtype=np.float32).reshape(2, 3)
Y = np.arange(4, dtype=np.float32)


def test_float64_is_rounded_and_order_is_ours():
    wide = np.array([[1 / 3, 2, 3], [4, 5, 6]], np.float64, order="F")
    read = given({"x/kernel": wide, "y": Y})["x"]["kernel"]
    assert read.dtype == np.float32 and read.flags.c_contiguous
    np.testing.assert_array_equal(read, wide.astype(np.float32))


def test_rename_transpose_and_reshape_in_order():
    rules = (
        (r"^module\.", "rename", ""),
        (r"^(\w)\.weight$", "rename", r"\1/kernel"),
        (r"^x/kernel$", "transpose", (1, 0)),
        (r"^y$", "reshape", (4,)),
    )
    read = given({"module.x.weight": X.T.copy(), "module.y": Y.reshape(2, 2)}, rules=rules)
    np.testing.assert_array_equal(read["x"]["kernel"], X)
    np.testing.assert_array_equal(read["y"], Y)


def test_stack_sorts_numbers_as_numbers():
    parts = {f"part.{i}": np.float32(i) * np.ones(1, np.float32) for i in (10, 9, 1, 2)}
    rules = ((r"^part\.\d+$", "stack", "y", 0), (r"^y$", "reshape", (4,)))
    np.testing.assert_array_equal(given(parts | {"x/kernel": X}, rules=rules)["y"], [1, 2, 9, 10])


def test_stack_along_another_axis():
    rules = ((r"^c\d$", "stack", "x/kernel", -1),)
    columns = {f"c{i}": X[:, i] for i in range(3)}
    np.testing.assert_array_equal(given(columns | {"y": Y}, rules=rules)["x"]["kernel"], X)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_narrow_floats_are_refused_unless_cast(dtype):
    narrow = {"x/kernel": X.astype(dtype), "y": Y.astype(dtype)}
    (line,) = refused(narrow)
    assert line == (
        f"the pretrained arrays: 2 arrays are {np.dtype(dtype).name}, such as 'x/kernel', where float32 or float64 was "
        "expected; add the rule ('.*', 'cast') to widen them to float32"
    )
    read = given(narrow, rules=((".*", "cast"),))
    assert read["y"].dtype == np.float32
    np.testing.assert_array_equal(read["y"], Y)  # small integers are exact in both


def test_integers_are_refused():
    (line,) = refused({"x/kernel": X.astype(np.int8), "y": Y}, rules=((".*", "cast"),))
    assert "1 arrays are int8" in line and "convert the weights" in line


def refused(arrays, **how):
    from research.errors import UserError

    with pytest.raises(UserError) as caught:
        given(arrays, **how)
    return str(caught.value).split("\n")


@pytest.mark.parametrize("wrong", [np.nan, -np.inf, 1e300])
def test_what_is_no_number_in_float32_is_refused(wrong):
    array = Y.astype(np.float64)
    array[2] = wrong
    (line,) = refused({"x/kernel": X, "y": array})
    assert "1 arrays hold NaN, infinity or more than float32 can, such as 'y' (1 of 4)" in line
    assert given({"x/kernel": X, "y": array}, rules=((r"^y$", "skip"),))["y"] is None


def test_skip_leaves_the_fresh_value_and_leaves_out_what_is_left():
    read = given(
        {"x/kernel": X, "other": Y}, rules=((r"^y$", "skip"), (r"^other$", "skip")), naming="own"
    )
    assert read["y"] is None
    np.testing.assert_array_equal(read["x"]["kernel"], X)


def test_skip_ignores_an_array_of_another_shape():
    read = given({"x/kernel": X, "y": np.zeros((9, 9), np.float16)}, rules=((r"^y$", "skip"),))
    assert read["y"] is None


@pytest.mark.parametrize(
    "rule, says",
    [
        ("^head/", "is '^head/', but must be (pattern, action, ...)"),
        ((r"^y$",), "but must be (pattern, action, ...)"),
        ((r"^y$", "skipp"), "'skipp': no such action (did you mean 'skip'?); there are rename, "),
        ((r"^y$", "rename"), "'rename' takes a string after it, not ()"),
        ((r"^y$", "skip", 1), "'skip' takes nothing after it, not (1,)"),
        ((r"^y$", "transpose", 1), "'transpose' takes a tuple of integers after it, not (1,)"),
        ((r"^y$", "stack", "z"), "'stack' takes a string and an integer after it, not ('z',)"),
        ((r"(", "skip"), "pattern '(' is no regular expression: "),
        ((r"^y$", "rename", r"\2"), "uses a group that '^y$' lacks"),
        ((r"^z$", "cast"), "pattern '^z$' matches none of the 2 arrays"),
        ((r"^x/kernal$", "skip"), "none of the 2 parameter paths (did you mean 'x/kernel'?)"),
        ((r"^z$", "resize"), "pattern '^z$' matches none of the 2 parameter paths"),
        ((r"^x", "transpose", (0, 0)), "(0, 0) doesn't name each axis of 'x/kernel' [2, 3] once"),
        ((r"^x", "reshape", (7,)), "'x/kernel' [2, 3] can't become [7]"),
        ((r".*", "stack", "z", 0), "differ in shape: 'x/kernel' [2, 3], 'y' [4]"),
        ((r"^y$", "stack", "z", 2), "axis 2 is none of the 2 of what is stacked"),
        ((r"^y$", "stack", "x/kernel", 0), "there is an array 'x/kernel' already"),
        ((r"^.*$", "rename", "z"), "'x/kernel' and 'y' would both be 'z'"),
    ],
)
def test_rules_that_are_wrong(rule, says):
    (line,) = refused({"x/kernel": X, "y": Y}, rules=((r"^y$", "cast"), rule))
    assert line.startswith("config.pretrained.rules[1]") and says in line


def test_all_wrong_rules_are_told_at_once():
    lines = refused({"x/kernel": X, "y": Y}, rules=((r"(", "skip"), "a", (r"a", "b")))
    assert [line[:26] for line in lines] == [f"config.pretrained.rules[{i}]" for i in range(3)]


def test_a_skip_of_their_name_for_something_is_told_ours(build):
    model = build("resnet")
    (line,) = model.refuses(model.dump(model.trees(), "timm"), rules=((r"^fc\.", "skip"),))
    assert line == (
        r"config.pretrained.rules[0] pattern '^fc\\.' matches none of the 102 parameter paths; 'fc.bias' is "
        "'head/bias' here, and that is what skip looks at"
    )


def test_missing_extra_and_misshapen_are_told_together(vit, arrays):
    arrays["norm.weigth"] = arrays.pop("norm.weight")
    arrays["head.weight"] = np.zeros((1000, 12), np.float32)
    arrays["head.bias"] = np.zeros(1000, np.float32)
    arrays["block.fc1"] = np.zeros(3, np.float32)
    lines = vit.refuses(arrays, source="torch:vit.pth")
    assert lines == [
        "torch:vit.pth: 'head.bias' is [1000], but 'head/bias' needs [5]; add (r'^head/', 'skip') to keep the fresh "
        "value",
        "torch:vit.pth: 'head.weight' is [1000, 12], but 'head/kernel' needs [5, 12]; add (r'^head/', 'skip') to keep "
        "the fresh value",
        "torch:vit.pth: array 'norm.weight' [12] is missing, for 'norm/scale' (did you mean 'norm.weigth'?); "
        "add (r'^norm/scale$', 'skip') to keep the fresh value",
        r"torch:vit.pth: nothing here takes array 'norm.weigth' (did you mean 'norm.weight'?); add "
        r"(r'^norm\.weigth$', 'skip') to leave it out",
        r"torch:vit.pth: nothing here takes array 'block.fc1'; add (r'^block\.fc1$', 'skip') to leave it out",
    ]


def test_the_rules_that_messages_give_mend_what_they_say(vit, build):
    other = build("vit", shape=(24, 24, 1))
    arrays = other.dump(other.trees(), "timm")
    arrays["head.weight"] = arrays["head.weight"].T
    arrays["more"] = np.zeros(3, np.float32)
    rules = ()
    for line in vit.refuses(arrays):
        rules += (ast.literal_eval(re.search(r"add (\(.*\))( to [^()]*)?$", line)[1]),)
    assert {rule[1] for rule in rules} == {"transpose", "resize", "skip"}
    assert vit.load(arrays, rules=rules).skipped == []


def test_a_tall_heap_of_mistakes_is_cut(vit, arrays):
    for name in list(arrays)[:3]:
        del arrays[name]
    arrays |= {f"extra{i}": np.zeros(1, np.float32) for i in range(22)}
    lines = vit.refuses(arrays)
    assert len(lines) == 21 and lines[-1] == "the pretrained arrays: and 5 more"


def test_another_width_is_told_in_a_few_lines(vit, build):
    wide = build("vit", width=24)
    lines = vit.refuses(wide.dump(wide.trees(), "timm"))
    assert len(lines) == 6
    assert lines[0].endswith("'block_0/fc1/bias' needs [48]")
    assert "have other shapes" in lines[-1] and "width=12" in lines[-1]


def test_another_depth(vit, build):
    deep = build("vit", depth=3)
    lines = vit.refuses(deep.dump(deep.trees(), "hf"))
    assert all("nothing here takes array 'vit.encoder.layer.2." in line for line in lines)
    lines = deep.refuses(vit.dump(vit.trees(), "hf"))
    assert all("is missing, for 'block_2/" in line for line in lines) and len(lines) == 12


def test_another_family_is_one_line(vit, build):
    resnet = build("resnet")
    (line,) = vit.refuses(resnet.dump(resnet.trees(), "torchvision"), source="torch:a.pth")
    assert line.startswith("torch:a.pth: these are the 122 arrays of a ResNet of torchvision")
    assert "model vit expects 32 arrays, in one of these namings (own: 'block_0/fc1/bias'" in line
    assert "timm: 'blocks.0.mlp.fc1.bias'" in line
    (line,) = vit.refuses(
        resnet.dump(resnet.trees(), "torchvision"), source="torch:a.pth", naming="hf"
    )
    assert "a ResNet" in line and "own:" not in line
    (line,) = vit.refuses(resnet.dump(resnet.trees(), "own"))
    assert "these are the 102 arrays of model resnet of this project" in line
    (line,) = resnet.refuses(vit.dump(vit.trees(), "hf"))
    assert "of a ViTForImageClassification of transformers" in line


def test_arrays_that_nobody_knows(vit):
    (line,) = vit.refuses({"w1": X, "w2": Y})
    assert "these 2 arrays ('w1', 'w2') have the names of no known model; model vit expects" in line
    assert vit.refuses({}) == ["the pretrained arrays: holds no arrays; model vit expects some"]


@pytest.mark.parametrize("prefix", ["module.", "model.encoder."])
def test_a_prefix_on_every_name_is_told(vit, arrays, prefix):
    arrays = {prefix + name: array for name, array in arrays.items()}
    (line,) = vit.refuses(arrays)
    rule = (f"^{prefix}".replace(".", r"\."), "rename", "")
    assert f"every name begins with '{prefix}': add the rule {rule!r}" in line
    assert vit.load(arrays, rules=(rule,)).naming == "timm"


def test_a_position_table_grows_and_keeps_its_class_token(vit, build):
    large = build("vit", shape=(24, 24, 3))
    arrays = vit.dump(vit.trees(), "timm")
    (line,) = large.refuses(arrays)
    assert line.endswith(
        "'pos_embed' is [1, 17, 12], but 'pos_embed' needs [1, 37, 12]; add (r'^pos_embed$', 'resize')"
    )
    table = large.load(arrays, rules=((r"^pos_embed$", "resize"),)).params["pos_embed"]
    assert table.shape == (1, 37, 12) and table.dtype == np.float32
    np.testing.assert_array_equal(table[0, 0], arrays["pos_embed"][0, 0])
    np.testing.assert_allclose(table[0, 1:], upsampled(arrays["pos_embed"][0, 1:], 4, 6), atol=1e-6)


def upsampled(table, old, new):
    """Bicubic, a = -0.5, point by point; only for growing grids. atol above: the result is rounded to float32."""

    def keys(x):
        x = abs(x)
        if x < 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0

    grid = table.reshape(old, old, -1).astype(np.float64)
    out = np.zeros((new, new, grid.shape[-1]))
    for i in range(new):
        for j in range(new):
            y, x = ((k + 0.5) * old / new - 0.5 for k in (i, j))
            weights = np.array(
                [[keys(a - y) * keys(b - x) for b in range(old)] for a in range(old)]
            )
            out[i, j] = (weights[..., None] * grid).sum((0, 1)) / weights.sum()
    return out.reshape(new * new, -1)


def test_a_position_table_without_a_class_token(build):
    small, large = (build("vit", shape=(side, side, 3), pool="gap") for side in (16, 8))
    arrays = small.dump(small.trees(), "timm")
    table = large.load(arrays, rules=((r"^pos_embed$", "resize"),)).params["pos_embed"]
    assert table.shape == (1, 4, 12)
    # All of a kind stay so, and a mean is kept where the grid halves and the picture is point-symmetric.
    flat = arrays | {"pos_embed": np.full((1, 16, 12), 3, np.float32)}
    table = large.load(flat, rules=((r"^pos_embed$", "resize"),)).params["pos_embed"]
    np.testing.assert_allclose(table, 3, rtol=1e-6)


def test_what_cannot_be_resized(vit, build):
    wide = build("vit", shape=(16, 32, 3))
    (line,) = wide.refuses(vit.dump(vit.trees(), "timm"), rules=((r"^pos_embed$", "resize"),))
    assert "'pos_embed' can't be resized from [1, 17, 12] to [1, 33, 12]" in line
    arrays = vit.dump(vit.trees(), "timm") | {"head.bias": np.zeros(9, np.float32)}
    (line,) = vit.refuses(arrays, rules=((r"^head/bias$", "resize"),))
    assert "'head/bias' can't be resized from [9] to [5]" in line


@pytest.mark.parametrize("count, factor", [(1, None), (2, 1.5), (4, 0.75), (6, 0.5)])
def test_a_first_convolution_for_other_channels(build, count, factor):
    colour, other = build("resnet"), build("resnet", shape=(32, 32, count))
    arrays = colour.dump(colour.trees(), "timm")
    if count == 1:
        (line,) = other.refuses(arrays)
        assert line.endswith("add (r'^conv1/kernel$', 'resize')")
    made = other.load(arrays, rules=((r"^conv1/kernel$", "resize"),)).params["conv1"]["kernel"]
    weight = arrays["conv1.weight"]
    for channel in range(count):
        expected = weight.sum(1) if count == 1 else weight[:, channel % 3] * factor
        # Three numbers are added in an order of NumPy's choice.
        np.testing.assert_allclose(
            made[:, :, channel], expected.transpose(1, 2, 0), rtol=1e-6, atol=1e-6
        )


def test_resize_does_nothing_where_shapes_agree(vit, arrays):
    table = vit.load(arrays, rules=((r"^pos_embed$", "resize"),)).params["pos_embed"]
    assert table.tobytes() == arrays["pos_embed"].tobytes()
