"""Files of torch.save: what is read is what lies in the bytes, and nothing in a file is ever run."""

import base64
import io
import struct
import zipfile
import zlib

import ml_dtypes
import numpy as np
import pytest

from research.errors import UserError
from research.transfer.formats import torch

MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
VERSION = b"\x80\x02M\xe9\x03."
SYSTEM = b"\x80\x02}(X\x10\x00\x00\x00protocol_versionM\xe9\x03X\r\x00\x00\x00little_endian%bu."
ORDERED = b"ccollections\nOrderedDict\n)R"


def text(word):
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def number(n):
    return b"\x8a\x08" + struct.pack("<q", n)


def numbers(*values):
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(kind="Float", key="0", count=6, offset=0, shape=(2, 3), strides=(3, 1), view=b""):
    """The opcodes that torch.save writes for a tensor, without the memo."""
    storage = b"(" + text("storage") + f"ctorch\n{kind}Storage\n".encode()
    storage += text(key) + text("cpu") + number(count) + view + b"tQ"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + numbers(*shape)
        + numbers(*strides) + b"\x89" + ORDERED + b"tR"
    )  # fmt: skip


def state(**tensors):
    items = b"".join(text(name) + value for name, value in tensors.items())
    return ORDERED + b"(" + items + b"u"


def legacy(path, value, *, little=b"\x88", **storages):
    """A file as PyTorch wrote it before 1.6; `storages`: s0=array ..."""
    keys = b"\x80\x02](" + b"".join(text(key[1:]) for key in storages) + b"e."
    parts = [MAGIC, VERSION, SYSTEM.replace(b"%b", little), b"\x80\x02" + value + b".", keys]
    parts += [struct.pack("<q", array.size) + array.tobytes() for array in storages.values()]
    path.write_bytes(b"".join(parts))
    return path


def zipped(path, value, *, compress=zipfile.ZIP_STORED, order=b"little", **storages):
    with zipfile.ZipFile(path, "w", compress) as archive:
        archive.writestr("small/data.pkl", b"\x80\x02" + value + b".")
        archive.writestr("small/byteorder", order)
        for key, array in storages.items():
            archive.writestr(f"small/data/{key[1:]}", array.tobytes())
        archive.writestr("small/version", b"3\n")
    return path


FORMATS = pytest.mark.parametrize("make", [legacy, zipped])
SIX = np.arange(6, dtype=np.float32)


# torch.save (2.13) of {'epoch': 3, 'state_dict': OrderedDict(x=x, turned=x.t()[1:], half=bfloat16 1.5)}, where
# x = torch.arange(6.).reshape(2, 3): with _use_new_zipfile_serialization=False and True, packed by zlib and base85.
WRITTEN_LEGACY = (
    "c-n1|&2H2%5XbYeo27=97TQAjKJH#t-8K!|Q!9jevH0k6@dZU8F?Em??>LhRkSgtIMf(graO5%iIy?dr2PO$r9M+1hcs%p_|"
    "2>|07fk=YJo@$Q(~q}X!<qN$r%&q{IDN6|IL_1>G^x??skCKo3UDbwEYpe35w(nEk>yDN-Z#N0h+n2MF7vOl1pf>=ebJ?0sf"
    "<PFa!>fQ%L{~ncSNUVnBoL_yi-;GH0yjhHK_uZ`wg<h1ZAA%DT0@h6D?CDBPDxdGihb^l1>=-gGnvtQo(2Frf6)chH-_tE?I"
    "2lhbq@ujIt<=jZb$N1pU6~HFRT>6A8VxgdJ&<;JY@+;D%VCoc(Zb6m3W2FpR=*3`@;5(rE>Z2d@!s9&?9#+@HfO?sInz%jc@"
    "Lvx0DY0;?jZ`%>9LX0WD6SM}6F?j6<g?jCcOc-|b=>4&fzEpHRy-URM9jZ=yK2wN@fuk#m;^-*+f{=v1#-u`$r-rn7P9>GHr"
    "aY^J6nH~&U@MDB06L{J@!u$FW7Sy?m9D8zDH@qHK2Z8hdm>tk^NFU7^&F_bQ0I*}9eg"
)
WRITTEN_ZIP = (
    "c-p0vO;6N77{_N@w!0KvU{w}SIdCvbf=jz^up%y2?WG5I*N|+uG^HJAW7#s@Srii!5+jL;2lWFOFDCd2y!sWqdodo=lV8D^7"
    "D`)QmC4S|ww?d;|8?ehW*Z9I2S7Rv4z(eW1)8gy)+U@WG^`ai9^0~%0n3rL%{)gS-%b(%+;DUgB^0*JldCS)FjNgo$B5B&$F"
    "`x4EvM7vAG!u~p>dx);SoF4LVfvmf(V|Xq>de8SWtV|vb((M!j+z78!CpKuH&kkMILead^_bucU)}^qLeS;W!us4BmX9k(q2"
    "FT^|x6v>Ki@8D;!1xO$8{7!tS683acb`(8X6K1;}7D*g`{Xj!ecqw*w6{Y!W9kWv0!3)6-^~N`h#a9dwEOAR#XM+AA21v{0^"
    "177>`5y^2PC<sO&hfr-@sZOlUx(Krd4!00MLnws)MUBl>l3r+NTg@%$!f11zkE|IykH;&z;9Jmo|Qeo9`*EOteLbpp+T9zhb"
    "dv#P3sn_Q}-(FBG+K=}d2eSuWdmEr?wzbw-haD_Sr8C$aYSl6Ys6Ro!8Dhbl2rvxl0l>-@h7QdnS(^VJ-~DD=7~7CCyj=J(M"
    "l*mrks$-_M5<y&kfmGa0Pv%3*U8r+`H;R%`iDhIlza2@?I?LLdJ55Wlt`4N{F#Zq)Tz_!Uk`4dzW#&YZr~Io*}{2Ne|fpYQ~"
    "$5;*OpHAp8&;!1oU3D3tfw3;4_ULEvjY6QsEzQgi2Kug}F+xR26I0S)o#_mBmVVwp^PNM6pyXinW?p5{i`a`{Y(LPdM@(WrD"
    "&6oZ)gEIz%2nN8{>n0p=pgj|p&GfyaY{i)cJrI1D(Ua^rErg)kh6^DY!8D8RTpoVA&Ve1rwD+KFq!c^K91#<gNx8_uD@h&I~"
    "?;&~evhqrbj`pzNo(Mi`(IBt4BMcJEyG94QS7=N5g`XkZNzcO$y<zM@!Z<6yhX>Yzi_b*?csXq"
)


def refused(path, *words):
    with pytest.raises(UserError) as error:
        torch.read(path)
    line = str(error.value)
    assert line.startswith(str(path)) and "\n" not in line
    for word in words:
        assert word in line
    return line


@pytest.mark.parametrize("written", [WRITTEN_LEGACY, WRITTEN_ZIP], ids=["legacy", "zip"])
def test_what_pytorch_wrote_is_read(tmp_path, written):
    path = tmp_path / "f.pt"
    path.write_bytes(zlib.decompress(base64.b85decode(written)))
    arrays = torch.read(path)
    x = SIX.reshape(2, 3)
    expected = dict(x=x, turned=x.T[1:], half=np.array(1.5, ml_dtypes.bfloat16))
    assert list(arrays) == list(expected)
    for name, array in arrays.items():
        assert array.dtype == expected[name].dtype and array.shape == expected[name].shape
        np.testing.assert_array_equal(array, expected[name])


@FORMATS
def test_views_of_one_storage_are_rebuilt_as_numpy_would(tmp_path, make):
    value = state(
        whole=tensor(),
        turned=tensor(shape=(3, 2), strides=(1, 3)),
        part=tensor(offset=4, shape=(2,), strides=(1,)),
        column=tensor(offset=1, shape=(2,), strides=(3,)),
        spread=tensor(offset=5, shape=(2, 2), strides=(0, 0)),
        scalar=tensor(offset=2, shape=(), strides=()),
        none=tensor(shape=(0, 3), strides=(3, 1)),
    )
    arrays = torch.read(make(tmp_path / "f.pth", value, s0=SIX))
    x = SIX.reshape(2, 3)
    expected = dict(whole=x, turned=x.T, part=x.ravel()[4:], column=x[:, 1])
    expected |= dict(spread=np.full((2, 2), x[1, 2]), scalar=x[0, 2], none=x[:0])
    assert list(arrays) == list(expected)
    for name, array in arrays.items():
        assert array.shape == expected[name].shape and array.dtype == np.float32
        np.testing.assert_array_equal(array, expected[name])
    arrays["whole"][0, 2] = 9  # nobody else's memory
    assert arrays["scalar"] == 2


@FORMATS
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("Half", "f2"), ("BFloat16", ml_dtypes.bfloat16), ("Double", "f8"), ("Int", "i4"), ("Long", "i8"),
        ("Short", "i2"), ("Char", "i1"), ("Byte", "u1"), ("Bool", "?"),
    ],
)  # fmt: skip
def test_every_type_of_storage(tmp_path, make, kind, dtype):
    stored = np.array([0, 1, 1, 0, 1, 0]).astype(dtype)
    value = state(x=tensor(kind, "a"))
    (array,) = torch.read(make(tmp_path / "f.pth", value, sa=stored)).values()
    assert array.dtype == stored.dtype and array.tobytes() == stored.tobytes()


@FORMATS
@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_a_checkpoint_yields_its_state_dict(tmp_path, make, key):
    parameter = b"ctorch._utils\n_rebuild_parameter\n(" + tensor() + b"\x88" + ORDERED + b"tR"
    size = b"ctorch\nSize\n(" + numbers(2, 3) + b"tR"
    value = b"}(" + text("epoch") + number(3) + text(key) + state(w=parameter) + text("size")
    arrays = torch.read(make(tmp_path / "f.pth", value + size + b"u", s0=SIX))
    np.testing.assert_array_equal(arrays["w"], SIX.reshape(2, 3))


@FORMATS
def test_attributes_of_the_state_dict_are_ignored(tmp_path, make):
    metadata = b"}(" + text("_metadata") + ORDERED + b"ub"
    assert list(torch.read(make(tmp_path / "f.pth", state(w=tensor()) + metadata, s0=SIX))) == ["w"]


BOMBS = {
    "os.system": b"cos\nsystem\n(X\x09\x00\x00\x00touch HIT\ntR",
    "builtins.eval": b"cbuiltins\neval\n(X\x12\x00\x00\x00open('HIT', mode='w')tR",
    "posix.system": b"X\x05\x00\x00\x00posixX\x06\x00\x00\x00system\x93(X\x09\x00\x00\x00touch HITtR",
    "torch.nn.modules.linear.Linear": b"ctorch.nn.modules.linear\nLinear\n)\x81}b",
    "torch._utils._rebuild_qtensor": b"ctorch._utils\n_rebuild_qtensor\n)R",
    "opcode INST": b"(X\x09\x00\x00\x00touch HITios\nsystem\n",
    "opcode EXT1": b"\x82\x01",
    "opcode OBJ": b"(ctorch\nSize\no",
    "opcode NEWOBJ": b"ctorch\nSize\n)\x81",
}


@FORMATS
@pytest.mark.parametrize("named", BOMBS)
def test_whatever_is_no_state_dict_is_refused_by_name_and_never_run(
    tmp_path, monkeypatch, make, named
):
    monkeypatch.chdir(tmp_path)
    value = state(w=tensor(), bomb=BOMBS[named])
    line = refused(make(tmp_path / "f.pth", value, s0=SIX), named)
    assert "nothing of it was run" in line
    assert not (tmp_path / "HIT").exists()


def test_nothing_is_run_before_the_first_byte_of_a_legacy_file_is_known(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for before in (b"", MAGIC, MAGIC + VERSION):
        (tmp_path / "f.pth").write_bytes(before + b"\x80\x02" + BOMBS["os.system"] + b".")
        refused(tmp_path / "f.pth", "os.system")
    assert not (tmp_path / "HIT").exists()


@FORMATS
@pytest.mark.parametrize(
    "wrong",
    [
        dict(offset=1), dict(shape=(3, 3)), dict(strides=(4, 1)), dict(offset=-1), dict(strides=(-3, 1)),
        dict(shape=(-2, 3)), dict(count=7), dict(count=5), dict(shape=(2, 2**40), strides=(0, 0)),
        dict(shape=(6,), strides=(1, 1)), dict(shape=(2**62, 2**62), strides=(1, 1)), dict(key="1"),
    ],
    ids=str,
)  # fmt: skip
def test_a_tensor_never_looks_past_its_storage(tmp_path, make, wrong):
    refused(make(tmp_path / "f.pth", state(w=tensor(**wrong)), s0=SIX))


@FORMATS
def test_a_small_file_takes_little_memory(tmp_path, make):
    repeated = {f"w{i}": tensor(shape=(2**24,), strides=(0,)) for i in range(5)}  # 64 MiB each
    refused(make(tmp_path / "f.pth", state(**repeated), s0=SIX), "'w4'", "4 times the file")
    # A name whose first half would be a text of 2 ** 60 numbers.
    halves = b")q\x00" + b"".join(
        b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(60)
    )
    bomb = state(w=tensor(), bomb=halves + text("a") + b"\x93")
    refused(make(tmp_path / "f.pth", bomb, s0=SIX), "damaged", "no text")


@FORMATS
@pytest.mark.parametrize(
    ("value", "word"),
    [
        (b"]", "holds a list"),
        (tensor(), "holds a tensor"),
        (b"}(" + text("epoch") + number(3) + b"u", "'epoch'"),
        (state(w=tensor(), step=number(3)), "'step'"),
        (b"}(" + number(3) + tensor() + b"u", "3"),
        (b"})" + number(3) + b"s", "keys"),
    ],
)
def test_what_is_no_state_dict_says_what_it_is(tmp_path, make, value, word):
    storages = dict(s0=SIX) if b"storage" in value else {}
    refused(make(tmp_path / "f.pth", value, **storages), word)


def test_big_endian_compressed_views_and_other_files_are_told_apart(tmp_path):
    value, f = state(w=tensor()), tmp_path / "f.pth"
    refused(legacy(f, value, little=b"\x89", s0=SIX), "big-endian")
    refused(zipped(f, value, order=b"big", s0=SIX), "big-endian")
    refused(zipped(f, value, compress=zipfile.ZIP_DEFLATED, s0=SIX), "compressed")
    view = b"(" + text("1") + number(0) + number(6) + b"t"
    refused(legacy(f, state(w=tensor(view=view)), s0=SIX), "views")
    f.write_bytes(b"")
    refused(f, "empty")
    f.write_bytes(b"<!DOCTYPE html>")
    refused(f, "a web page")
    f.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refused(f, "git lfs pull")
    f.write_bytes(b"\x80\x02}.")
    refused(f, "none of torch.save")
    with zipfile.ZipFile(f, "w") as archive:
        archive.writestr("model/data.pkl", b"\x80\x02}.")
        archive.writestr("model/constants.pkl", b"\x80\x02).")
    refused(f, "TorchScript")
    refused(tmp_path / "f.pht", "no such file", "'f.pth'")
    refused(tmp_path, "folder")


@FORMATS
def test_damage_is_told_in_one_line_or_leaves_the_right_bytes(tmp_path, make):
    path = make(tmp_path / "f.pth", state(w=tensor(), v=tensor(shape=(3,), strides=(2,))), s0=SIX)
    whole, right = path.read_bytes(), torch.read(path)
    for end in range(0, len(whole), 10):
        path.write_bytes(whole[:end])
        refused(path)
    for place in range(
        len(whole)
    ):  # another byte: another name, shape or number, but never a crash
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            torch.read(path)
        except UserError as error:
            assert "\n" not in str(error)
    path.write_bytes(whole)
    assert all(torch.read(path)[name].tobytes() == right[name].tobytes() for name in right)


def test_what_is_written_is_read_again_and_stored_as_pytorch_stores_it(tmp_path):
    arrays = {
        "block.0.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1),
        "count": np.array(7, np.int64),
        "brain": np.array([1.5, -2], ml_dtypes.bfloat16),
        "big": np.arange(3, dtype=">f8"),
        "empty": np.zeros((0, 3), np.float16),
        "näme": np.array([True, False]),
    }
    path = tmp_path / "new" / "f.pth"
    torch.write(path, arrays)
    again = torch.read(path)
    assert list(again) == list(arrays)
    for name, array in arrays.items():
        assert again[name].shape == array.shape
        assert again[name].dtype == array.dtype.newbyteorder("<")
        np.testing.assert_array_equal(again[name], array)
    whole = path.read_bytes()
    torch.write(path, arrays)
    assert path.read_bytes() == whole
    assert [p.name for p in path.parent.iterdir()] == ["f.pth"]
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        for entry in archive.infolist():
            assert entry.compress_type == zipfile.ZIP_STORED
            start = (
                entry.header_offset
                + 30
                + sum(
                    struct.unpack("<2H", whole[entry.header_offset + 26 : entry.header_offset + 30])
                )
            )
            assert start % 64 == 0  # where torch.load(mmap=True) looks for aligned numbers
        assert archive.read("archive/data/0") == arrays["block.0.weight"].tobytes()


def test_equal_arrays_give_equal_files_whatever_their_strides(tmp_path):
    column = np.arange(3, dtype=np.float32)[:, None]
    for name, array in (
        ("a", column.T),
        ("b", column.T.copy()),
    ):  # NumPy keeps odd strides where a length is 1
        torch.write(tmp_path / name, {"w": array})
    assert column.T.strides != column.T.copy().strides
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_write_that_fails_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "f.pth"
    torch.write(path, {"w": SIX})

    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fails)
    with pytest.raises(OSError, match="disk full"):
        torch.write(path, {"w": SIX + 1})
    assert [p.name for p in tmp_path.iterdir()] == ["f.pth"]
    np.testing.assert_array_equal(torch.read(path)["w"], SIX)


def test_what_pytorch_cannot_hold_is_not_written(tmp_path):
    for wrong in (np.zeros(2, np.uint32), np.zeros(2, complex), np.array(["a"]), np.array([None])):
        with pytest.raises(UserError, match="'w'"):
            torch.write(tmp_path / "f.pth", {"w": wrong})
    assert not list(tmp_path.iterdir())
