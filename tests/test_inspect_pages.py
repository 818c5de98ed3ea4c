"""Animations and the explorer: the sums that a reader sees are those that float64, and the model, make."""

import base64
import json
import re
import shutil
import struct
import subprocess

import pytest
import torch
import torch.nn.functional as F

import pyconv
from pyconv import data, inspect, models

# --- animations


@pytest.mark.parametrize(
    "geometry",
    [
        {},
        {"stride": 2, "padding": 1},
        {"padding": 2, "dilation": (2, 1)},
        {"groups": 2, "stride": (1, 2)},
    ],
    ids=str,
)
def test_every_step_of_a_convolution_sums_to_its_output(geometry):
    x, b = torch.randn(4, 6, 7), torch.randn(6)
    w = torch.randn(6, 4 // geometry.get("groups", 1), 3, 2)
    page = inspect.animate_conv(x, w, b, **geometry)
    judge = F.conv2d(x[None].double(), w.double(), b.double(), **geometry)[0]
    assert len(page) == judge.numel()
    for number in range(len(page)):
        oc, oh, ow = page.position(number)
        terms = page.step(number)
        assert terms[-1].running + b[oc].item() == pytest.approx(judge[oc, oh, ow].item(), abs=1e-5)
        assert sum(t.product for t in terms) == pytest.approx(terms[-1].running, abs=1e-9)
        for t in terms:
            inside = 0 <= t.pixel[0] < 6 and 0 <= t.pixel[1] < 7
            assert t.padding != inside
            assert t.value == (x[(t.channel, *t.pixel)].item() if inside else 0)
    assert "running" not in page.text(0)
    assert f"= {float(page.operation['y'][0, 0, 0]):g}" in page.text(0)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(2, 2, 0), (3, 2, 1), ((3, 2), (2, 3), (1, 0))]
)
def test_every_step_of_a_pooling_comes_to_its_output(kernel, stride, padding, ceil_mode):
    x = torch.randn(2, 8, 7)
    rest = {"stride": stride, "padding": padding, "ceil_mode": ceil_mode}
    page = inspect.animate_pool(x, kernel, "max", **rest)
    judge = F.max_pool2d(x[None].double(), kernel, **rest)[0]
    found = torch.tensor([page.step(i)[-1].running for i in range(len(page))]).view(judge.shape)
    assert torch.equal(found.double(), judge)
    for count in (False, True):
        page = inspect.animate_pool(x, kernel, "avg", count_include_pad=count, **rest)
        judge = F.avg_pool2d(x[None].double(), kernel, count_include_pad=count, **rest)[0]
        found = [page.step(i)[-1].running / page.divisor(i) for i in range(len(page))]
        assert found == pytest.approx(judge.flatten().tolist(), abs=1e-6)


def test_a_gif_has_a_frame_for_each_step_and_its_sum(tmp_path, pyplot):
    image = pytest.importorskip("PIL.Image")
    x = torch.randint(-3, 4, (4, 4, 5)).float()
    w, b = torch.randint(-2, 3, (2, 2, 2, 2)).float(), torch.arange(2.0)
    conv = inspect.animate_conv(x, w, b, stride=(3, 2), padding=1, dilation=(1, 2), groups=2)
    with image.open(conv.save(tmp_path / "conv.gif", seconds=0.1)) as gif:
        assert gif.n_frames == len(conv) == conv.operation["y"].numel()
    number = len(conv) - 1
    *inputs, output, sums = conv.plot(number=number)
    assert len(inputs) == 2
    assert all(len(ax.patches) == 4 for ax in inputs)  # taps that lie apart
    (text,) = sums.texts
    products = re.findall(r"(-?\d+)\*(-?\d+)", text.get_text())
    oc, oh, ow = conv.position(number)
    y = conv.operation["y"][oc, oh, ow].item()
    assert sum(int(a) * int(b) for a, b in products) + b[oc].item() == y
    assert text.get_text().endswith(f" = {y:g}")
    assert float(output.texts[-1].get_text()) == pytest.approx(y)
    pool = inspect.animate_pool(torch.arange(25.0).view(5, 5), 2, "avg", ceil_mode=True)
    assert pool.reach == (6, 6)
    (text,) = pool.plot(number=8)[-1].texts
    assert text.get_text().split("\n") == [
        "channel 0, row 0:  24   sum 24",
        "channel 0, row 1:  no pixel   sum 24",
        "output 0, 2, 2:  sum / 1 = 24",
    ]
    with pytest.raises(ValueError, match="676 frames"):
        inspect.animate_conv(torch.ones(28, 28), torch.ones(3, 3)).save(tmp_path / "big.gif")


# --- pages


def content(text):
    return json.loads(re.search(r"const DATA = (.*);</script>", text)[1].replace("<\\/", "</"))


def values(tensor):
    raw = base64.b64decode(tensor["data"])
    return torch.tensor(struct.unpack(f"<{len(raw) // 4}f", raw)).view(tensor["shape"])


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    norm = models.build("simple_cnn_bn")
    norm.train()(torch.randn(16, 1, 28, 28))  # running statistics of its own
    resnet = pyconv.fuse(models.build("resnet20").eval())
    return {"lenet": models.build("lenet5_relu"), "norm": norm, "resnet": resnet}


@pytest.mark.parametrize("name", ["lenet", "norm", "resnet"])
def test_the_explorer_has_what_the_model_computed(name, networks, tmp_path):
    model = networks[name].eval()
    image = torch.randn(3, 32, 32) if name == "resnet" else data.load("mnist").test.images[3]
    written = inspect.explorer(model, image, tmp_path / "out.html", labels=list("</script>!"))
    text = written.path.read_text()
    assert written.bytes == len(text.encode())
    assert not re.search(r"https?:|src=|@import|url\(", text)
    assert text.count("</script>") == 3
    found = content(text)
    assert torch.equal(values(found["tensors"][0]), image)
    with torch.no_grad():
        assert torch.equal(
            values(found["tensors"][found["layers"][-1]["y"]]), model(image[None])[0]
        )
    outputs = {layer["y"] for layer in found["layers"]} | {0}
    if name != "resnet":
        assert written.exact == written.layers
        assert all(layer["x"] in outputs for layer in found["layers"]), "who feeds whom"


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match=r"got \(2, 1, 28, 28\)"):
        inspect.explorer(models.LeNet5(), torch.randn(2, 1, 28, 28), tmp_path / "x.html")
    with pytest.raises(ValueError, match="more than 64"):
        inspect.explorer(torch.nn.Identity(), torch.zeros(1, 4200, 4200), tmp_path / "x.html")
    with pytest.raises(pyconv.ShapeError, match="one image"):
        inspect.animate_conv(torch.randn(2, 1, 5, 5), torch.randn(3, 3))
    with pytest.raises(ValueError, match="'min'"):
        inspect.animate_pool(torch.randn(5, 5), 2, "min")


BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
CLICKS = """<script>addEventListener("load", () => {
  const report = [];
  const note = () => report.push(document.querySelector("#result").textContent);
  %s
  const out = document.createElement("pre");
  out.id = "report";
  out.textContent = JSON.stringify(report);
  document.body.append(out);
});</script></body>"""


def in_browser(path, script, tmp_path):
    """What the page says of each output after the clicks of `script`, without a network."""
    page = tmp_path / "clicked.html"
    page.write_text(path.read_text().replace("</body>", CLICKS % script))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", page.as_uri()]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    shown = subprocess.run([*command, profile], capture_output=True, text=True, timeout=120).stdout
    return json.loads(re.search(r'<pre id="report">(.*?)</pre>', shown, re.S)[1])


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium")
def test_clicks_in_a_browser_reach_every_kind_of_layer(networks, tmp_path):
    script = """
  document.querySelectorAll(".layer").forEach((column, i) => {
    const maps = column.querySelectorAll("canvas");
    maps[maps.length - 1].click();
    const map = document.querySelector("#map"), box = map.getBoundingClientRect();
    map.dispatchEvent(new MouseEvent("click", { clientX: box.left + 2, clientY: box.bottom - 3 }));
    note();
  });"""
    for name in ("lenet", "norm"):
        model, image = networks[name].eval(), data.load("mnist").test.images[3]
        written = inspect.explorer(model, image, tmp_path / "out.html")
        said = in_browser(written.path, script, tmp_path)
        found = content(written.path.read_text())
        assert len(said) == len(found["layers"]) + 1
        for layer, text in zip(found["layers"], said[1:]):
            y = values(found["tensors"][layer["y"]])
            value = (y[-1, -1, 0] if y.dim() == 3 else y[-1]).item()
            assert "computed was" not in text, text
            shown = float(re.search(r"(?:=|:) (-?[\d.e-]+) *(?:✓.*|to .*)?$", text)[1])
            assert shown == pytest.approx(value, rel=2e-3, abs=1e-6), (layer["name"], text)


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium")
def test_pages_work_inside_another(networks, tmp_path):
    image = data.load("mnist").test.images[3]
    parts = [
        inspect.explorer(networks["lenet"].eval(), image, tmp_path / "out.html"),
        inspect.animate_pool(torch.arange(16.0).view(4, 4), 2),
    ]
    both = tmp_path / "both.html"
    both.write_text(
        f'<meta charset="utf-8"><body>{"".join(part._repr_html_() for part in parts)}</body>'
    )
    script = """
  document.querySelectorAll("iframe").forEach((frame) =>
    report.push(frame.contentDocument.querySelector("#result").textContent));"""
    explored, pooled = in_browser(both, script, tmp_path)
    assert re.match(r"output \(0, 14, 14\) = .* ✓ as computed$", explored)
    assert pooled == "output (0, 0, 0) = max 5 = 5 ✓ as computed"


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium")
def test_an_animation_in_a_browser_says_what_python_says(tmp_path):
    script = "for (let i = 0; i < steps; i++) { show(i); note(); }"
    x = torch.randint(-3, 4, (4, 5, 6)).float()
    w, b = torch.randint(-2, 3, (4, 2, 2, 3)).float(), torch.ones(4)
    pages = [
        inspect.animate_conv(x, w, b, stride=(2, 1), padding=1, dilation=(1, 2), groups=2),
        inspect.animate_pool(x, 3, "max", stride=2, padding=1, ceil_mode=True),
        inspect.animate_pool(x, 2, "avg", stride=2, ceil_mode=True),
    ]
    for page in pages:
        said = in_browser(page.save(tmp_path / "page.html"), script, tmp_path)
        shown = [float(re.search(r"= (-?[\d.e-]+) ✓ as computed$", text)[1]) for text in said]
        assert shown == pytest.approx(page.operation["y"].flatten().tolist(), rel=1e-3)
