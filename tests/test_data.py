"""IDX files good and bad, the embedded subsets, folder layouts, and downloads from loopback."""

import functools
import gzip
import hashlib
import http.server
import struct
import threading
from dataclasses import replace

import pytest
import torch

from pyconv import data
from pyconv.data import catalogue, datasets, subset

IMAGES, LABELS, TEST_IMAGES, TEST_LABELS = catalogue.FILES


def idx_bytes(code, shape, payload):
    return struct.pack(f">HBB{len(shape)}I", 0, code, len(shape), *shape) + payload


@pytest.fixture
def folder(tmp_path):
    """Forty training and twenty test images with labels 0 to 9, as four plain IDX files."""
    generator = torch.Generator().manual_seed(0)
    for images, labels, count in ((IMAGES, LABELS, 40), (TEST_IMAGES, TEST_LABELS, 20)):
        pixels = torch.randint(256, (count, 28, 28), dtype=torch.uint8, generator=generator)
        data.write_idx(tmp_path / images, pixels)
        data.write_idx(tmp_path / labels, (torch.arange(count) % 10).to(torch.uint8))
    return tmp_path


@pytest.mark.parametrize(
    ("code", "letter", "values", "dtype"),
    [
        (0x08, "B", [0, 1, 255], torch.uint8),
        (0x09, "b", [-128, 0, 127], torch.int8),
        (0x0B, "h", [-300, 2, 30000], torch.int16),
        (0x0C, "i", [-70000, 3, 70000], torch.int32),
        (0x0D, "f", [-1.5, 0.25, 3e8], torch.float32),
        (0x0E, "d", [-1.5, 0.1, 3e80], torch.float64),
    ],
)
def test_every_type_is_read(tmp_path, code, letter, values, dtype):
    path = tmp_path / "values"
    path.write_bytes(idx_bytes(code, (3, 1), struct.pack(f">3{letter}", *values)))
    found = data.read_idx(path)
    assert found.dtype == dtype
    assert found.shape == (3, 1)
    assert found.flatten().tolist() == torch.tensor(values, dtype=dtype).tolist()
    found += 1  # the memory is the tensor's own


def test_written_files_read_back_and_are_reproducible(tmp_path):
    values = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4)
    for name in ("plain", "packed.gz", "again.gz"):
        data.write_idx(tmp_path / name, values)
        assert torch.equal(data.read_idx(tmp_path / name), values)
    assert (tmp_path / "packed.gz").read_bytes() == (tmp_path / "again.gz").read_bytes()
    assert (tmp_path / "packed.gz").read_bytes()[:2] == b"\x1f\x8b"
    with pytest.raises(ValueError, match=r"must be uint8, got torch\.float32"):
        data.write_idx(tmp_path / "float", torch.zeros(1))


def test_empty_and_scalar_arrays(tmp_path):
    (tmp_path / "empty").write_bytes(idx_bytes(0x08, (0, 28), b""))
    assert data.read_idx(tmp_path / "empty").shape == (0, 28)
    (tmp_path / "scalar").write_bytes(idx_bytes(0x0C, (), struct.pack(">i", 7)))
    assert data.read_idx(tmp_path / "scalar").item() == 7


GOOD = idx_bytes(0x08, (2, 3), bytes(6))
BAD_FILES = {
    "no bytes": (b"", "truncated: 0 bytes, an IDX header has at least 4"),
    "half a header": (GOOD[:7], "truncated: 7 bytes, the header alone has 12 for 2 dimensions"),
    "one value short": (GOOD[:-1], "truncated: 17 bytes unpacked, expected 18 for 2x3 of uint8"),
    "one value more": (GOOD + b"\0", "too long: 19 bytes unpacked, expected 18"),
    "a picture": (b"\x89PNG\r\n\x1a\n", "not an IDX file: it begins with bytes 89 50 4e 47"),
    "unknown type": (b"\0\0\x0a\x01\0\0\0\0", "not an IDX file: it begins with bytes 00 00 0a 01"),
    "half a gzip": (gzip.compress(GOOD)[:-9], "truncated: the gzip stream ends after"),
    "wrong CRC": (gzip.compress(GOOD)[:-8] + bytes(4) + gzip.compress(GOOD)[-4:], "damaged: gzip"),
    "gzip of noise": (b"\x1f\x8b\x08" + bytes(7) + b"\xff" * 20, "damaged: gzip says"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file_is_one_sentence_that_names_it(tmp_path, case):
    content, sentence = BAD_FILES[case]
    path = tmp_path / "digits"
    path.write_bytes(content)
    with pytest.raises(data.DataError) as caught:
        data.read_idx(path)
    assert str(caught.value).startswith(f"{path}: {sentence}")
    assert "\n" not in str(caught.value)


def test_missing_unreadable_and_mislabelled_files(tmp_path):
    with pytest.raises(data.DataError, match="nothing: no such file"):
        data.read_idx(tmp_path / "nothing")
    with pytest.raises(data.DataError, match="cannot be read: Is a directory"):
        data.read_idx(tmp_path)
    data.write_idx(tmp_path / "labels", torch.zeros(3, dtype=torch.uint8))
    with pytest.raises(data.DataError, match=r"number is 2049, labels .*expected 2051, im"):
        data.read_idx(tmp_path / "labels", data.IMAGES)


@pytest.mark.parametrize("name", data.names())
def test_embedded_subset_is_balanced_and_ready(name):
    loaded = data.load(name)
    assert loaded.origin == "embedded subset"
    assert loaded.num_classes == 10
    assert loaded.train.images.shape == (10_000, 1, 28, 28)
    assert loaded.test.images.shape == (2_000, 1, 28, 28)
    assert loaded.train.labels.bincount().tolist() == [1000] * 10
    assert loaded.test.labels.bincount().tolist() == [200] * 10
    assert loaded.train.images.dtype == torch.float32
    assert loaded.train.labels.dtype == torch.int64
    assert loaded.train.images.min() == 0
    assert loaded.train.images.max() == 1


def test_embedded_digits_begin_with_the_real_file():
    """The course's top edge of training image 12, a three, taken around two pixels."""
    train = data.load("mnist").train
    image = (train.images[12, 0] * 255).round()
    assert train.labels[12] == 3
    rows = torch.tensor([-1.0, 0.0, 1.0])[:, None]  # the kernel: every row one value
    assert (image[4:7, 6:9] * rows).sum() == 762
    assert (image[7:10, 17:20] * rows).sum() == -29


def test_licence_notes_lie_beside_the_images():
    folder = subset.Path(datasets.__file__).parent
    assert "Share Alike 3.0" in (folder / "mnist/LICENSE.md").read_text()
    assert "Zalando" in (folder / "fashion-mnist/LICENSE.md").read_text()


def test_normalize_uses_the_training_pixels():
    plain, loaded = data.load("mnist"), data.load("mnist", normalize=True)
    assert abs(loaded.train.images.mean()) < 1e-4
    assert abs(loaded.train.images.std() - 1) < 1e-4
    std, mean = torch.std_mean(plain.train.images)
    torch.testing.assert_close(loaded.test.images, (plain.test.images - mean) / std)
    assert loaded.fingerprint == plain.fingerprint


def test_classes_are_kept_and_renumbered_in_the_order_given():
    plain, loaded = data.load("mnist"), data.load("mnist", classes=(7, 3))
    assert loaded.num_classes == 2
    assert loaded.train.labels.bincount().tolist() == [1000, 1000]
    sevens = plain.train.images[plain.train.labels == 7]
    assert torch.equal(loaded.train.images[loaded.train.labels == 0], sevens)
    assert loaded.fingerprint != plain.fingerprint


def test_layouts_of_a_root(folder, tmp_path_factory):
    expected = data.load("mnist", root=folder)
    assert expected.train.images.shape == (40, 1, 28, 28)
    assert expected.origin == str(folder)
    for place, suffix, spelling in (
        ("mnist", "", str),
        ("mnist", ".gz", str),
        ("MNIST/raw", "", str),
        ("", ".gz", str),
        ("", "", lambda stem: stem.replace("-idx", ".idx")),
    ):
        root = tmp_path_factory.mktemp("root")
        (root / place).mkdir(parents=True, exist_ok=True)
        for stem in catalogue.FILES:
            values = data.read_idx(folder / stem)
            data.write_idx(root / place / (spelling(stem) + suffix), values)
        found = data.load("mnist", root=root)
        assert torch.equal(found.train.images, expected.train.images)
        assert found.fingerprint == expected.fingerprint
        assert found.origin == str(root / place)


def test_root_without_files_says_where_it_looked(tmp_path):
    with pytest.raises(data.DataError, match=f"{tmp_path}: no IDX file of mnist there.*MNIST/raw"):
        data.load("mnist", root=tmp_path)
    with pytest.raises(data.DataError, match="no data set is called 'cifar': choose from mnist"):
        data.load("cifar")


def test_files_that_do_not_belong_together(folder):
    def fault(stem, values):
        good = (folder / stem).read_bytes()
        data.write_idx(folder / stem, values)
        with pytest.raises(data.DataError) as caught:
            data.load("mnist", root=folder)
        (folder / stem).write_bytes(good)
        return str(caught.value).removeprefix(f"{folder / stem}: ")

    def zeros(*shape):
        return torch.zeros(shape, dtype=torch.uint8)

    assert fault(LABELS, zeros(39)).startswith("39 labels, expected 40, one for each image")
    assert fault(LABELS, zeros(40) + 10) == "holds the label 10, expected 0 to 9"
    assert fault(IMAGES, zeros(40, 32, 32)) == "images are 32x32, expected 28x28"
    assert fault(IMAGES, zeros(40)).startswith("the magic number is 2049, labels")
    assert fault(TEST_LABELS, zeros(20)[:0]).startswith("0 labels, expected 20")
    (folder / TEST_LABELS).unlink()
    with pytest.raises(data.DataError, match=f"{TEST_LABELS}: no such file, plain or gzipped"):
        data.load("mnist", root=folder)
    data.write_idx(folder / TEST_LABELS, zeros(20))
    with pytest.raises(data.DataError, match="mnist: has no image of class 5"):
        data.load("mnist", root=folder, classes=(0, 5))


def test_subset_takes_first_or_spreads():
    labels = torch.tensor([*range(10)] * 8)
    first = subset.balanced(labels, 2, spread=False)
    assert first.tolist() == list(range(20))
    spread = subset.balanced(labels, 2, spread=True)
    assert spread.tolist() == [*range(10), *range(40, 50)]
    with pytest.raises(data.DataError, match="class 0 has 8 images, expected 9 or more"):
        subset.balanced(labels, 9, spread=True)


def test_subset_command_writes_what_load_reads(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(subset, "TRAIN_PER_CLASS", 2)
    monkeypatch.setattr(subset, "TEST_PER_CLASS", 1)
    out = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["subset", "--root", str(folder), "--output", str(out)])
    assert subset.main() == 0
    made = data.load("fashion-mnist", root=out)
    assert made.train.labels.tolist() == [*range(10)] * 2
    assert torch.equal(made.test.images, data.load("mnist", root=folder).test.images[:10])
    (folder / LABELS).unlink()
    assert subset.main() == 2
    assert "no such file" in capsys.readouterr().err


@pytest.fixture
def mirror(folder, tmp_path_factory, monkeypatch):
    """A loopback server of small gzipped files; the catalogue points at it, checksums included."""
    served = tmp_path_factory.mktemp("served")
    for stem in catalogue.FILES:
        data.write_idx(served / f"{stem}.gz", data.read_idx(folder / stem))
    md5 = {s: hashlib.md5((served / f"{s}.gz").read_bytes()).hexdigest() for s in catalogue.FILES}
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=served)
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    entry = catalogue.CATALOGUE["mnist"]
    url = f"http://127.0.0.1:{server.server_port}/"
    monkeypatch.setitem(catalogue.CATALOGUE, "mnist", replace(entry, url=url, md5=md5))
    yield served
    server.shutdown()
    server.server_close()


def test_download_to_the_cache_and_again_without_the_network(folder, mirror, tmp_path, monkeypatch):
    monkeypatch.setenv("PYCONV_CACHE", str(tmp_path / "cache"))
    expected = data.load("mnist", root=folder)
    assert data.load("mnist", fetch=True).fingerprint == expected.fingerprint
    for file in mirror.iterdir():
        file.unlink()
    again = data.load("mnist", fetch=True)
    assert again.fingerprint == expected.fingerprint
    assert again.origin == str(tmp_path / "cache" / "mnist")
    assert not list(tmp_path.rglob("*.part"))


def test_download_with_a_root_goes_there(mirror, tmp_path):
    data.load("mnist", root=tmp_path / "new", fetch=True)
    assert (tmp_path / "new" / "mnist" / f"{IMAGES}.gz").exists()


def test_wrong_checksum_is_discarded(mirror, tmp_path):
    data.write_idx(mirror / f"{TEST_LABELS}.gz", torch.zeros(20, dtype=torch.uint8))
    with pytest.raises(data.DataError, match=r"t10k-labels.*MD5 is .* the download was discarded"):
        data.load("mnist", root=tmp_path / "new", fetch=True)
    names = [path.name for path in (tmp_path / "new" / "mnist").iterdir()]
    assert f"{TEST_IMAGES}.gz" in names
    assert f"{TEST_LABELS}.gz" not in names


def test_file_that_is_not_the_canonical_one_is_kept(mirror, tmp_path):
    path = tmp_path / "mnist" / f"{IMAGES}.gz"
    path.parent.mkdir()
    path.write_bytes(b"mine")
    with pytest.raises(data.DataError, match=r"not the canonical file.*leave out --download"):
        data.load("mnist", root=tmp_path, fetch=True)
    assert path.read_bytes() == b"mine"


def test_download_that_fails_says_what_to_do(mirror, tmp_path):
    (mirror / f"{IMAGES}.gz").unlink()
    with pytest.raises(data.DataError, match=r"cannot be downloaded \(Not Found|File not found"):
        data.load("mnist", root=tmp_path, fetch=True)
    entry = catalogue.CATALOGUE["mnist"]
    catalogue.CATALOGUE["mnist"] = replace(entry, url="http://127.0.0.1:9/")  # nobody listens
    with pytest.raises(data.DataError, match=r"cannot be downloaded.*leave out --download"):
        data.load("mnist", root=tmp_path, fetch=True)


def test_canonical_checksums_are_of_the_known_files():
    """A slip in the table would make every download fail: all eight differ and are MD5s."""
    sums = [md5 for entry in catalogue.CATALOGUE.values() for md5 in entry.md5.values()]
    assert len(set(sums)) == 8
    assert all(len(bytes.fromhex(md5)) == 16 for md5 in sums)
    assert all(tuple(entry.md5) == catalogue.FILES for entry in catalogue.CATALOGUE.values())
