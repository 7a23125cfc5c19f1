"use strict";
// Drawings are lists of shapes: put on a canvas for the screen, written as SVG for a file.

const VIRIDIS = ["#440154", "#482475", "#414487", "#355f8d", "#2a788e", "#21918c", "#22a884", "#44bf70", "#7ad151", "#bddf26", "#fde725"];
const BLUE_ORANGE = ["#053061", "#2166ac", "#4393c3", "#92c5de", "#d1e5f0", "#f7f7f7", "#fde0c5", "#fdb366", "#f08125", "#c75400", "#7f2704"];
const FONT = "system-ui, 'DejaVu Sans', sans-serif";
const STATES = { chosen: "#d55e00", within: "#0072b2", beyond: "#8c8c8c" };

function channel(hex, at) { return parseInt(hex.slice(1 + 2 * at, 3 + 2 * at), 16); }

function shade(stops, share) {
  const place = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(place), stops.length - 2), part = place - low;
  const mixed = [0, 1, 2].map(at => Math.round(channel(stops[low], at) * (1 - part) + channel(stops[low + 1], at) * part));
  return `rgb(${mixed.join(",")})`;
}

function onto(colour) {
  const [r, g, b] = colour.match(/\d+/g).map(Number);
  return 0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#111" : "#fff";
}

function theme() {
  const style = getComputedStyle(document.documentElement);
  return Object.fromEntries(["ink", "soft", "line", "void", "accent"].map(name => [name, style.getPropertyValue("--" + name).trim()]));
}

function text(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  const shown = value.toFixed(size > 0 && size < 0.01 ? Math.max(digits, 4) : digits);
  return shown.replace("-", "\u2212");
}

function ticks(low, high, count) {
  const rough = (high - low) / Math.max(count, 1) || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(part => part * power).find(part => part >= rough * 0.999);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at++) found.push(at * step);
  return { found, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
}

function cut(words, width, size) {
  const most = Math.max(3, Math.floor(width / (size * 0.56)));
  return words.length <= most ? words : words.slice(0, most - 1) + "…";
}

class Drawing {
  constructor(width, height) { this.width = width; this.height = height; this.shapes = []; }
  rect(x, y, w, h, fill, stroke = null) { this.shapes.push({ kind: "rect", x, y, w, h, fill, stroke }); }
  circle(x, y, r, fill) { this.shapes.push({ kind: "circle", x, y, r, fill }); }
  line(x, y, x2, y2, stroke, width = 1, dash = null) { this.shapes.push({ kind: "line", x, y, x2, y2, stroke, width, dash }); }
  write(x, y, words, { fill, anchor = "start", size = 11, weight = "normal", turn = 0 }) {
    this.shapes.push({ kind: "text", x, y, words: String(words), fill, anchor, size, weight, turn });
  }

  paint(canvas, scale) {
    canvas.width = Math.round(this.width * scale); canvas.height = Math.round(this.height * scale);
    canvas.style.width = this.width + "px"; canvas.style.height = this.height + "px";
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    for (const one of this.shapes) {
      if (one.kind === "rect") {
        if (one.fill) { pen.fillStyle = one.fill; pen.fillRect(one.x, one.y, one.w, one.h); }
        if (one.stroke) { pen.strokeStyle = one.stroke; pen.lineWidth = 1; pen.strokeRect(one.x, one.y, one.w, one.h); }
      } else if (one.kind === "circle") {
        pen.fillStyle = one.fill; pen.beginPath(); pen.arc(one.x, one.y, one.r, 0, 2 * Math.PI); pen.fill();
      } else if (one.kind === "line") {
        pen.strokeStyle = one.stroke; pen.lineWidth = one.width; pen.setLineDash(one.dash || []);
        pen.beginPath(); pen.moveTo(one.x, one.y); pen.lineTo(one.x2, one.y2); pen.stroke(); pen.setLineDash([]);
      } else {
        pen.save(); pen.translate(one.x, one.y); pen.rotate(one.turn * Math.PI / 180);
        pen.fillStyle = one.fill; pen.font = `${one.weight} ${one.size}px ${FONT}`;
        pen.textAlign = { start: "left", middle: "center", end: "right" }[one.anchor];
        pen.fillText(one.words, 0, 0); pen.restore();
      }
    }
  }

  svg(title, paper) {
    const safe = words => String(words).replace(/[&<>"]/g, sign => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[sign]);
    const n = value => +value.toFixed(2);
    const drawn = this.shapes.map(one => {
      if (one.kind === "rect") return `<rect x="${n(one.x)}" y="${n(one.y)}" width="${n(one.w)}" height="${n(one.h)}" fill="${one.fill || "none"}"${one.stroke ? ` stroke="${one.stroke}"` : ""}/>`;
      if (one.kind === "circle") return `<circle cx="${n(one.x)}" cy="${n(one.y)}" r="${one.r}" fill="${one.fill}"/>`;
      if (one.kind === "line") return `<line x1="${n(one.x)}" y1="${n(one.y)}" x2="${n(one.x2)}" y2="${n(one.y2)}" stroke="${one.stroke}" stroke-width="${one.width}"${one.dash ? ` stroke-dasharray="${one.dash.join(" ")}"` : ""}/>`;
      const turn = one.turn ? ` transform="rotate(${one.turn} ${n(one.x)} ${n(one.y)})"` : "";
      return `<text x="${n(one.x)}" y="${n(one.y)}" text-anchor="${one.anchor}" font-size="${one.size}" font-weight="${one.weight}" fill="${one.fill}"${turn}>${safe(one.words)}</text>`;
    });
    return `<svg xmlns="http://www.w3.org/2000/svg" width="${this.width}" height="${this.height}" viewBox="0 0 ${this.width} ${this.height}" font-family="system-ui, sans-serif"><title>${safe(title)}</title><rect width="100%" height="100%" fill="${paper}"/>${drawn.join("\n")}</svg>\n`;
  }
}

function scaleOf(middle, values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) if (value !== null) { low = Math.min(low, value); high = Math.max(high, value); }
  if (low > high) { low = 0; high = 1; }
  if (middle !== null) { const reach = Math.max(Math.abs(low - middle), Math.abs(high - middle), 1e-9); low = middle - reach; high = middle + reach; }
  const stops = middle === null ? VIRIDIS : BLUE_ORANGE, width = high - low || 1;
  return { low, high, middle, colour: value => shade(stops, (value - low) / width) };
}

function drawMap(panel, view, scale, room, colours) {
  const [layers, heads] = panel.shape, values = DATA.arrays[view.values];
  const left = 40, top = 6, wide = Math.max(3, Math.min(34, (room - left - 8) / heads));
  const high = Math.max(3, Math.min(16, 460 / layers)), foot = top + layers * high;
  const sheet = new Drawing(Math.max(190, Math.ceil(left + heads * wide + 8)), Math.ceil(foot + 74));
  for (let layer = 0; layer < layers; layer++) for (let head = 0; head < heads; head++) {
    const value = values[layer * heads + head];
    sheet.rect(left + head * wide, top + (layers - 1 - layer) * high, wide + 0.3, high + 0.3, value === null ? colours.void : scale.colour(value));
  }
  const every = (count, size, least) => [1, 2, 4, 5, 8, 10, 16, 20, 32].find(step => step * size >= least) || count;
  for (let head = 0; head < heads; head += every(heads, wide, 20)) sheet.write(left + (head + 0.5) * wide, foot + 13, head, { fill: colours.soft, anchor: "middle", size: 10 });
  for (let layer = 0; layer < layers; layer += every(layers, high, 13)) sheet.write(left - 5, top + (layers - layer - 0.5) * high + 3.5, layer, { fill: colours.soft, anchor: "end", size: 10 });
  sheet.write(left, foot + 28, "head", { fill: colours.soft });
  sheet.write(11, top + layers * high / 2, "layer", { fill: colours.soft, anchor: "middle", turn: -90 });
  const bar = Math.min(150, sheet.width - left - 12), parts = 50;
  for (let at = 0; at < parts; at++) sheet.rect(left + at * bar / parts, foot + 38, bar / parts + 0.4, 9, scale.colour(scale.low + (at + 0.5) / parts * (scale.high - scale.low)));
  sheet.write(left, foot + 60, text(scale.low, 2), { fill: colours.soft, size: 10 });
  if (scale.middle !== null) sheet.write(left + bar / 2, foot + 60, text(scale.middle, 1), { fill: colours.soft, size: 10, anchor: "middle" });
  sheet.write(left + bar, foot + 60, text(scale.high, 2), { fill: colours.soft, size: 10, anchor: "end" });
  sheet.place = (layer, head) => layer < layers && head < heads ? { x: left + head * wide, y: top + (layers - 1 - layer) * high, w: wide, h: high } : null;
  sheet.find = (x, y) => {
    const head = Math.floor((x - left) / wide), layer = layers - 1 - Math.floor((y - top) / high);
    return head >= 0 && head < heads && layer >= 0 && layer < layers ? { layer, head } : null;
  };
  return sheet;
}

function axes(sheet, box, xs, ys, names, colours) {
  const spot = { x: value => box.x + (value - xs[0]) / (xs[1] - xs[0] || 1) * box.w, y: value => box.y + box.h - (value - ys[0]) / (ys[1] - ys[0] || 1) * box.h };
  sheet.line(box.x, box.y + box.h, box.x + box.w, box.y + box.h, colours.line);
  if (names.y) sheet.line(box.x, box.y, box.x, box.y + box.h, colours.line);
  if (!names.log) {
    const across = ticks(xs[0], xs[1], Math.max(4, Math.min(8, box.w / 60)));
    for (const value of across.found) {
      sheet.line(spot.x(value), box.y, spot.x(value), box.y + box.h, colours.line, 0.5);
      sheet.write(spot.x(value), box.y + box.h + 14, text(value, across.digits), { fill: colours.soft, anchor: "middle", size: 10 });
    }
  }
  sheet.write(box.x + box.w, box.y + box.h + 30, cut(names.x, box.w + box.x - 8, 11), { fill: colours.soft, anchor: "end" });
  if (names.y) {
    const up = ticks(ys[0], ys[1], 5);
    for (const value of up.found) {
      sheet.line(box.x, spot.y(value), box.x + box.w, spot.y(value), colours.line, 0.5);
      sheet.write(box.x - 6, spot.y(value) + 3.5, text(value, up.digits), { fill: colours.soft, anchor: "end", size: 10 });
    }
    sheet.write(12, box.y + box.h / 2, cut(names.y, box.h, 11), { fill: colours.soft, anchor: "middle", turn: -90 });
  }
  return spot;
}

function nearest(spots, x, y, reach = 14) {
  let best = null, least = reach * reach;
  for (const spot of spots) {
    const far = (spot.x - x) ** 2 + (spot.y - y) ** 2;
    if (far < least) { least = far; best = spot; }
  }
  return best;
}

function drawScatter(pair, room, colours) {
  const size = Math.min(room, 520), box = { x: 56, y: 10, w: size - 76, h: Math.min(size - 76, 400) };
  const sheet = new Drawing(size, box.h + 52), [layers, heads] = pair.shape;
  const xs = DATA.arrays[pair.x], ys = DATA.arrays[pair.y];
  const known = xs.map((x, at) => at).filter(at => xs[at] !== null && ys[at] !== null);
  const span = list => { const all = known.map(at => list[at]); const a = all.reduce((m, v) => Math.min(m, v), Infinity), b = all.reduce((m, v) => Math.max(m, v), -Infinity), pad = (b - a) * 0.04 || 0.01; return [a - pad, b + pad]; };
  const across = span(xs), up = span(ys);
  const spot = axes(sheet, box, across, up, { x: `${pair.unit}, ${pair.a}`, y: `${pair.unit}, ${pair.b}` }, colours);
  const from = Math.max(across[0], up[0]), to = Math.min(across[1], up[1]);
  if (from < to) sheet.line(spot.x(from), spot.y(from), spot.x(to), spot.y(to), colours.soft, 1, [5, 4]);
  const dot = known.length > 1500 ? 2 : 3.2;
  const spots = known.map(at => ({ x: spot.x(xs[at]), y: spot.y(ys[at]), layer: Math.floor(at / heads), head: at % heads }));
  for (const one of spots) sheet.circle(one.x, one.y, dot, shade(VIRIDIS, layers > 1 ? one.layer / (layers - 1) : 0.5));
  sheet.find = (x, y) => nearest(spots, x, y);
  sheet.place = (layer, head) => { const one = spots.find(s => s.layer === layer && s.head === head); return one ? { x: one.x - 5, y: one.y - 5, w: 10, h: 10 } : null; };
  return sheet;
}

function drawMatrix(matrix, room, colours) {
  const count = matrix.names.length, label = Math.min(170, room * 0.34), cell = Math.max(34, Math.min(92, (room - label - 6) / count));
  const tall = Math.min(cell, 56), top = 22, sheet = new Drawing(Math.ceil(label + count * cell + 4), Math.ceil(top + count * tall + 6));
  matrix.names.forEach((name, at) => {
    sheet.write(label - 8, top + (at + 0.5) * tall + 4, cut(`${at + 1} ${name}`, label - 10, 11), { fill: colours.ink, anchor: "end" });
    sheet.write(label + (at + 0.5) * cell, 14, at + 1, { fill: colours.ink, anchor: "middle" });
    sheet.rect(label + at * cell + 1, top + at * tall + 1, cell - 2, tall - 2, colours.void);
  });
  const scale = scaleOf(0, [-1, 1]), spots = [];
  for (const one of matrix.cells) for (const [a, b] of [[one.a, one.b], [one.b, one.a]]) {
    const x = label + a * cell + 1, y = top + b * tall + 1, fill = scale.colour(one.value);
    sheet.rect(x, y, cell - 2, tall - 2, fill);
    sheet.write(x + cell / 2 - 1, y + tall / 2 + (cell > 66 ? -1 : 4), text(one.value, 2), { fill: onto(fill), anchor: "middle", size: 12, weight: "bold" });
    if (cell > 66) sheet.write(x + cell / 2 - 1, y + tall / 2 + 13, one.verdict, { fill: onto(fill), anchor: "middle", size: 10 });
    spots.push({ x, y, w: cell - 2, h: tall - 2, words: one.words });
  }
  sheet.find = (x, y) => spots.find(s => x >= s.x && x <= s.x + s.w && y >= s.y && y <= s.y + s.h) || null;
  return sheet;
}

function drawBars(bars, room, colours) {
  const size = Math.min(room, 760), label = Math.min(230, size * 0.4), step = 20, top = 6;
  const box = { x: label, y: top, w: size - label - 16, h: bars.rows.length * step + 4 }, sheet = new Drawing(size, box.h + 50);
  const all = bars.rows.flatMap(row => [row.value, row.low, row.high, row.mark]).filter(value => value !== null).concat([0]);
  const low = Math.min(...all), high = Math.max(...all), pad = (high - low) * 0.05 || 0.01;
  const spot = axes(sheet, box, [low - pad, high + pad], [0, 1], { x: bars.unit }, colours), spots = [];
  sheet.line(spot.x(0), box.y, spot.x(0), box.y + box.h, colours.ink, 1, [3, 3]);
  bars.rows.forEach((row, at) => {
    const y = box.y + (at + 0.6) * step, fill = row.quiet ? colours.soft : colours.accent;
    sheet.write(label - 8, y + 4, cut(row.name, label - 12, 11), { fill: row.quiet ? colours.soft : colours.ink, anchor: "end" });
    if (row.low !== null) sheet.line(spot.x(row.low), y, spot.x(row.high), y, fill, row.quiet ? 1.5 : 3);
    if (row.value !== null) sheet.circle(spot.x(row.value), y, row.quiet ? 3 : 4.5, fill);
    if (row.mark !== null) sheet.line(spot.x(row.mark), y - 7, spot.x(row.mark), y + 7, colours.ink, 2);
    spots.push({ y: y - step / 2, words: row.words });
  });
  sheet.find = (x, y) => spots.find(s => y >= s.y && y < s.y + step) || null;
  return sheet;
}

function drawPath(path, room, colours) {
  const size = Math.min(room, 600), box = { x: 56, y: 10, w: size - 76, h: 280 }, sheet = new Drawing(size, box.h + 70);
  const log = value => Math.log10(Math.max(value, 1e-5));
  const xs = path.points.flatMap(p => [p.x.low, p.x.high, p.x.value].filter(v => v !== null).map(log)).concat([log(path.guard)]);
  const ys = path.points.flatMap(p => [p.y.low, p.y.high, p.y.value].filter(v => v !== null)).concat([0]);
  const pad = (Math.max(...ys) - Math.min(...ys)) * 0.06 || 0.1;
  const across = [Math.min(...xs) - 0.1, Math.max(...xs) + 0.1];
  const spot = axes(sheet, box, across, [Math.min(...ys) - pad, Math.max(...ys) + pad], { x: "harm: KL on neutral text (nats a token)", y: "margin gained (nats)", log: true }, colours);
  for (let power = Math.floor(across[0]); power <= across[1]; power++) for (const part of [1, 2, 5]) {
    const at = power + Math.log10(part), shown = part === 1 || across[1] - across[0] < 1.5;
    if (at < across[0] || at > across[1] || !shown) continue;
    sheet.line(spot.x(at), box.y, spot.x(at), box.y + box.h, colours.line, 0.5);
    sheet.write(spot.x(at), box.y + box.h + 14, String(+(10 ** at).toPrecision(1)), { fill: colours.soft, anchor: "middle", size: 10 });
  }
  sheet.line(spot.x(log(path.guard)), box.y, spot.x(log(path.guard)), box.y + box.h, colours.ink, 1.5, [5, 4]);
  sheet.write(spot.x(log(path.guard)) - 5, box.y + 12, "guard", { fill: colours.ink, anchor: "end" });
  const spots = path.points.map(point => {
    const x = spot.x(log(point.x.value)), y = spot.y(point.y.value), fill = STATES[point.state];
    if (point.x.low !== null) sheet.line(spot.x(log(point.x.low)), y, spot.x(log(point.x.high)), y, fill);
    if (point.y.low !== null) sheet.line(x, spot.y(point.y.low), x, spot.y(point.y.high), fill);
    sheet.circle(x, y, point.state === "chosen" ? 6 : 4.5, fill);
    return { x, y, words: point.words };
  });
  Object.entries({ chosen: "chosen", within: "within the guard", beyond: "beyond the guard" }).forEach(([state, words], at) => {
    const x = 8 + at * Math.min(130, (size - 16) / 3);
    sheet.circle(x + 4, box.y + box.h + 48, 4, STATES[state]);
    sheet.write(x + 12, box.y + box.h + 52, words, { fill: colours.soft, size: 10 });
  });
  sheet.find = (x, y) => nearest(spots, x, y);
  return sheet;
}
