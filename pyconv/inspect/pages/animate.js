// A window that slides: play, step, drag, or point at an output.
"use strict";

const op = { ...DATA.operation };
for (const key of ["x", "w", "b", "y"]) op[key] = decoded(op[key]);
const [OC, OH, OW] = op.y.shape, [C, IH, IW] = op.x.shape, [PH, PW] = op.padding;
const steps = OC * OH * OW;
const main = document.querySelector("main");

const play = element("button", { onclick: () => toggle() }, "play");
const slider = element("input", { type: "range", min: 0, max: steps - 1, value: 0, oninput: () => show(+slider.value) });
const label = element("span", { class: "soft" });
const pictures = element("div", { class: "row pick" });
const detail = element("div", { class: "panel" });
main.append(
  element("h1", {}, DATA.title),
  element("div", { class: "controls" }, play,
    element("button", { onclick: () => show(current - 1) }, "‹"),
    element("button", { onclick: () => show(current + 1) }, "›"), slider, label),
  element("div", { class: "panel" }, pictures), detail);

// Rows and columns that some window covers: ceil_mode may reach beyond the padding.
const reach = (axis, size, pad) =>
  Math.max(size + 2 * pad, (op.y.shape[1 + axis] - 1) * op.stride[axis] + op.dilation[axis] * (op.kernel[axis] - 1) + 1);
const ROWS = reach(0, IH, PH), COLUMNS = reach(1, IW, PW);
const cellIn = Math.max(4, Math.min(44, Math.floor(460 / Math.max(ROWS, COLUMNS))));
const cellOut = Math.max(4, Math.min(44, Math.floor(380 / Math.max(OH, OW))));
const colorIn = palette(op.x.values), colorOut = palette(op.y.values);

let current = 0, timer = null;
function toggle() {
  if (timer) clearInterval(timer), (timer = null);
  else timer = setInterval(() => show(current + 1 < steps ? current + 1 : 0), 700);
  play.textContent = timer ? "pause" : "play";
}

function show(step) {
  current = Math.min(Math.max(step, 0), steps - 1);
  slider.value = current;
  const oc = Math.floor(current / (OH * OW)), oh = Math.floor(current / OW) % OH, ow = current % OW;
  label.textContent = `step ${current + 1} of ${steps}`;
  pictures.replaceChildren();
  const [DH, DW] = op.dilation, top = oh * op.stride[0], left = ow * op.stride[1];
  for (const c of inputChannels(op, oc).slice(0, 4)) {
    const marks = [];
    if (DH === 1 && DW === 1) marks.push([top, left, op.kernel[0], op.kernel[1]]);
    else for (let i = 0; i < op.kernel[0]; i++)
      for (let j = 0; j < op.kernel[1]; j++) marks.push([top + i * DH, left + j * DW, 1, 1]);
    const get = (i, j) => (i < PH || j < PW || i >= IH + PH || j >= IW + PW ? null : at(op.x, c, i - PH, j - PW));
    const canvas = drawGrid(element("canvas"), ROWS, COLUMNS, get, colorIn, { cell: cellIn, text: cellIn >= 24, marks });
    pictures.append(element("figure", {}, element("figcaption", {}, `input, channel ${c}` + (PH + PW ? ", padding dashed" : "")), canvas));
  }
  const get = (i, j) => ((oc * OH + i) * OW + j <= current ? at(op.y, oc, i, j) : null);
  const canvas = drawGrid(element("canvas"), OH, OW, get, colorOut, { cell: cellOut, text: cellOut >= 24, marks: [[oh, ow, 1, 1]] });
  canvas.addEventListener("click", (event) => {
    const [i, j] = cellOf(event, cellOut);
    show((oc * OH + i) * OW + j);
  });
  pictures.append(element("figure", {}, element("figcaption", {}, `output, channel ${oc}; click one`), canvas));
  detail.replaceChildren(explained(op, oc, oh, ow));
}

addEventListener("keydown", (event) => {
  if (event.key === "ArrowRight") show(current + 1);
  if (event.key === "ArrowLeft") show(current - 1);
  if (event.key === " ") toggle(), event.preventDefault();
});
show(parseInt(location.hash.slice(1), 10) || 0);
