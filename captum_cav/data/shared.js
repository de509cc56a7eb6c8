/* What the pages have in common. captum_cav/page.py puts this file into each page. */

const $ = (id) => document.getElementById(id);

/* Maps: whole numbers of 16 bits, low byte first, times a scale. */

function numbersOf(map) {
  if (!map.numbers) {
    const bytes = Uint8Array.from(atob(map.values), (character) => character.charCodeAt(0));
    map.numbers = Float32Array.from(new Int16Array(bytes.buffer), (whole) => whole * map.scale);
  }
  return map.numbers;
}

// The two neighbours of each pixel in a row of places, and the weight of the second.
function neighbours(places, pixels) {
  return Array.from({ length: pixels }, (_, pixel) => {
    const at = Math.min(Math.max(((pixel + 0.5) * places) / pixels - 0.5, 0), places - 1);
    const first = Math.floor(at);
    return [first, Math.min(first + 1, places - 1), at - first];
  });
}

// The map at the picture's size.
function interpolated(map, width, height) {
  const numbers = numbersOf(map);
  const across = neighbours(map.columns, width);
  const result = new Float32Array(width * height);
  neighbours(map.rows, height).forEach(([above, below, down], y) => {
    across.forEach(([left, right, along], x) => {
      const one = (row) => numbers[row + left] * (1 - along) + numbers[row + right] * along;
      result[y * width + x] = one(above * map.columns) * (1 - down) + one(below * map.columns) * down;
    });
  });
  return result;
}

// What the full colour stands for: exceeded by 1 % of what is there, so that one place does not dim all others.
function fullColour(numbers, signed) {
  const present = numbers.map((number) => (signed ? Math.abs(number) : number)).filter((number) => number > 0).sort();
  if (!present.length) return 0;
  const at = 0.99 * (present.length - 1);
  const below = present[Math.floor(at)];
  return below + (present[Math.ceil(at)] - below) * (at % 1);
}

/* Colours: red, green, blue and opacity at equal steps, from nothing to most, or from lowered to raised. */

const COLOURS = {{colours}};

function colour(strength, signed, pixels, at) {
  const ramp = signed ? COLOURS.signed : COLOURS.heat;
  const step = Math.min(Math.max(signed ? (strength + 1) / 2 : strength, 0), 1) * (ramp.length - 1);
  const low = ramp[Math.floor(step)];
  const high = ramp[Math.ceil(step)];
  for (let part = 0; part < 4; part++) pixels[at + part] = 255 * (low[part] + (high[part] - low[part]) * (step % 1));
}

function paint(canvas, width, height, strengths, signed) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  strengths.forEach((strength, index) => colour(strength, signed, image.data, 4 * index));
  context.putImageData(image, 0, 0);
}

const within = (index, count) => Math.min(Math.max(index, 0), count - 1);

/* Words */

// Two digits, with a true minus: 250, 12, 1.2, 0.012, 3e-7.
function short(number) {
  const size = Math.abs(number);
  let digits = String(Number(size.toPrecision(2)));
  if (size >= 10) digits = String(Math.round(size));
  if (size > 0 && size < 1e-6) digits = size.toExponential(0);
  return (number < 0 && digits !== "0" ? "−" : "") + digits;
}
const signedShort = (number) => (number > 0 ? "+" : "") + short(number);
const percent = (share) => `${signedShort(100 * share)}\u00a0%`;
const score = (number) => (Math.abs(number) < 1 ? short(number) : number.toFixed(2).replace("-", "−"));

function element(tag, text = "", attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

/* Buttons */

function drawButtons(parent, names, chosen, choose) {
  if (parent.children.length !== names.length) {
    parent.replaceChildren(...names.map(() => element("button", "", { type: "button" })));
  }
  names.forEach((content, index) => {
    const button = parent.children[index];
    button.replaceChildren(...[content].flat());
    button.setAttribute("aria-pressed", index === chosen);
    button.onclick = () => choose(index);
  });
}

/* Light and dark */

const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme ?? (prefersDark.matches ? "dark" : "light")) === "dark";
const nameTheme = () => ($("theme").textContent = isDark() ? "Light page" : "Dark page");
$("theme").addEventListener("click", () => {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  nameTheme();
});
prefersDark.addEventListener("change", nameTheme);
nameTheme();
