"use strict";
/* A series: what is known of it, and the chart that shows it. */

const KEPT = 2000; // points of a series that are kept

/** What is known of one target of a series. */
class Past {
  constructor() {
    this.count = 0;
    this.t = []; this.y = []; // what came
    this.made = []; // forecasts whose time has come: [t, point, lower, upper]
    this.fan = null; // the latest forecast: {ts, rows: point, lower, upper, lower, upper, ...}
  }

  /** Take in what was told, ``step`` seconds a step; whether anything is new. */
  take(told, step) {
    const known = this.count;
    this.count = told.count;
    if (!told.actual) return false;
    const { t, y, afresh } = told.actual;
    if (afresh) { // what was before is kept, as far as it is
      const from = this.t.findIndex((at) => at >= t[0]);
      if (from >= 0) { this.t.length = from; this.y.length = from; }
    } else if (told.count - known > t.length && t.length) { // more came than is kept: a gap
      this.t.push(t[0] - 1e-3); this.y.push(null);
    }
    this.t.push(...t); this.y.push(...y);
    this.t.splice(0, this.t.length - KEPT); this.y.splice(0, this.y.length - KEPT);
    if (told.fan) {
      this.#retire(told.ts, step || this.step());
      this.fan = { ts: told.ts, rows: told.fan };
    }
    return true;
  }

  /** Of the forecast at hand, keep what is past at ``now`` as made: it is what was said before. */
  #retire(now, step) {
    if (this.made.length && this.made.at(-1)[0] > now + step / 2) this.made = []; // time went back
    if (!this.fan || this.fan.ts >= now) return;
    const { ts, rows: [point, lower, upper] } = this.fan;
    for (let k = 0; k < point.length; k++) {
      const t = ts + (k + 1) * step;
      if (t > now + step / 2) break;
      this.made.push([t, point[k], lower ? lower[k] : null, upper ? upper[k] : null]);
    }
    this.made.splice(0, this.made.length - KEPT);
  }

  /** Seconds from a tick to the next, where the model does not say: the median of late. */
  step() {
    const late = this.t.slice(-30).map((t, i, all) => t - all[i - 1]).slice(1).sort((a, b) => a - b);
    return late[late.length >> 1] || 1;
  }

  /** Those that came outside of what had been said: [t, y]. */
  missed(from, step) {
    const found = [];
    let i = 0;
    for (const [t, , lower, upper] of this.made) {
      if (t < from || lower === null) continue;
      while (i < this.t.length && this.t[i] < t - step / 2) i++;
      if (i === this.t.length) break;
      if (Math.abs(this.t[i] - t) <= step / 2 && this.y[i] !== null && (this.y[i] < lower || this.y[i] > upper))
        found.push([this.t[i], this.y[i]]);
    }
    return found;
  }
}

const transposed = (rows, columns) => Array.from({ length: columns }, (_, k) => rows.map((row) => row[k]));

/** Times and values, with a null where ticks are missing on the grid: there, no line is drawn. */
function broken(t, y, step, usual) {
  const broken = [[], []];
  t.forEach((at, i) => {
    if (i && at - t[i - 1] > 1.5 * usual) { broken[0].push(t[i - 1] + step); broken[1].push(null); }
    broken[0].push(at); broken[1].push(y[i]);
  });
  return broken;
}

/** What a chart shows of it: columns in the order of its layers, joined over one axis of time. */
function columnsOf(past, back, step, intervals, regular) {
  const from = past.t[Math.max(0, past.t.length - back)] ?? past.fan?.ts ?? 0;
  const begin = past.t.findIndex((t) => t >= from);
  const usual = regular ? Math.max(step, past.step()) : Infinity; // of a series that ticks every other step, none is missing
  const actual = begin < 0 ? [[], []] : broken(past.t.slice(begin), past.y.slice(begin), step, usual);
  const made = transposed(past.made.filter(([t]) => t >= from), 4);
  const missed = transposed(past.missed(from, step), 2);
  const fan = Array.from({ length: 2 + 2 * intervals }, () => []);
  if (past.fan) {
    const { ts } = past.fan, rows = past.fan.rows.slice(0, 1 + 2 * intervals); // none: they are null
    const last = past.t.at(-1) === ts && past.y.at(-1) !== null ? past.y.at(-1) : null;
    fan[0] = [...(last === null ? [] : [ts]), ...rows[0].map((_, k) => ts + (k + 1) * step)];
    rows.forEach((row, r) => { fan[r + 1] = last === null ? row : [last, ...row]; });
  }
  const tables = [made, fan, actual, missed].filter((table) => table[0].length);
  if (!tables.length) return null;
  const joined = uPlot.join(tables, tables.map((table) => table.map(() => 1)));
  const empty = joined[0].map(() => undefined);
  let at = 1;
  const of = (table) => (table[0].length ? table.slice(1).map(() => joined[at++]) : table.slice(1).map(() => empty));
  const [[point, lower, upper], [ahead, ...ends], [came], [off]] = [of(made), of(fan), of(actual), of(missed)];
  return [joined[0], upper, lower, ...ends.flatMap((_, i) => (i % 2 ? [] : [ends[i + 1], ends[i]])), point, ahead, came, off];
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

function faded(hex, share) {
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  return `rgba(${r}, ${g}, ${b}, ${share})`;
}

/** Marks of an axis of time: the day at midnight, else the time of the day. */
function moment(times) {
  const apart = times[1] - times[0], format = (options) => new Intl.DateTimeFormat(undefined, options);
  const day = format({ month: "short", day: "numeric" }), month = format({ month: "short", year: "numeric" });
  const clock = format({ hour: "2-digit", minute: "2-digit", second: apart < 60 ? "2-digit" : undefined, hourCycle: "h23" });
  return (time) => {
    const date = new Date(1000 * time), midnight = !date.getHours() && !date.getMinutes() && !date.getSeconds();
    return (apart > 2_400_000 ? month : midnight ? day : clock).format(date);
  };
}

/** Numbers so fine that those that are ``apart`` differ. */
function numbersOf(apart) {
  const finest = Math.floor(Math.log10(apart) + 1e-9);
  if (!(finest >= -8 && finest <= 8)) {
    const digits = (x) => Math.max(0, Math.min(15, Math.floor(Math.log10(Math.abs(x))) - finest)) || 0;
    return (x) => (x ? x.toExponential(digits(x)).replace("e+", "e") : "0");
  }
  const digits = Math.max(0, -finest);
  return new Intl.NumberFormat(undefined, { minimumFractionDigits: digits, maximumFractionDigits: digits }).format;
}

/** The chart, in ``place``; ``read`` is told what stands under the cursor. */
class Chart {
  constructor(place, intervals, read) {
    this.place = place; this.intervals = intervals; this.read = read;
    this.plot = null; this.columns = null; this.now = null;
    this.held = null; // the time that keys chose to be read
    place.onpointermove = () => { this.held = null; };
    this.resized = new ResizeObserver(() => {
      if (this.plot) this.plot.setSize({ width: place.clientWidth, height: place.clientHeight });
    });
    this.resized.observe(place);
  }

  show(columns, now) {
    this.columns = columns; this.now = now;
    if (!columns) return;
    if (this.plot) this.plot.setData(columns);
    else this.#draw();
    if (this.held !== null) queueMicrotask(() => this.#point()); // once it is drawn
    this.told();
  }

  /** Draw anew, in the colours of now. */
  redraw() {
    this.plot?.destroy();
    this.plot = null;
    if (this.columns) this.#draw();
  }

  close() {
    this.resized.disconnect();
    this.plot?.destroy();
  }

  /** Move the cursor so many points on; 0: take it away. */
  move(by) {
    const { plot } = this;
    if (!plot) return;
    if (!by) { this.held = null; this.#point(); return; }
    const [t] = plot.data, [point, ahead, came] = plot.data.slice(-4);
    const there = (at) => [point, ahead, came].some((column) => (column[at] ?? null) !== null);
    let to = (plot.cursor.idx ?? came.findLastIndex((y) => (y ?? null) !== null) - by) + by;
    while (to > 0 && to < t.length - 1 && !there(to)) to += by;
    this.held = t[Math.max(0, Math.min(t.length - 1, to))];
    this.#point();
  }

  /** Put the cursor on the time that is held, if it is still shown. */
  #point() {
    const { plot } = this;
    if (!plot) return;
    if (this.held < plot.data[0][0]) this.held = null;
    plot.setCursor(this.held === null ? { left: -10, top: -10 } : { left: plot.valToPos(this.held, "x"), top: 0 });
  }

  /** Say what stands under the cursor, or at the end. */
  told() {
    const [t, upper, lower, ...rest] = this.plot.data;
    const ends = rest.slice(0, 2 * this.intervals), [point, ahead, came] = rest.slice(2 * this.intervals);
    const found = this.plot.cursor.idx, pick = (column, i) => column?.[i] ?? null;
    const y = this.plot.scales.y, format = numbersOf((y.max - y.min) / 100);
    const latest = [came, point].map((column) => t.findLastIndex((_, i) => pick(column, i) !== null));
    const at = found ?? latest.find((i) => i >= 0) ?? -1;
    const next = found === null ? t.findIndex((_, i) => t[i] > this.now && pick(ahead, i) !== null) : at;
    const past = pick(point, at) !== null;
    const said = found !== null && (past || t[at] <= this.now) ? [point, lower, upper] : [ahead, ends[1], ends[0]];
    this.read({
      at: found !== null, when: t[found === null ? at : found],
      actual: pick(came, at) === null ? null : format(came[at]),
      forecast: pick(said[0], next) === null ? null : format(said[0][next]),
      interval: pick(said[1], next) === null ? null : [format(said[1][next]), format(said[2][next])],
      missed: past && pick(lower, at) !== null && pick(came, at) !== null && (came[at] < lower[at] || came[at] > upper[at]),
    });
  }

  #draw() {
    const { place, intervals } = this, fan = 3 + 2 * intervals;
    const [actual, forecast, missed, grid, faint] = ["actual", "forecast", "missed", "grid", "faint"].map(colour);
    const font = `12px ${getComputedStyle(document.body).fontFamily}`;
    const none = { points: { show: false } };
    const layers = [
      {}, none, none, ...Array(2 * intervals).fill(none),
      { stroke: faded(forecast, 0.75), width: 1.25, ...none },
      { stroke: forecast, width: 2, ...none },
      { stroke: actual, width: 1.75, points: { show: (u) => u.data[fan + 2].filter(Number.isFinite).length < 2, size: 5, fill: actual } },
      { paths: () => null, points: { show: true, size: 6, width: 0, fill: missed, stroke: missed } },
    ];
    const share = Number(colour("band"));
    const bands = [{ series: [1, 2], fill: faded(forecast, Number(colour("band-made"))) }];
    for (let i = 0; i < intervals; i++) bands.push({ series: [3 + 2 * i, 4 + 2 * i], fill: faded(forecast, share) });
    this.plot = new uPlot({
      width: place.clientWidth, height: place.clientHeight, legend: { show: false }, series: layers, bands,
      padding: [8, 16, 0, 0],
      cursor: { drag: { x: false, y: false }, y: false, points: { size: 7, width: 0, fill: (u, i) => [actual, forecast][i === fan + 2 ? 0 : 1], show: (u, i) => (i < fan || i === fan + 3 ? false : undefined) } },
      scales: { y: { range: (u, low, high) => { const by = (high - low) * 0.07 || Math.abs(high) * 0.1 || 1; return [low - by, high + by]; } } },
      axes: [
        { stroke: faint, font, grid: { show: false }, ticks: { show: false }, gap: 6, size: 30, space: 72, values: (u, times) => times.map(moment(times)) },
        {
          stroke: faint, font, grid: { stroke: grid, width: 1 }, ticks: { show: false }, gap: 8, space: 38,
          values: (u, marks) => { return marks.map(numbersOf(marks[1] - marks[0] || 1)); },
          size: (u, texts) => 18 + 7 * Math.max(2, ...(texts ?? []).map((text) => text.length)),
        },
      ],
      hooks: {
        setCursor: [() => this.plot && this.told()],
        drawAxes: [(u) => {
          if (this.now === null) return;
          const x = Math.round(u.valToPos(this.now, "x", true));
          u.ctx.save();
          u.ctx.strokeStyle = faint; u.ctx.globalAlpha = 0.55; u.ctx.lineWidth = devicePixelRatio;
          u.ctx.setLineDash([2 * devicePixelRatio, 4 * devicePixelRatio]);
          u.ctx.beginPath(); u.ctx.moveTo(x, u.bbox.top); u.ctx.lineTo(x, u.bbox.top + u.bbox.height); u.ctx.stroke();
          u.ctx.restore();
        }],
      },
    }, this.columns, place);
  }
}
