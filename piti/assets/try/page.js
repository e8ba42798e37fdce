"use strict";
// The condition is one byte a pixel: a label, or 255 where a sketch has a line. The canvas shows it pixel by pixel.
const element = (id) => document.getElementById(id);
const canvas = element("canvas"), context = canvas.getContext("2d");
let facts, values, paint = 0, before = [], last = null, shown = -1;

const colorOf = (value) => facts.modality === "sketch"
  ? (value === 255 ? [0, 0, 0] : [255, 255, 255])
  : (facts.classes[value] || { color: [0, 0, 0] }).color;

function show() {
  const picture = context.createImageData(facts.size, facts.size);
  values.forEach((value, index) => picture.data.set([...colorOf(value), 255], 4 * index));
  context.putImageData(picture, 0, 0);
}

function remember() {
  before.push(values.slice());
  if (before.length > 50) before.shift();
}

function dab([x, y]) {
  const radius = element("brush").value / 2;
  for (let row = Math.floor(y - radius); row <= y + radius; row++)
    for (let column = Math.floor(x - radius); column <= x + radius; column++)
      if (row >= 0 && column >= 0 && row < facts.size && column < facts.size
          && (column + 0.5 - x) ** 2 + (row + 0.5 - y) ** 2 <= Math.max(radius, 0.71) ** 2)
        values[row * facts.size + column] = paint;
}

function stroke(from, to) {
  const steps = Math.max(1, Math.ceil(2 * Math.hypot(to[0] - from[0], to[1] - from[1])));
  for (let step = 0; step <= steps; step++)
    dab([from[0] + (to[0] - from[0]) * step / steps, from[1] + (to[1] - from[1]) * step / steps]);
}

function fill([x, y]) {
  const start = Math.floor(y) * facts.size + Math.floor(x), old = values[start], waiting = [start];
  if (old === paint) return;
  while (waiting.length) {
    const place = waiting.pop();
    if (values[place] !== old) continue;
    values[place] = paint;
    const column = place % facts.size;
    if (column > 0) waiting.push(place - 1);
    if (column < facts.size - 1) waiting.push(place + 1);
    if (place >= facts.size) waiting.push(place - facts.size);
    if (place < facts.size * (facts.size - 1)) waiting.push(place + facts.size);
  }
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]
    .map((share) => Math.min(Math.max(share, 0), 0.999999) * facts.size);
}

function choose(value, name) {
  paint = value;
  element("chosen").textContent = `the brush paints: ${name}`;
  for (const button of element("palette").children) button.setAttribute("aria-pressed", String(button.title === name));
}

function say(text, wrong = false) {
  element("status").textContent = text;
  element("status").className = wrong ? "wrong" : "";
}

async function ask(path, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const answer = await fetch(path, options);
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.error);
  return told;
}

async function draw() {
  element("draw").disabled = true;
  say("drawing");
  try {
    const number = (id) => Number(element(id).value);
    const told = await ask("draw", {
      values: btoa(String.fromCharCode(...values)), samples: number("samples"), guidance: number("guidance"),
      seed: number("seed"), sampler: element("sampler").value, steps: number("steps"),
    });
    element("pictures").replaceChildren(...told.pictures.map((url, index) => {
      const picture = new Image();
      picture.src = url;
      picture.alt = `sample ${index + 1} of ${told.pictures.length}`;
      return picture;
    }));
    say(`${told.pictures.length} pictures in ${told.seconds} s`);
  } catch (error) {
    say(error.message, true);
  }
  element("draw").disabled = false;
}

async function example() {
  try {
    shown = (shown + 1) % facts.examples;
    const told = await ask(`examples/${shown}`);
    remember();
    values = Uint8Array.from(atob(told.values), (letter) => letter.charCodeAt(0));
    element("photograph").src = told.truth;
    element("truth").hidden = false;
    show();
  } catch (error) {
    say(error.message, true);
  }
}

function blank() {
  values = new Uint8Array(facts.size ** 2).fill(facts.modality === "sketch" ? 0 : paint);
}

canvas.addEventListener("pointerdown", (event) => {
  remember();
  canvas.setPointerCapture(event.pointerId);
  const here = place(event);
  if (element("fill").getAttribute("aria-pressed") === "true") fill(here);
  else { last = here; stroke(here, here); }
  show();
});
canvas.addEventListener("pointermove", (event) => {
  if (!last) return;
  const here = place(event);
  stroke(last, here);
  last = here;
  show();
});
for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { last = null; });
element("fill").addEventListener("click", () => {
  const button = element("fill");
  button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
});
element("undo").addEventListener("click", () => { if (before.length) { values = before.pop(); show(); } });
element("clear").addEventListener("click", () => { remember(); blank(); element("truth").hidden = true; show(); });
element("draw").addEventListener("click", draw);
element("example").addEventListener("click", example);

ask("about").then((told) => {
  facts = told;
  canvas.width = canvas.height = facts.size;
  const brushes = facts.modality === "sketch"
    ? [[255, "line", [0, 0, 0]], [0, "eraser", [255, 255, 255]]]
    : facts.order.map((label) => [label, facts.classes[label].name, facts.classes[label].color]);
  element("palette").replaceChildren(...brushes.map(([value, name, color]) => {
    const button = document.createElement("button");
    button.title = name;
    button.setAttribute("aria-label", name);
    button.style.backgroundColor = `rgb(${color})`;
    button.addEventListener("click", () => choose(value, name));
    return button;
  }));
  choose(brushes[0][0], brushes[0][1]);
  element("title").textContent = facts.modality === "sketch" ? "Sketch" : "Label map";
  element("about").textContent = `${facts.name}, ${facts.size}x${facts.size} pixels`;
  if (facts.modality === "sketch") element("brush").value = 1;
  for (const id of ["guidance", "sampler", "steps"]) element(id).value = facts[id];
  element("example").hidden = facts.examples === 0;
  blank();
  show();
}).catch((error) => say(error.message, true));
