from __future__ import annotations

import collections
import io
import os
import pickle
import pickletools
import struct
import subprocess
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_directories import artifact_error
from trimodal.errors import ArtifactError
from trimodal.loading import pickles
from trimodal.loading.pickles import load_pickle, load_torch_config

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)

PLAIN = {
    "none": None,
    "numbers": [0, -3, 2**70, 1.5, float("inf"), True],
    "texts": ("", "héllo", "日本"),
    "bytes": b"\x00\xff",
    "set": {1, 2},
    "table": [(0.0, 0.1), (1.0, 0.9)],
    "nested": {"bins": {"a": 0.5, 1: 2}, "default_bin": 0.25},
    "ordered": collections.OrderedDict([("b", 1), ("a", 2)]),
}

SCALARS = [
    np.float64(0.1),
    np.float32(0.1),
    np.float16(0.5),
    np.int64(-7),
    np.int8(-1),
    np.uint16(65535),
    np.bool_(True),
    np.str_("naïve"),
    np.bytes_(b"ab"),
]


class Harmful:
    """Pickles as a call of any function with any arguments."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def read(path, content):
    path.write_bytes(content)
    return load_pickle(path)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "impute_dict.pkl"


def of_numpy(value, protocol, module):
    """Pickles a numpy value as the numpy that calls the module of its scalars by this name does."""
    content = pickle.dumps(value, protocol)
    ours = b"numpy._core.multiarray"
    assert ours in content
    frame = content.replace(ours, module)
    if protocol >= 4:  # the name's length stands before it, and the frame's length before all
        frame = content.replace(struct.pack("<B", len(ours)) + ours, struct.pack("<B", len(module)) + module)
        body = frame[11:] if frame[2:3] == pickle.FRAME else None
        frame = frame if body is None else frame[:3] + struct.pack("<Q", len(body)) + body
    assert module in frame
    assert pickletools.dis(frame, out=io.StringIO()) is None
    return frame


OLD_PROTOCOL = pytest.mark.xfail(
    strict=True, reason="older protocols build bytes by _codecs.encode and sets by builtins.set, which are refused"
)
FIRST_PROTOCOL = {"bytes": 3, "set": 4}


@pytest.mark.parametrize(
    ("value", "protocol"),
    [
        pytest.param(
            value,
            protocol,
            id=f"{name}-{protocol}",
            marks=OLD_PROTOCOL if protocol < FIRST_PROTOCOL.get(name, 0) else (),
        )
        for name, value in PLAIN.items()
        for protocol in PROTOCOLS
    ],
)
def test_plain_values_come_back_in_every_protocol(file, value, protocol):
    assert read(file, pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"], ids=["numpy1", "numpy2"])
@pytest.mark.parametrize("protocol", [pytest.param(protocol, marks=OLD_PROTOCOL) for protocol in range(3)] + [3, 4, 5])
@pytest.mark.parametrize("scalar", SCALARS, ids=lambda scalar: type(scalar).__name__)
def test_numpy_scalars_become_python_values(file, scalar, protocol, module):
    value = read(file, of_numpy({"amount": scalar}, protocol, module))

    assert value == {"amount": scalar.item()}
    assert type(value["amount"]) is type(scalar.item())


def test_tables_of_numpy_scalars_of_both_versions_agree(file):
    table = [(np.float64(raw), np.float64(raw**2)) for raw in np.linspace(0, 1, 5)]

    old = read(file, of_numpy(table, 3, b"numpy.core.multiarray"))
    new = read(file, of_numpy(table, 4, b"numpy._core.multiarray"))

    assert old == new == [(float(raw), float(calibrated)) for raw, calibrated in table]


def test_numpy_scalars_of_the_other_byte_order(file):
    scalar = np.array([1.5], dtype=">f8")[0]
    content = pickle.dumps(scalar, 3)
    swapped = content.replace(b"<", b">").replace(struct.pack("<d", 1.5), struct.pack(">d", 1.5))

    assert read(file, swapped) == 1.5


@pytest.mark.parametrize(
    ("function", "shown"),
    [
        (os.system, "posix.system"),
        (eval, "eval"),
        (exec, "exec"),
        (subprocess.Popen, ".Popen"),
        (subprocess.check_output, ".check_output"),
        (__import__, "__import__"),
        (getattr, "getattr"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_would_run_something_is_refused_and_nothing_runs(tmp_path, file, function, shown, protocol):
    marker = tmp_path / "ran"
    command = f"touch {marker}"
    arguments = {
        eval: (f"__import__('os').system({command!r})",),
        exec: (f"import os; os.system({command!r})",),
        subprocess.Popen: (["touch", str(marker)],),
        subprocess.check_output: (["touch", str(marker)],),
        __import__: ("os",),
        getattr: (marker, "touch"),
    }.get(function, (command,))
    content = pickle.dumps({"amount": Harmful(function, *arguments)}, protocol)

    with artifact_error("impute_dict.pkl", f"{shown}", "save it as JSON"):
        read(file, content)

    assert not marker.exists()


def test_the_harmful_pickles_of_these_tests_would_run(tmp_path):
    marker = tmp_path / "ran"

    pickle.loads(pickle.dumps(Harmful(os.system, f"touch {marker}")))

    assert marker.exists()


@pytest.mark.parametrize(
    "value",
    [
        np.array([1.0, 2.0]),
        np.array([{"a": 1}], dtype=object)[0:1],
        np.datetime64("2024-01-01"),
        np.complex64(1),
        np.void(b"ab"),
        pytest,
        io.BytesIO,
        ValueError("x"),
        range(3),
    ],
    ids=["array", "object array", "datetime", "complex", "void", "module", "class", "exception", "range"],
)
def test_what_is_not_plain_is_refused(file, value):
    try:
        content = pickle.dumps(value)
    except TypeError:  # a module cannot be pickled; a reference to one can
        content = b"cpytest\nraises\n."

    with artifact_error("impute_dict.pkl"):
        read(file, content)


def test_a_numpy_scalar_of_objects_is_refused(file):
    scalar = pickle.dumps(np.float64(1), 3)
    assert b"f8" in scalar
    objects = scalar.replace(b"f8", b"O8")

    with artifact_error("impute_dict.pkl cannot be read:", "not a number or a string"):
        read(file, objects)


def test_a_numpy_scalar_whose_bytes_do_not_fit_its_type_is_refused(file):
    scalar = pickle.dumps(np.float32(1), 3)

    with artifact_error("impute_dict.pkl cannot be read"):
        read(file, scalar.replace(b"f4", b"f8"))


def test_every_truncation_of_a_pickle_is_an_error(file):
    content = pickle.dumps({"amount": 1.5, "count": [1, 2, 3], "name": np.float64(2)})

    for end in range(len(content)):
        with artifact_error("impute_dict.pkl"):
            read(file, content[:end])


NO_REMEDY = pytest.mark.xfail(strict=True, reason="what pickle itself says of a damaged file names no remedy")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x09.",
        b"N",
        *(pytest.param(content, marks=NO_REMEDY) for content in (b"\x80", b"not a pickle", b'{"amount": 1}')),
    ],
)
def test_what_is_no_pickle_is_an_error_with_a_remedy(file, content):
    with artifact_error("impute_dict.pkl", "save it"):
        read(file, content)


# LONG_BINPUT (`r`) is left out: CPython's unpickler reserves memory for whatever index stands there.
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60).map(lambda content: content.replace(b"r", b"q")))
def test_random_bytes_give_a_value_or_an_artifact_error(file, content):
    with_protocol = b"\x80\x04" + content + b"."
    for attempt in (content, with_protocol):
        try:
            value = read(file, attempt)
        except ArtifactError:
            continue
        assert_plain(value)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10_000), byte=st.integers(0, 255).filter(lambda byte: byte != ord("r")))
def test_a_changed_byte_gives_a_plain_value_or_an_artifact_error(file, place, byte):
    content = bytearray(pickle.dumps({"amount": 1.5, "table": [(0.0, np.float64(0.5))], "x": "text"}, 3))
    content[place % len(content)] = byte
    try:
        value = read(file, bytes(content))
    except ArtifactError:
        return
    assert_plain(value)


def assert_plain(value):
    """Fails for anything that is not a plain value, or one of the reader's own building blocks."""
    if isinstance(value, dict):
        for key, item in value.items():
            assert_plain(key)
            assert_plain(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            assert_plain(item)
    else:
        plain = value is None or isinstance(value, int | float | complex | str | bytes | bytearray)
        building_block = value in (collections.OrderedDict, pickles._Dtype, pickles._scalar) or isinstance(
            value, pickles._Dtype | pickle.PickleBuffer
        )
        assert plain or building_block, type(value)


@pytest.mark.xfail(strict=True, reason="BUILD with slot state sets attributes of the module-level function it is given")
def test_a_pickle_cannot_change_the_reader(file):
    before = pickles._scalar.__defaults__
    slots = pickle.dumps((None, {"__defaults__": ("changed",)}), 2)[2:-1]
    content = b"\x80\x02cnumpy.core.multiarray\nscalar\n" + slots + b"b."
    try:
        with pytest.raises(ArtifactError):
            read(file, content)
        assert pickles._scalar.__defaults__ == before
    finally:
        pickles._scalar.__defaults__ = before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
@pytest.mark.xfail(strict=True, reason="load_pickle does not turn the OSError of open into an ArtifactError")
def test_a_pickle_that_may_not_be_read_is_an_error(file):
    file.write_bytes(pickle.dumps({}))
    file.chmod(0)

    with artifact_error("impute_dict.pkl"):
        load_pickle(file)


# model_artifacts.pth

CONFIG = {"max_sen_len": 32, "steps": ["a", "b"], "rate": 0.5, "flag": True, "none": None}


def write_torch_zip(path, content, name="archive/data.pkl"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)
        archive.writestr("archive/version", "3\n")
    return path


@pytest.fixture
def saved(tmp_path):
    return tmp_path / "model_artifacts.pth"


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="torch is not installed: the file under test is written by it")


def artifacts_of(torch):
    return {
        "config": CONFIG,
        "vocab": {"[PAD]": 0, "the": 1},
        "embedding_mat": torch.ones(3, 2),
        "half": torch.zeros(2, dtype=torch.float16),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "version": torch.torch_version.TorchVersion("2.1.0"),
        "state": torch.nn.Linear(2, 2).state_dict(),
        "model_class": "bimodal",
    }


def test_the_config_of_a_file_written_by_torch(torch, saved):
    torch.save(artifacts_of(torch), saved)

    assert load_torch_config(saved) == CONFIG


def test_the_config_is_read_without_torch(torch, saved):
    torch.save(artifacts_of(torch), saved)
    program = (
        "import sys; from pathlib import Path; sys.modules['torch'] = None\n"
        "from trimodal.loading.pickles import load_torch_config\n"
        f"print(load_torch_config(Path({str(saved)!r}))['max_sen_len'])"
    )

    result = subprocess.run([os.sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (result.returncode, result.stdout) == (0, "32\n"), result.stderr


def test_the_config_may_hold_a_torch_version(torch, saved):
    torch.save({"config": {**CONFIG, "torch": torch.torch_version.TorchVersion("2.1.0")}}, saved)

    assert load_torch_config(saved) == {**CONFIG, "torch": "2.1.0"}


@pytest.mark.xfail(strict=True, reason="torch.save writes protocol 2, whose numpy scalars need _codecs.encode")
def test_the_config_may_hold_numpy_scalars(torch, saved):
    torch.save({"config": {**CONFIG, "max_sen_len": np.int64(32), "rate": np.float64(0.5)}}, saved)

    read_config = load_torch_config(saved)

    assert read_config == CONFIG
    assert (type(read_config["max_sen_len"]), type(read_config["rate"])) == (int, float)


@pytest.mark.parametrize("kind", ["dtype", "size", "device"])
@pytest.mark.xfail(strict=True, reason="torch.float32, torch.Size and torch.device are refused like code")
def test_what_describes_a_tensor_is_passed_over(torch, saved, kind):
    value = {"dtype": torch.float32, "size": torch.Size([1, 2]), "device": torch.device("cpu")}[kind]
    torch.save({"config": CONFIG, "embedding": value}, saved)

    assert load_torch_config(saved) == CONFIG


def test_the_old_format_of_torch_is_an_error_with_a_remedy(torch, saved):
    torch.save({"config": CONFIG}, saved, _use_new_zipfile_serialization=False)

    with pytest.raises(
        ArtifactError, match=r"model_artifacts\.pth is not a file written by torch\.save; save it again"
    ):
        load_torch_config(saved)


@pytest.mark.parametrize("function", [os.system, eval, subprocess.Popen])
def test_a_torch_file_that_would_run_something_is_refused(tmp_path, saved, function):
    marker = tmp_path / "ran"
    command = f"__import__('pathlib').Path({str(marker)!r}).touch()" if function is eval else f"touch {marker}"
    arguments = (command.split(),) if function is subprocess.Popen else (command,)
    write_torch_zip(saved, pickle.dumps({"config": CONFIG, "vocab": Harmful(function, *arguments)}, 2))

    with artifact_error("model_artifacts.pth cannot be read: it would build"):
        load_torch_config(saved)

    assert not marker.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch", "load"),
        ("torch", "Tensor"),
        ("torch.storage", "_load_from_bytes"),
        ("torch.nn", "Linear"),
        ("torch.utils._pytree", "tree_map"),
        ("torch._utils", "_import_dotted_name"),
        ("torch.hub", "_rebuild_anything"),
    ],
)
def test_what_torch_could_build_besides_tensors_is_refused(saved, module, name):
    write_torch_zip(saved, f"c{module}\n{name}\n.".encode())

    with artifact_error(f"it would build {module}.{name}, and only plain values are allowed"):
        load_torch_config(saved)


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04", b"PK\x05\x06" + b"\x00" * 18, b"\x80\x02}."])
def test_what_is_no_zip_is_an_error(saved, content):
    saved.write_bytes(content)

    with artifact_error("model_artifacts.pth is not a file written by torch.save"):
        load_torch_config(saved)


def test_a_zip_without_a_pickle_is_an_error(saved):
    write_torch_zip(saved, b"", name="archive/other")

    with artifact_error("model_artifacts.pth is not a file written by torch.save"):
        load_torch_config(saved)


@pytest.mark.parametrize("content", [{}, [], {"config": None}, {"config": [1]}, {"hyperparameters": {}}])
def test_a_torch_file_without_config_is_an_error(saved, content):
    write_torch_zip(saved, pickle.dumps(content, 2))

    with artifact_error("model_artifacts.pth holds no “config” dict; save it with"):
        load_torch_config(saved)


@pytest.mark.parametrize("content", [b"", b"\x80\x02", b"garbage", b"\x80\x02}q\x00."[:-1]])
def test_a_damaged_pickle_in_the_zip_is_an_error(saved, content):
    write_torch_zip(saved, content)

    with artifact_error("model_artifacts.pth"):
        load_torch_config(saved)


def test_a_truncated_zip_is_an_error(saved):
    write_torch_zip(saved, pickle.dumps({"config": CONFIG}, 2))
    content = saved.read_bytes()

    for end in range(0, len(content), 7):
        saved.write_bytes(content[:end])
        with artifact_error("model_artifacts.pth"):
            load_torch_config(saved)


@pytest.mark.xfail(strict=True, raises=RuntimeError, reason="zipfile raises RuntimeError for an encrypted entry")
def test_an_encrypted_zip_is_an_error(saved):
    write_torch_zip(saved, pickle.dumps({"config": CONFIG}, 2))
    content = bytearray(saved.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + flags] |= 1
    saved.write_bytes(content)

    with artifact_error("model_artifacts.pth"):
        load_torch_config(saved)


@pytest.mark.xfail(strict=True, raises=UnicodeDecodeError, reason="zipfile decodes a damaged directory's names itself")
def test_a_zip_whose_names_are_no_text_is_an_error(saved):
    write_torch_zip(saved, pickle.dumps({"config": CONFIG}, 2), name="archivé/data.pkl")
    content = saved.read_bytes()
    saved.write_bytes(content.replace("é".encode(), b"\xff\xff"))

    with artifact_error("model_artifacts.pth"):
        load_torch_config(saved)
