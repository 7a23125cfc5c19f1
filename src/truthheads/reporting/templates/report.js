"use strict";
// One chosen head for the whole page: every figure marks it, and says its value.

const DATA = JSON.parse(document.getElementById("data").textContent);
const figures = [];
let chosen = null;

function idOf(at) { return `L${at.layer}H${at.head}`; }

function groupScale(panel, view) {
  const alike = DATA.maps.filter(one => one.group === panel.group).flatMap(one => one.views).filter(one => one.unit === view.unit && one.name === view.name);
  const key = `${panel.group}\n${view.unit}\n${view.name}`;
  groupScale.known ??= new Map();
  if (!groupScale.known.has(key)) groupScale.known.set(key, scaleOf(view.middle, alike.flatMap(one => DATA.arrays[one.values])));
  return groupScale.known.get(key);
}

function wordsOf(panel, view, at) {
  const [layers, heads] = panel.shape;
  if (at.layer >= layers || at.head >= heads) return `${idOf(at)}: no such head here`;
  const values = DATA.arrays[view.values], place = at.layer * heads + at.head, value = values[place];
  if (value === null) return `${idOf(at)}: not measured`;
  const low = view.low === undefined ? null : DATA.arrays[view.low][place], high = view.high === undefined ? null : DATA.arrays[view.high][place];
  const known = values.filter(other => other !== null), rank = 1 + known.filter(other => other > value).length;
  const interval = low === null ? "" : ` [${text(low)}, ${text(high)}]`;
  return `${idOf(at)}: ${text(value)}${interval} ${view.unit}, ${rank}. of ${known.length}`;
}

const KINDS = {
  map: {
    of: at => DATA.maps[at], options: panel => panel.views.map(view => view.name),
    draw: (panel, pick, room, colours) => drawMap(panel, panel.views[pick], groupScale(panel, panel.views[pick]), room, colours),
    words: (panel, pick, at) => wordsOf(panel, panel.views[pick], at),
    csv: panel => {
      const [layers, heads] = panel.shape, columns = panel.views.flatMap(view => [[view.name, view.values], ...(view.low === undefined ? [] : [[view.name + " low", view.low], [view.name + " high", view.high]])]);
      const rows = [["layer", "head", ...columns.map(column => column[0])]];
      for (let at = 0; at < layers * heads; at++) rows.push([Math.floor(at / heads), at % heads, ...columns.map(column => DATA.arrays[column[1]][at])]);
      return rows;
    },
  },
  scatter: {
    of: () => DATA.scatters, options: pairs => pairs.map(pair => `${pair.a} – ${pair.b}`),
    draw: (pairs, pick, room, colours) => drawScatter(pairs[pick], room, colours),
    words: (pairs, pick, at) => {
      const pair = pairs[pick], [layers, heads] = pair.shape, place = at.layer * heads + at.head;
      if (at.layer >= layers || at.head >= heads) return `${idOf(at)}: no such head here`;
      return `${idOf(at)}: ${text(DATA.arrays[pair.x][place])} in ${pair.a}, ${text(DATA.arrays[pair.y][place])} in ${pair.b}`;
    },
    note: (pairs, pick) => pairs[pick].words,
    csv: (pairs, pick) => {
      const pair = pairs[pick], heads = pair.shape[1], xs = DATA.arrays[pair.x], ys = DATA.arrays[pair.y];
      return [["layer", "head", pair.a, pair.b], ...xs.map((x, at) => [Math.floor(at / heads), at % heads, x, ys[at]])];
    },
  },
  matrix: {
    of: at => DATA.matrices[at], options: () => [], draw: (one, pick, room, colours) => drawMatrix(one, room, colours),
    csv: one => [["a", "b", "r within layers", "verdict"], ...one.cells.map(cell => [one.names[cell.a], one.names[cell.b], cell.value, cell.verdict])],
  },
  bars: {
    of: at => DATA.bars[at], options: () => [], draw: (one, pick, room, colours) => drawBars(one, room, colours),
    csv: one => [["name", one.unit, "low", "high", one.mark || "mark"], ...one.rows.map(row => [row.name, row.value, row.low, row.high, row.mark])],
  },
  path: {
    of: at => DATA.paths[at], options: () => [], draw: (one, pick, room, colours) => drawPath(one, room, colours),
    csv: one => [["candidate", "state", "harm", "harm low", "harm high", "margin gained", "gain low", "gain high"], ...one.points.map(p => [p.name, p.state, p.x.value, p.x.low, p.x.high, p.y.value, p.y.low, p.y.high])],
  },
};

class Figure {
  constructor(element) {
    this.element = element; this.kind = KINDS[element.dataset.kind]; this.item = this.kind.of(+element.dataset.at); this.pick = 0;
    this.plot = element.querySelector(".plot"); this.canvas = element.querySelector("canvas"); this.mark = element.querySelector(".mark");
    this.reading = element.querySelector(".reading"); this.title = element.querySelector("figcaption .name").textContent;
    const options = this.kind.options(this.item), select = element.querySelector("select");
    if (select && options.length > 1) {
      options.forEach((name, at) => select.add(new Option(name, at)));
      select.hidden = false;
      select.addEventListener("change", () => { this.pick = +select.value; this.draw(); });
    }
    this.canvas.addEventListener("pointermove", event => this.point(event));
    this.canvas.addEventListener("pointerleave", hideTip);
    this.canvas.addEventListener("click", event => { const at = this.at(event); this.point(event); if (at && at.layer !== undefined) choose(at); });
    if (this.kind.words) this.canvas.addEventListener("keydown", event => this.key(event));
    for (const button of element.querySelectorAll("button[data-save]")) button.addEventListener("click", () => this.save(button.dataset.save));
  }
  draw() {
    this.room = this.plot.clientWidth;
    this.sheet = this.kind.draw(this.item, this.pick, this.room, theme());
    this.sheet.paint(this.canvas, Math.max(2, window.devicePixelRatio || 1));
    const note = this.kind.note && this.element.querySelector(".words");
    if (note) note.textContent = this.kind.note(this.item, this.pick);
    this.show();
  }
  at(event) { const edge = this.canvas.getBoundingClientRect(); return this.sheet.find(event.clientX - edge.left, event.clientY - edge.top); }
  point(event) {
    const at = this.at(event);
    if (!at) return hideTip();
    showTip(at.words || this.kind.words(this.item, this.pick, at), event.clientX, event.clientY);
  }
  show() {
    if (!this.kind.words) return;
    const spot = chosen && this.sheet.place(chosen.layer, chosen.head);
    this.mark.hidden = !spot;
    if (spot) Object.assign(this.mark.style, { left: spot.x - 2 + "px", top: spot.y - 2 + "px", width: spot.w + 4 + "px", height: spot.h + 4 + "px" });
    this.reading.textContent = chosen ? this.kind.words(this.item, this.pick, chosen) : "Point at a head for its value; click to mark it everywhere.";
  }
  key(event) {
    const [layers, heads] = this.item.shape || this.item[this.pick].shape;
    const now = chosen || { layer: 0, head: 0 }, moves = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }, move = moves[event.key];
    if (event.key === "Escape") choose(null);
    else if (move) choose(chosen ? { layer: Math.min(Math.max(now.layer + move[0], 0), layers - 1), head: Math.min(Math.max(now.head + move[1], 0), heads - 1) } : now);
    else if (event.key === "Home" && this.item.views) choose(this.best());
    else return;
    event.preventDefault();
  }
  best() {
    const values = DATA.arrays[this.item.views[this.pick].values], heads = this.item.shape[1];
    let best = null;
    values.forEach((value, at) => { if (value !== null && (best === null || value > values[best])) best = at; });
    return best === null ? null : { layer: Math.floor(best / heads), head: best % heads };
  }
  save(kind) {
    const name = this.title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").toLowerCase() || "figure";
    if (kind === "csv") return download(`${name}.csv`, new Blob([csv(this.kind.csv(this.item, this.pick))], { type: "text/csv" }));
    const paper = getComputedStyle(document.body).backgroundColor;
    if (kind === "svg") return download(`${name}.svg`, new Blob([this.sheet.svg(this.title, paper)], { type: "image/svg+xml" }));
    const copy = document.createElement("canvas"), pen = copy.getContext("2d");
    copy.width = this.canvas.width; copy.height = this.canvas.height;
    pen.fillStyle = paper; pen.fillRect(0, 0, copy.width, copy.height); pen.drawImage(this.canvas, 0, 0);
    return copy.toBlob(blob => download(`${name}.png`, blob), "image/png");
  }
}

function csv(rows) {
  const cell = value => {
    if (value === null || value === undefined) return "";
    if (typeof value === "number") return String(value);
    const formula = /^\s*[=+@-]/.test(value) && !/^-?\d+(\.\d+)?$/.test(value);
    const safe = formula ? "'" + value : value; // a spreadsheet would run it as a formula
    return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  return rows.map(row => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

function download(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob); link.download = name;
  document.body.append(link); link.click(); link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const tip = document.getElementById("tip");
function hideTip() { tip.hidden = true; }
function showTip(words, x, y) {
  tip.textContent = words; tip.hidden = false;
  const edge = tip.getBoundingClientRect();
  tip.style.left = Math.max(4, Math.min(x + 14, innerWidth - edge.width - 6)) + "px";
  tip.style.top = (y + edge.height + 24 > innerHeight ? y - edge.height - 10 : y + 16) + "px";
}

const field = document.getElementById("head"), said = document.getElementById("said"), everywhere = document.getElementById("everywhere");
function choose(at) {
  chosen = at;
  figures.forEach(figure => figure.show());
  for (const one of document.querySelectorAll("[data-head]")) one.classList.toggle("chosen", at !== null && one.dataset.head === idOf(at));
  field.value = at ? idOf(at) : "";
  const first = figures.find(figure => figure.item.views);
  said.textContent = at ? (first ? `${first.title} ${first.reading.textContent}` : idOf(at)) : "no head is chosen";
  everywhere.replaceChildren(...(at ? figures.filter(figure => figure.item.views).map(figure => {
    const row = document.createElement("li");
    row.textContent = `${figure.item.group}, ${figure.title}: ${figure.reading.textContent.replace(/^L\d+H\d+: /, "")}`;
    return row;
  }) : []));
  if (parsed(location.hash) || at) history.replaceState(null, "", at ? "#" + idOf(at) : "#");
}
function parsed(words) { const match = /^\s*#?L?(\d+)\s*[H.,\s]\s*(\d+)\s*$/i.exec(words); return match ? { layer: +match[1], head: +match[2] } : null; }
field.addEventListener("change", () => choose(parsed(field.value)));
document.getElementById("clear").addEventListener("click", () => choose(null));
document.addEventListener("click", event => { const button = event.target.closest("button[data-choose]"); if (button) choose(parsed(button.dataset.choose)); });

for (const button of document.querySelectorAll("button[data-table]")) button.addEventListener("click", () => {
  const rows = [...document.getElementById(button.dataset.table).rows].map(row => [...row.cells].map(cell => cell.textContent.trim()));
  download(`${button.dataset.table}.csv`, new Blob([csv(rows)], { type: "text/csv" }));
});

const modes = ["auto", "light", "dark"], toggle = document.getElementById("theme");
function redraw() { figures.forEach(figure => figure.draw()); }
toggle.addEventListener("click", () => {
  const next = modes[(modes.indexOf(document.documentElement.dataset.theme) + 1) % 3];
  document.documentElement.dataset.theme = next; toggle.textContent = `Theme: ${next}`; redraw();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
addEventListener("resize", () => { clearTimeout(redraw.waiting); redraw.waiting = setTimeout(() => figures.filter(figure => figure.room !== figure.plot.clientWidth).forEach(figure => figure.draw()), 120); });
addEventListener("beforeprint", () => { redraw.before = document.documentElement.dataset.theme; document.documentElement.dataset.theme = "light"; document.querySelectorAll("details").forEach(one => { one.open = true; }); redraw(); });
addEventListener("afterprint", () => { document.documentElement.dataset.theme = redraw.before; redraw(); });

for (const element of document.querySelectorAll("figure.chart")) figures.push(new Figure(element));
redraw();
choose(parsed(decodeURIComponent(location.hash)));
