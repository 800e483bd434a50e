// A page of the course whose cells run.  Every cell is a .live element: a textarea, buttons, and .out below.
// document.body.dataset.state: loading, ready, running or failed

const cells = [...document.querySelectorAll(".live")];
const bar = document.getElementById("bar");
const place = (i) => `numgemma ${location.pathname} ${i}`;
let worker, waiting;

function say(state, text) {
  document.body.dataset.state = state;
  document.getElementById("state").textContent = text;
}

// Python

function start() {
  worker?.terminate();
  say("loading", "Python is loaded …");
  waiting = new Map();
  worker = new Worker("worker.mjs", { type: "module" });
  worker.onerror = () => say("failed", "This page cannot run: its worker does not start; serve the site by HTTP.");
  worker.onmessage = ({ data }) => (data.state ? say(data.state, data.text) : waiting.get(data.id)(data.shown));
  for (const cell of cells) cell.classList.remove("done", "running");
}

function computed(id, source) {
  return new Promise((resolve) => {
    waiting.set(id, resolve);
    worker.postMessage({ id, source });
  });
}

// cells

async function run(some) {
  say("running", "Python is computing …");
  const mine = worker;
  for (const cell of some) {
    cell.classList.add("running");
    const shown = await computed(cells.indexOf(cell), cell.querySelector("textarea").value);
    if (mine !== worker) return; // started anew in the meantime
    cell.classList.remove("running");
    cell.classList.add("done");
    cell.querySelector(".out").replaceChildren(...shown.map(drawn));
    if (shown.some((one) => one.kind === "error") && cell.dataset.role !== "check") break;
  }
  say("ready", "Python is ready: Shift+Enter runs a cell.");
}

function drawn({ kind, data }) {
  const element = document.createElement({ png: "img", html: "div" }[kind] ?? "pre");
  element.className = kind;
  if (kind === "png") [element.src, element.alt] = [`data:image/png;base64,${data}`, "What the cell above draws"];
  else if (kind === "html") element.innerHTML = data; // as numgemma's results show themselves: every text in it escaped
  else element.textContent = data;
  return element;
}

function fit(area) {
  area.rows = area.value.split("\n").length;
}

function indented(event, area) {
  const line = area.value.slice(0, area.selectionStart).split("\n").pop();
  const spaces = line.match(/^ */)[0].length + (line.trimEnd().endsWith(":") ? 4 : 0);
  event.preventDefault();
  area.setRangeText(`\n${" ".repeat(spaces)}`, area.selectionStart, area.selectionEnd, "end");
  area.dispatchEvent(new Event("input"));
}

cells.forEach((cell, i) => {
  const area = cell.querySelector("textarea");
  area.value = localStorage.getItem(place(i)) ?? area.defaultValue;
  fit(area);
  area.addEventListener("input", () => {
    localStorage.setItem(place(i), area.value);
    fit(area);
  });
  area.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    if (!event.shiftKey) return indented(event, area);
    event.preventDefault();
    if (document.body.dataset.state === "ready") run([cell]);
  });
  cell.querySelector(".one").addEventListener("click", () => run([cell]));
  cell.querySelector(".upto").addEventListener("click", () => run(cells.slice(0, i + 1)));
});

bar.querySelector(".all").addEventListener("click", () => run(cells));
bar.querySelector(".anew").addEventListener("click", () => start());
bar.querySelector(".undo").addEventListener("click", () => {
  if (!confirm("Throw away all that you have written on this page?")) return;
  cells.forEach((cell, i) => {
    const area = cell.querySelector("textarea");
    localStorage.removeItem(place(i));
    area.value = area.defaultValue;
    fit(area);
  });
});

start();
