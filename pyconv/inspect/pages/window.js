// What one output is made of, and how numbers are drawn. Shared by both pages.
"use strict";

// {shape, data} in base64 to {shape, values: Float32Array}.
function decoded(tensor) {
  if (!tensor) return null;
  const bytes = Uint8Array.from(atob(tensor.data), (c) => c.charCodeAt(0));
  return { shape: tensor.shape, values: new Float32Array(bytes.buffer) };
}

// Element of a (C, H, W) tensor.
const at = (t, c, h, w) => t.values[(c * t.shape[1] + h) * t.shape[2] + w];

// First and past-the-last input of a window along an axis; adaptive windows are cut evenly.
function windowStart(op, axis, o) {
  if (op.kind === "adaptive_avg" || op.kind === "adaptive_max")
    return Math.floor((o * op.x.shape[1 + axis]) / op.y.shape[1 + axis]);
  return o * op.stride[axis] - op.padding[axis];
}
function windowTaps(op, axis, o) {
  if (op.kind === "adaptive_avg" || op.kind === "adaptive_max")
    return Math.ceil(((o + 1) * op.x.shape[1 + axis]) / op.y.shape[1 + axis]) - windowStart(op, axis, o);
  return op.kernel[axis];
}

function inputChannels(op, oc) {
  if (op.kind !== "conv") return [oc];
  const inside = op.w.shape[1], perGroup = op.w.shape[0] / op.groups, first = Math.floor(oc / perGroup) * inside;
  return Array.from({ length: inside }, (_, i) => first + i);
}

// The terms of output (oc, oh, ow) in the order in which they are summed, and what they come to.
function terms(op, oc, oh, ow) {
  const isMax = op.kind.endsWith("max"), list = [];
  let running = isMax ? -Infinity : 0, counted = 0, magnitude = 0;
  inputChannels(op, oc).forEach((c, number) => {
    for (let i = 0; i < windowTaps(op, 0, oh); i++) {
      for (let j = 0; j < windowTaps(op, 1, ow); j++) {
        const h = windowStart(op, 0, oh) + i * (op.dilation ? op.dilation[0] : 1);
        const w = windowStart(op, 1, ow) + j * (op.dilation ? op.dilation[1] : 1);
        const beyond = h < 0 || w < 0 || h >= op.x.shape[1] || w >= op.x.shape[2];
        const value = beyond ? 0 : at(op.x, c, h, w);
        let weight = 1;
        if (op.kind === "conv") {
          const s = op.w.shape;
          weight = op.w.values[((oc * s[1] + number) * s[2] + i) * s[3] + j];
        }
        if (!isMax) running += value * weight;
        else if (!beyond) running = Math.max(running, value);
        magnitude += Math.abs(value * weight);
        const inPadding = op.padding && h < op.x.shape[1] + op.padding[0] && w < op.x.shape[2] + op.padding[1];
        counted += beyond ? (op.count_include_pad && inPadding ? 1 : 0) : 1;
        list.push({ c, i, j, h, w, beyond, value, weight, product: value * weight, running });
      }
    }
  });
  let result = running, after = "";
  if (op.kind.endsWith("avg")) {
    const divisor = op.divisor || counted;
    result = running / divisor;
    after = ` / ${divisor}`;
  }
  if (op.kind === "conv" && op.b) {
    const bias = op.b.values[oc];
    result += bias;
    magnitude += Math.abs(bias);
    after = ` ${signed(bias)} bias`;
  }
  if (op.relu) {
    result = Math.max(result, 0);
    after += ", below 0: 0";
  }
  if (op.ceiling) {
    result = Math.min(result, op.ceiling);
    after += `, at most ${op.ceiling}`;
  }
  return { list, result, after, magnitude };
}

// --- numbers as text

function number(value, digits = 4) {
  if (!Number.isFinite(value)) return String(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return String(value);
  return Math.abs(value) >= 1e4 || Math.abs(value) < 1e-3 ? value.toExponential(digits - 2) : value.toPrecision(digits);
}
const signed = (value) => (value < 0 ? "− " + number(-value) : "+ " + number(value));

// --- drawing

function element(tag, attributes = {}, ...children) {
  const e = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) e.addEventListener(key.slice(2), value);
    else if (key === "class") e.className = value;
    else e.setAttribute(key, value);
  }
  e.append(...children);
  return e;
}

// Grey from 0 to the largest if nothing is negative, else blue above zero and red below.
function palette(values) {
  let low = Infinity, high = -Infinity;
  for (const v of values) if (Number.isFinite(v)) (low = Math.min(low, v)), (high = Math.max(high, v));
  if (!(low <= high)) low = high = 0;
  if (low >= 0) {
    const span = high || 1;
    return (v) => { const g = Math.round(255 * Math.min(Math.max(v / span, 0), 1)); return [g, g, g]; };
  }
  const limit = Math.max(-low, high);
  return (v) => {
    const t = Math.min(Math.abs(v) / limit, 1), fade = Math.round(255 - 190 * t);
    return v >= 0 ? [fade, Math.round(255 - 120 * t), 255] : [255, fade, fade];
  };
}

// A grid of H x W cells. get(i, j) is a value, or null for a cell of padding; color(value) is its [r, g, b].
function drawGrid(canvas, H, W, get, color, { cell = 1, text = false, marks = [] } = {}) {
  canvas.width = W * cell + (cell > 3 ? 1 : 0);
  canvas.height = H * cell + (cell > 3 ? 1 : 0);
  const g = canvas.getContext("2d");
  g.font = `${Math.max(8, Math.min(13, cell / 3.4))}px "DejaVu Sans Mono", monospace`;
  g.textAlign = "center";
  g.textBaseline = "middle";
  for (let i = 0; i < H; i++) {
    for (let j = 0; j < W; j++) {
      const value = get(i, j), beyond = value === null || value === undefined;
      const rgb = beyond ? [240, 242, 245] : color(value);
      g.fillStyle = `rgb(${rgb})`;
      g.fillRect(j * cell, i * cell, cell, cell);
      if (cell >= 12) {
        g.strokeStyle = "#d9dee5";
        g.setLineDash(beyond ? [2, 2] : []);
        g.strokeRect(j * cell + 0.5, i * cell + 0.5, cell, cell);
      }
      if (text && !beyond && value !== "") {
        g.fillStyle = rgb[0] + rgb[1] + rgb[2] > 420 ? "#1c2430" : "white";
        g.fillText(number(value, 3), (j + 0.5) * cell, (i + 0.5) * cell, cell - 3);
      }
    }
  }
  g.setLineDash([]);
  g.lineWidth = Math.max(2, Math.min(3, cell / 6));
  g.strokeStyle = "#e8710a";
  for (const [i, j, h, w] of marks) g.strokeRect(j * cell + 1, i * cell + 1, w * cell - 2, h * cell - 2);
  return canvas;
}

// Which cell of a grid a mouse event is in.
function cellOf(event, cell) {
  const box = event.currentTarget.getBoundingClientRect();
  return [Math.floor((event.clientY - box.top) / cell), Math.floor((event.clientX - box.left) / cell)];
}

// Window, weights and products of each input channel as three small grids, and the running sum as a table.
function explained(op, oc, oh, ow) {
  const { list, result, after, magnitude } = terms(op, oc, oh, ow), isMax = op.kind.endsWith("max");
  const stored = at(op.y, oc, oh, ow), agrees = Math.abs(stored - result) <= 1e-5 * magnitude + 1e-6;
  const total = list.length ? list[list.length - 1].running : 0;
  const result_line = element("div", { class: "result", id: "result" });
  result_line.innerHTML =
    `output (${oc}, ${oh}, ${ow}) = ${isMax ? "max" : "sum"} ${number(total)}${after} = <b>${number(result)}</b>` +
    ` <small>${agrees ? "✓ as computed" : `computed was ${number(stored)}`}</small>`;
  const grids = element("div", { class: "row" });
  const H = windowTaps(op, 0, oh), W = windowTaps(op, 1, ow), cell = Math.max(24, Math.min(46, Math.floor(170 / W)));
  const weighted = op.kind === "conv";
  const colors = ["value", "weight", "product"].map((key) => palette(list.map((t) => t[key])));
  const channels = [...new Set(list.map((t) => t.c))];
  for (const c of channels.slice(0, 64)) {
    const own = list.filter((t) => t.c === c), sum = own.reduce((s, t) => s + t.product, 0);
    const parts = weighted ? [["value", "×"], ["weight", "="], ["product", ""]] : [["value", ""]];
    const line = element("div", { class: "row", style: "gap:8px;align-items:center;flex-wrap:nowrap" });
    parts.forEach(([key, sign], which) => {
      const get = (i, j) => { const t = own[i * W + j]; return t.beyond && key !== "weight" ? null : t[key]; };
      const best = isMax ? own.findIndex((t) => !t.beyond && t.value === result) : -1;
      const marks = best >= 0 ? [[Math.floor(best / W), best % W, 1, 1]] : [];
      line.append(drawGrid(element("canvas"), H, W, get, colors[which], { cell, text: true, marks }), sign);
    });
    const caption = weighted ? `channel ${c}: products sum to ${number(sum)}` : `channel ${c}`;
    grids.append(element("figure", {}, element("figcaption", {}, caption), line));
  }
  if (channels.length > 64) grids.append(`and ${channels.length - 64} channels more`);
  const head = weighted ? ["c", "kh", "kw", "pixel", "value", "weight", "product", "running sum"]
    : ["c", "kh", "kw", "pixel", "value", isMax ? "running max" : "running sum"];
  const table = element("table", { class: "sums" }, element("tr", {}, ...head.map((h) => element("th", {}, h))));
  for (const t of list.slice(0, 2000)) {
    const where = t.beyond ? "padding" : `${t.h}, ${t.w}`;
    const cells = weighted ? [t.c, t.i, t.j, where, number(t.value), number(t.weight), number(t.product), number(t.running)]
      : [t.c, t.i, t.j, where, t.beyond ? "" : number(t.value), number(t.running)];
    table.append(element("tr", { class: t.beyond ? "beyond" : "" }, ...cells.map((x) => element("td", {}, String(x)))));
  }
  return element("div", {}, result_line, grids, element("div", { class: "scroll" }, table));
}
