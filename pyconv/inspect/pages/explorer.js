// From the network to a layer to a feature map to one output.
"use strict";

const tensors = DATA.tensors.map(decoded);
const image = (t) => (t.shape.length === 3 ? t : { shape: [t.shape.reduce((a, b) => a * b, 1), 1, 1], values: t.values });
const layers = DATA.layers.map((layer, index) => {
  const op = { ...layer.op };
  for (const key of ["w", "b", "mean", "var"]) op[key] = op[key] == null ? null : tensors[op[key]];
  const x = layer.x == null ? null : tensors[layer.x], y = layer.y == null ? null : tensors[layer.y];
  op.x = op.source != null ? tensors[op.source] : x && image(x);
  op.y = y && image(y);
  return { ...layer, index, op };
});
const input = { index: -1, name: "image", kind: "input", text: "", y: 0, op: { kind: "input", y: image(tensors[0]) } };
const producer = new Map([[0, input]]);
for (const layer of layers) producer.set(layer.y, layer); // of a tensor
const byIndex = (index) => (index < 0 ? input : layers[index]);

const main = document.querySelector("main"), net = element("div", { class: "net" });
const maps = element("div", { class: "panel row pick", id: "maps" }), unit = element("div", { class: "panel", id: "unit" });
main.append(element("h1", {}, DATA.title), element("div", { class: "panel" },
  element("h2", {}, "network ", element("small", {}, "click a feature map, then one of its pixels")), net), maps, unit);

let state = { layer: 0, c: 0, h: 0, w: 0 };

function thumbnail(layer, c) {
  const y = layer.op.y, [, H, W] = y.shape, single = H * W === 1;
  const color = layer.color || (layer.color = palette(y.values));
  const cell = single ? 11 : Math.max(1, Math.floor(38 / Math.max(H, W)));
  const canvas = drawGrid(element("canvas", { title: `${layer.name}, ${c}` }), H, W, (i, j) => at(y, c, i, j), color, { cell });
  if (!single && cell === 1) canvas.style.width = "38px";
  canvas.addEventListener("click", () => go({ layer: layer.index, c, h: Math.floor(H / 2), w: Math.floor(W / 2) }));
  return canvas;
}

for (const layer of [input, ...layers]) {
  if (!layer.op.y) continue;
  const shape = tensors[layer.y].shape.join("×"), box = element("div", { class: "maps" });
  for (let c = 0; c < Math.min(layer.op.y.shape[0], 512); c++) box.append(thumbnail(layer, c));
  layer.column = element("div", { class: "layer", title: layer.text }, element("b", {}, layer.name),
    element("small", {}, layer.kind), element("small", {}, shape), box);
  net.append(layer.column);
}

function go(next) {
  state = next;
  const hash = `#${state.layer},${state.c},${state.h},${state.w}`;
  // A page inside another, about:srcdoc, has no address of its own to change.
  if (location.protocol !== "about:" && location.hash !== hash) history.replaceState(null, "", hash);
  show();
}

// The marks on input channel c for the output in hand, and a picture of that channel to click through.
function inputPicture(layer, c, marks, size) {
  const x = layer.op.x, [, H, W] = x.shape, [PH, PW] = layer.op.padding || [0, 0];
  const rows = H + 2 * PH, columns = W + 2 * PW, cell = Math.max(2, Math.min(26, Math.floor(size / Math.max(rows, columns))));
  const get = (i, j) => (i < PH || j < PW || i >= H + PH || j >= W + PW ? null : at(x, c, i - PH, j - PW));
  const canvas = drawGrid(element("canvas"), rows, columns, get, palette(x.values), { cell, text: cell >= 24,
    marks: marks.map(([h, w, a, b]) => [h + PH, w + PW, a, b]) });
  const source = producer.get(layer.x), through = source && layer.op.source == null;
  if (through) canvas.addEventListener("click", (event) => {
    const [i, j] = cellOf(event, cell), h = i - PH, w = j - PW;
    if (h >= 0 && w >= 0 && h < H && w < W) go({ layer: source.index, c, h, w });
  });
  const from = source ? `${source.name}, ${c}` : `input, ${c}`;
  return element("figure", {}, element("figcaption", {}, `${from} ${through ? "(click to go there)" : ""}`), canvas);
}

function windowMarks(op, oh, ow) {
  const top = windowStart(op, 0, oh), left = windowStart(op, 1, ow), [DH, DW] = op.dilation || [1, 1];
  const H = windowTaps(op, 0, oh), W = windowTaps(op, 1, ow), marks = [];
  if (DH === 1 && DW === 1) return [[top, left, H, W]];
  for (let i = 0; i < H; i++) for (let j = 0; j < W; j++) marks.push([top + i * DH, left + j * DW, 1, 1]);
  return marks;
}

function show() {
  const layer = byIndex(state.layer), { op } = layer, { c, h, w } = state, [, H, W] = op.y.shape;
  for (const other of [input, ...layers]) {
    if (!other.column) continue;
    other.column.classList.toggle("chosen", other === layer);
    [...other.column.lastChild.children].forEach((canvas, i) => canvas.classList.toggle("chosen", other === layer && i === c));
  }
  maps.replaceChildren();
  const windowed = op.kernel || op.kind.startsWith("adaptive");
  const seen = windowed ? inputChannels(op, c) : [], size = seen.length > 2 ? 150 : 300;
  for (const ic of seen.slice(0, 12)) maps.append(inputPicture(layer, ic, windowMarks(op, h, w), size));
  if (seen.length > 12) maps.append(`and ${seen.length - 12} channels more →`);
  else if ((op.kind === "value" || op.kind === "norm") && op.x.shape[1] * op.x.shape[2] > 1) maps.append(inputPicture(layer, c, [[h, w, 1, 1]], 300));
  const single = H * W === 1;
  const cell = single ? 60 : Math.max(2, Math.min(26, Math.floor(300 / Math.max(H, W))));
  const canvas = drawGrid(element("canvas", { id: "map" }), H, W, (i, j) => at(op.y, c, i, j), layer.color, { cell, text: cell >= 24, marks: [[h, w, 1, 1]] });
  canvas.addEventListener("click", (event) => {
    const [i, j] = cellOf(event, cell);
    go({ ...state, h: Math.min(i, H - 1), w: Math.min(j, W - 1) });
  });
  const named = layer === layers[layers.length - 1] && DATA.labels[c] ? ` (${DATA.labels[c]})` : "";
  maps.append(element("figure", {}, element("figcaption", {}, `${layer.name}, ${single ? "unit" : "feature map"} ${c}${named}` + (single ? "" : "; click a pixel")), canvas));
  unit.replaceChildren(element("h2", {}, layer.text || "the image"), told(layer, c, h, w));
}

function line(layer, text, value, result, magnitude) {
  const agrees = Math.abs(value - result) <= 1e-5 * magnitude + 1e-6;
  const e = element("div", { class: "result", id: "result" });
  e.innerHTML = `${text} = <b>${number(result)}</b> <small>${agrees ? "✓ as computed" : `computed was ${number(value)}`}</small>`;
  return e;
}

function told(layer, c, h, w) {
  const { op } = layer, value = at(op.y, c, h, w), where = `output (${c}, ${h}, ${w})`;
  if (op.kernel || op.kind.startsWith("adaptive")) return explained(op, c, h, w);
  if (op.kind === "linear") return linear(layer, c, value);
  if (op.kind === "norm") {
    const [m, v, g, b] = [op.mean, op.var, op.w, op.b].map((t) => t.values[c]), x = at(op.x, c, h, w);
    const result = ((x - m) / Math.sqrt(v + op.eps)) * g + b;
    const text = `${where} = (${number(x)} ${signed(-m)}) / √(${number(v)} + ${op.eps}) × ${number(g)} ${signed(b)}`;
    return line(layer, text, value, result, Math.abs(x) + Math.abs(m) + Math.abs(b) + Math.abs(result));
  }
  if (op.kind === "value") return element("div", { class: "result", id: "result" }, `${where}: ${layer.kind}(${number(at(op.x, c, h, w))}) = ${number(value)}`);
  if (op.kind === "flatten") {
    const [, H, W] = op.x.shape, from = [Math.floor(c / (H * W)), Math.floor(c / W) % H, c % W], source = producer.get(layer.x);
    const e = element("div", { class: "result", id: "result" }, `output ${c} is pixel (${from.slice(1)}) of channel ${from[0]}: ${number(value)} `);
    if (source) e.append(element("button", { onclick: () => go({ layer: source.index, c: from[0], h: from[1], w: from[2] }) }, `to ${source.name}`));
    return e;
  }
  if (op.kind === "input") return element("div", { class: "result", id: "result" }, `pixel (${h}, ${w}) of channel ${c}: ${number(value)}`);
  return element("div", { class: "result", id: "result" }, `${where} = ${number(value)}; what this layer does is not taken apart here`);
}

function linear(layer, c, value) {
  const { op } = layer, inputs = op.w.shape[1], list = [];
  let sum = 0, magnitude = 0;
  for (let i = 0; i < inputs; i++) {
    const x = op.x.values[i], weight = op.w.values[c * inputs + i], product = x * weight;
    list.push([i, x, weight, product]);
    sum += product;
    magnitude += Math.abs(product);
  }
  const bias = op.b ? op.b.values[c] : 0, e = element("div");
  e.append(line(layer, `output ${c} = sum ${number(sum)}${op.b ? ` ${signed(bias)} bias` : ""}`, value, sum + bias, magnitude + Math.abs(bias)));
  list.sort((a, b) => Math.abs(b[3]) - Math.abs(a[3]));
  const table = element("table", { class: "sums" }, element("tr", {}, ...["input", "value", "weight", "product", "running sum"].map((t) => element("th", {}, t))));
  let running = 0;
  const source = producer.get(layer.x);
  for (const [i, x, weight, product] of list.slice(0, 500)) {
    running += product;
    const row = element("tr", {}, ...[i, number(x), number(weight), number(product), number(running)].map((t) => element("td", {}, String(t))));
    if (source && source.op.y.shape[1] * source.op.y.shape[2] === 1) {
      row.style.cursor = "pointer";
      row.addEventListener("click", () => go({ layer: source.index, c: i, h: 0, w: 0 }));
    }
    table.append(row);
  }
  e.append(element("div", { class: "soft" }, "largest products first"), element("div", { class: "scroll" }, table));
  return e;
}

const [l, c, h, w] = location.hash.slice(1).split(",").map((t) => parseInt(t, 10));
if (Number.isInteger(w) && byIndex(l)) go({ layer: l, c, h, w });
else {
  const first = layers.find((layer) => layer.op.kernel) || layers[0], [, H, W] = first.op.y.shape;
  go({ layer: first.index, c: 0, h: Math.floor(H / 2), w: Math.floor(W / 2) });
}
