"""PyTorch's files read without PyTorch: both forms, every type, views, and what stands in place of weights."""

import argparse
import io
import pathlib
import pickle
import zipfile

import numpy as np
import pytest

from mtl_jax.errors import CheckpointError
from mtl_jax.reference_weights import pth
from mtl_jax.reference_weights.torch_pickle import Foreign

FORMS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older"])


@FORMS
def test_every_type_and_every_view(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    base = torch.arange(24.0).reshape(4, 6)
    names = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 complex128"
    tensors = {name: base.to(getattr(torch, name)) for name in names.split()}
    tensors |= {"transposed": base.t(), "strided": base[1:3, ::2], "expanded": torch.ones(1).expand(3, 4),
                "none": torch.zeros(0, 3), "number": torch.tensor(3.5), "parameter": torch.nn.Parameter(base),
                "shared": base}  # fmt: skip
    if zipped:
        tensors |= {name: base.to(getattr(torch, name)) for name in ("float8_e4m3fn", "float8_e5m2")}
    torch.save({"nested": [tensors, (1, "text")]}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    arrays, rest = pth.read(tmp_path / "a.pth")["nested"]
    assert rest == (1, "text")
    assert arrays.keys() == tensors.keys()
    for name, tensor in tensors.items():
        array, wide = arrays[name], tensor.detach()
        assert str(array.dtype) == str(tensor.dtype).removeprefix("torch."), name
        wide = wide.float() if "bfloat" in name or "float8" in name else wide
        np.testing.assert_array_equal(array.astype(wide.numpy().dtype), wide.numpy(), err_msg=name)


@FORMS
def test_what_trainers_keep_beside_the_weights_is_passed_over(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(2, 2)
    beside = {"args": argparse.Namespace(out=pathlib.Path("x")), "device": torch.device("cpu"), "type": torch.half,
              "best": np.float64(0.5), "seen": {1, 2}, "size": torch.Size([1, 2])}  # fmt: skip
    content = {"state_dict": layer.state_dict(), **beside}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    read = pth.read(tmp_path / "a.pth")
    np.testing.assert_array_equal(read["state_dict"]["weight"], layer.weight.detach().numpy())
    assert (read["best"], read["size"]) == (0.5, (1, 2))
    assert isinstance(read["args"], Foreign)
    assert not vars(type(read["args"])).keys() & {"out"}


def test_a_file_of_the_other_byte_order(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.arange(3.0), "c": torch.tensor([1 + 2j])}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(tmp_path / "big.pth", "w") as new:
        for name in old.namelist():
            data = old.read(name)
            data = b"big" if name.endswith("byteorder") else data
            if "/data/" in name:
                data = np.frombuffer(data, "u4").byteswap().tobytes()
            new.writestr(name, data)
    read = pth.read(tmp_path / "big.pth")
    assert read["a"].tolist() == [0, 1, 2]
    assert read["c"].tolist() == [1 + 2j]


NOT_WEIGHTS = {
    "a web page": (b"\n<!DOCTYPE html><html>", "a web page, not a PyTorch file"),
    "a web page with a mark": (b"\xef\xbb\xbf<!DOCTYPE html>", "a web page, not a PyTorch file"),
    "an answer of a store": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "a web page"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", "Git LFS pointer .run: git lfs pull"),
    "nothing": (b"", "an empty file of 0 bytes, perhaps a download that stopped"),
    "an archive": (b"\x1f\x8b\x08abc", "a gzip archive, not a PyTorch file"),
    "Keras' file": (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    "JSON": (b'{"error": "Not Found"}', "a JSON file"),
    "text": (b"not found", "data that starts with"),
    "a pickled object": (pickle.dumps(argparse.Namespace(a=1)), "a network pickled whole.*argparse.Namespace"),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_WEIGHTS)
def test_what_stands_in_place_of_weights_is_named(tmp_path, case):
    content, words = NOT_WEIGHTS[case]
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"a\.pth: .*{words}") as caught:
        pth.read(tmp_path / "a.pth")
    assert "\n" not in str(caught.value)


@FORMS
def test_a_download_that_stopped(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(whole[:-700])
    with pytest.raises(CheckpointError, match="perhaps a download that stopped"):
        pth.read(tmp_path / "a.pth")


def test_other_archives_and_kinds_of_tensors_are_named(tmp_path):
    torch = pytest.importorskip("torch")
    np.savez(tmp_path / "a.pth.npz", a=np.zeros(3))
    with pytest.raises(CheckpointError, match=r"archive of NumPy arrays \(\.npz\)"):
        pth.read(tmp_path / "a.pth.npz")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("net/data.pkl", "net/constants.pkl"):
            archive.writestr(name, pickle.dumps(()))
    with pytest.raises(CheckpointError, match="exported by TorchScript"):
        pth.read(tmp_path / "a.zip")
    torch.save({"a": torch.zeros(3).to_sparse(), "b": torch.zeros(2)}, tmp_path / "a.pth")
    read = pth.read(tmp_path / "a.pth")
    assert isinstance(read["a"], Foreign)
    assert read["b"].tolist() == [0, 0]


class _Runs:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@FORMS
@pytest.mark.parametrize("call", [(print, "code ran"), (eval, "print('code ran')"), (exec, "print('code ran')")])
def test_no_code_runs_beside_good_weights_either(tmp_path, capsys, zipped, call):
    torch = pytest.importorskip("torch")
    content = {"state_dict": {"a.weight": torch.zeros(2)}, "notes": _Runs(*call)}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=f"asks for .*{call[0].__name__}, which is not data"):
        pth.read(tmp_path / "a.pth")
    assert "code ran" not in capsys.readouterr().out


def _zip(pickled, **records):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        for name, data in records.items():
            archive.writestr(f"a/data/{name}", data)
    return file.getvalue()


def _tensor(shape, strides, count=4, offset=0):
    """A pickle of one tensor with these sizes over the storage 'x'."""
    storage = b"(Vstorage\nctorch\nFloatStorage\nVx\nVcpu\n" + f"I{count}\nt".encode() + b"Q"
    sizes = "".join(f"({''.join(f'I{n}' + chr(10) for n in numbers)}t" for numbers in (shape, strides))
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + f"I{offset}\n{sizes}I00\nNtR.".encode()


def test_sizes_are_bounded_by_the_file(tmp_path):
    path, data = tmp_path / "a.pth", np.arange(4, dtype=np.float32).tobytes()
    path.write_bytes(_zip(_tensor((2, 2), (2, 1)), x=data))
    assert pth.read(path).tolist() == [[0, 1], [2, 3]]
    for pickled in (
        _tensor((10**9, 10**9), (0, 0)), _tensor((10**6,), (0,)), _tensor((5,), (1,)), _tensor((4,), (1,), offset=1),
        _tensor((-1,), (1,)), _tensor((2,), (-1,), offset=3), _tensor((4,), (1,), count=1 << 40), _tensor((4,), (1, 1)),
    ):  # fmt: skip
        path.write_bytes(_zip(pickled, x=data))
        with pytest.raises(CheckpointError, match=r"a\.pth: "):
            pth.read(path)
