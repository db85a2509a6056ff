"use strict";
/* Asks the daemon each second for what is shown, and shows it. Names of series are text, never markup. */

const EVERY = 1000; // milliseconds from one answer to the next question
const SELDOM = 8000; // the same, at most, where no answer comes
const PATIENCE = 5000; // milliseconds that an answer may take
const LATELY = 10, WHILE = 300; // seconds over which latencies, and scores, are told
const ENOUGH = 100; // forecasts whose tick came, to be told of the last minutes alone
const SURE = 500; // forecasts whose tick came, until an interval that covers too little is marked
const LONGEST = 6000; // characters of a question
const SKETCHED = 60; // points of a sparkline
const STORED = "streamlstm.made";

const find = (id) => document.getElementById(id);
const reduced = matchMedia("(prefers-reduced-motion: reduce)");
const dark = matchMedia("(prefers-color-scheme: dark)");
const whole = new Intl.NumberFormat();

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/* --- what is drawn small ---------------------------------------------------------------------- */

function spark(values) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = svg.appendChild(document.createElementNS(svg.namespaceURI, "path"));
  svg.setAttribute("class", "spark"); svg.setAttribute("viewBox", "0 0 100 20");
  svg.setAttribute("preserveAspectRatio", "none"); svg.setAttribute("aria-hidden", "true");
  trace(path, values);
  return svg;
}

function trace(path, values) {
  const known = values.filter(Number.isFinite), low = Math.min(...known), span = Math.max(...known) - low;
  let line = "", pen = "M";
  const level = span ? (value) => 19 - (18 * (value - low)) / span : () => 10;
  values.forEach((value, i) => {
    if (!Number.isFinite(value)) { pen = "M"; return; }
    line += `${pen}${((100 * i) / Math.max(1, values.length - 1)).toFixed(1)} ${level(value).toFixed(1)}`;
    pen = "L";
  });
  path.setAttribute("d", known.length > 1 ? line : "");
}

/* --- vital signs ------------------------------------------------------------------------------ */

const samples = []; // what was told lately, the latest last
const sketches = { rate: [], p50: [], p99: [] };
for (const name of Object.keys(sketches)) find(name).parentElement.append(spark([]));

/** The oldest sample of the last so many seconds. */
function before(seconds) {
  const { clock } = samples.at(-1);
  return samples.find((sample) => sample.clock >= clock - seconds);
}

/** A quantile of counts by bucket, as Prometheus' histogram_quantile has it. */
function quantile(counts, bounds, share) {
  const all = counts.reduce((a, b) => a + b, 0);
  let below = 0;
  for (let i = 0; all > 0 && i < counts.length; i++) {
    if (counts[i] && below + counts[i] >= share * all) {
      if (i === bounds.length) return bounds[i - 1];
      const from = i ? bounds[i - 1] : 0;
      return from + ((bounds[i] - from) * (share * all - below)) / counts[i];
    }
    below += counts[i];
  }
  return NaN;
}

function unit(name, value, of) {
  find(name).replaceChildren(value, ...(of ? [element("small", { textContent: of })] : []));
}

function showDuration(name, seconds) {
  if (!Number.isFinite(seconds)) unit(name, "–");
  else if (seconds < 1e-3) unit(name, (1e6 * seconds).toFixed(0), "µs");
  else if (seconds < 1) unit(name, (1e3 * seconds).toPrecision(3), "ms");
  else unit(name, seconds.toPrecision(3), "s");
}

const short = (value) => (value >= 1e5 ? new Intl.NumberFormat(undefined, { notation: "compact", maximumSignificantDigits: 3 }).format(value) : value >= 100 ? whole.format(Math.round(value)) : value.toFixed(value < 10 && !Number.isInteger(value) ? 1 : 0));
const percent = (value) => (Number.isFinite(value) ? `${(100 * value).toFixed(1)} %` : "–");
const ratio = (value) => (!Number.isFinite(value) ? "–" : value < 100 ? value.toFixed(3) : short(value));
const rated = (value) => (value < 1 ? "good" : value > 1 ? "bad" : "");
const plural = (count, one) => `${whole.format(count)} ${one}${count === 1 ? "" : "s"}`;

function showVitals(told) {
  const last = samples.at(-1);
  if (last && (told.counts.ticks_received < last.counts.ticks_received || told.clock < last.clock || told.scores.length !== last.scores.length)) samples.length = 0;
  const { clock, counts, latency, scores } = told;
  samples.push({ clock, counts, latency, scores });
  while (samples[0].clock < told.clock - WHILE) samples.shift();
  const step = samples.at(-2) ?? told, then = before(LATELY);
  const seconds = told.clock - then.clock;
  const rate = seconds ? (counts.ticks_received - then.counts.ticks_received) / seconds : NaN;
  const now = told.clock > step.clock ? (counts.ticks_received - step.counts.ticks_received) / (told.clock - step.clock) : NaN;
  const lately = latency.map((count, i) => count - then.latency[i]);
  const [p50, p99] = [0.5, 0.99].map((share) => quantile(lately, about.bounds, share));
  unit("rate", Number.isFinite(rate) ? short(rate) : "–");
  find("ticks").textContent = `${short(counts.ticks_received)} in all${told.dropped ? `, ${short(told.dropped)} dropped` : ""}`;
  showDuration("p50", p50); showDuration("p99", p99);
  unit("active", whole.format(counts.active_series));
  const beside = [[told.evicted, "closed"], [counts.anomalies, "anomalous"], [counts.series_quarantined, "quarantined"]];
  find("churn").textContent = beside.filter(([count]) => count).map(([count, what]) => `${short(count)} ${what}`).join(", ") || "none closed";
  for (const [name, value] of Object.entries({ rate: now, p50, p99 })) {
    sketches[name].push(value);
    sketches[name].splice(0, sketches[name].length - SKETCHED);
    trace(find(name).parentElement.querySelector("path"), sketches[name]);
  }
  showScores(told);
}

/* --- how good the forecasts are, over all series ---------------------------------------------- */

function showScores(told) {
  const then = before(WHILE), scored = (rows) => rows.reduce((sum, row) => sum + row[0], 0);
  const lately = told.scores.map((row, k) => row.map((value, i) => value - then.scores[k][i]));
  const enough = scored(lately) >= ENOUGH, rows = enough ? lately : told.scores;
  const sum = rows.reduce((all, row) => all.map((value, i) => value + (row[i] ?? NaN)), [0, 0, 0, 0, 0]);
  const minutes = Math.round((told.clock - then.clock) / 60), main = about.coverages[0];
  const when = enough ? (minutes > 1 ? `of the last ${minutes} min` : "of the last minute") : "since the start";
  const over = sum[2] / sum[3];
  unit("error", ratio(over));
  find("error-of").textContent = !sum[0] ? "no forecast's tick came yet" : Number.isFinite(over) ? `${over < 1 ? "better" : "no better"}, ${when}` : "not compared";
  unit("covered", percent(sum[1] / sum[0]).replace(" %", ""), sum[0] ? "%" : "");
  find("covered-of").textContent = main ? `${percent(main).replace(".0", "")} is meant` : "no intervals";
  find("scores").replaceChildren(...rows.map((row, k) => {
    const [n, covered, error, naive, seasonal] = row.map((value) => value ?? NaN);
    const cell = (text, mark = "") => element("td", { textContent: text, className: mark });
    return element("tr", {}, cell(about.scored[k]), cell(ratio(error / naive), rated(error / naive)),
      cell(about.season ? ratio(error / seasonal) : "–", about.season ? rated(error / seasonal) : ""), cell(percent(covered / n), n >= SURE && Math.abs(covered / n - main) > 0.05 ? "bad" : ""));
  }));
  find("scored").textContent = sum[0] ? `Error over that of two naive forecasts, below 1 is better; ${plural(Math.round(sum[0]), "forecast")} ${when}.` : "Scored as soon as the ticks come that were forecast.";
}

/* --- the log ---------------------------------------------------------------------------------- */

let lastLine = 0;

function showEvents(lines) {
  const list = find("events");
  if (!lastLine && !lines.length) list.replaceChildren(element("li", { className: "none", textContent: "Nothing yet: evictions, drops, reloads come here." }));
  for (const [number, time, level, text] of lines) {
    if (!lastLine) list.replaceChildren();
    lastLine = number;
    const parts = text.match(/^(.*?)((?: [\w.]+=(?:"(?:[^"\\]|\\.)*"|\S+))+)$/s) ?? [text, text, ""];
    const fields = parts[2].trim().replace(/([\w.]+)="((?:[^"\\]|\\.)*)"/g, "$1=$2");
    const when = new Date(1000 * time);
    list.prepend(element("li", { className: level },
      element("time", { dateTime: when.toISOString(), title: when.toLocaleString(), textContent: when.toLocaleTimeString(undefined, { hourCycle: "h23" }) }),
      element("b", { textContent: parts[1] }), ...(fields ? [element("span", { textContent: fields })] : [])));
  }
  while (list.children.length > 50) list.lastElementChild.remove();
}

/* --- a series --------------------------------------------------------------------------------- */

const cards = new Map(); // by name

class Card {
  constructor(name) {
    this.name = name; this.target = 0; this.back = 0; this.past = new Past(); this.chart = null;
    this.title = element("h2", { title: name }, element("bdi", { textContent: name }));
    this.heard = element("span", { className: "heard" });
    this.select = element("select", { ariaLabel: `Target of ${name}`, hidden: true });
    this.select.onchange = () => { this.target = this.select.selectedIndex; this.past = new Past(); ask(); };
    const button = (textContent, ariaLabel, title, onclick) => element("button", { type: "button", textContent, ariaLabel, title, onclick });
    const buttons = [
      button("−", `More of the past of ${name}`, "More past (−)", () => this.zoom(2)),
      button("+", `Less of the past of ${name}`, "Less past (+)", () => this.zoom(0.5)),
      button("×", `Close ${name}`, "Close (x)", (event) => this.close(!event.detail)),
    ];
    this.read = element("p", { className: "read" });
    this.plot = element("div", { className: "plot" });
    this.says = element("p", { className: "says" });
    this.node = element("article", { className: "card", tabIndex: 0, ariaLabel: name },
      element("div", {}, this.title, this.select, this.heard, ...buttons), this.read, this.plot, this.says);
    this.node.addEventListener("keydown", (event) => this.pressed(event));
    this.node.addEventListener("blur", () => this.chart?.move(0));
    this.says.textContent = "…";
  }

  begin() {
    this.chart?.close();
    this.chart = new Chart(this.plot, about.coverages.length, (told) => this.tell(told));
    this.select.replaceChildren(...about.targets.map((name) => element("option", { textContent: name })));
    this.select.hidden = about.targets.length < 2;
    this.target = Math.min(this.target, about.targets.length - 1);
    this.select.selectedIndex = this.target;
    const room = innerWidth < 720 ? 2 : 4;
    this.back ||= Math.min(400, Math.max(48, room * about.horizon));
  }

  get step() { return about.step || this.past.step(); }

  take(told) {
    if (!this.chart) this.begin();
    this.node.classList.toggle("lost", !told);
    if (!told) {
      this.heard.textContent = "";
      this.says.textContent = "There is no series of that name now; once it speaks it is shown.";
      this.past.count = 0;
      return;
    }
    if (this.past.take(told, about.step)) this.draw();
    this.quality = told.scored === undefined ? this.quality : told;
    if (told.heard) this.heardAt = told.heard;
    this.judge();
  }

  draw() {
    this.chart?.show(columnsOf(this.past, this.back, this.step, about.coverages.length, about.step > 0), this.past.fan ? this.past.fan.ts : null);
  }

  judge() {
    const told = this.quality ?? {}, items = [];
    const ago = Math.max(0, (now() - this.heardAt)) || 0;
    this.heard.textContent = this.heardAt ? (ago < 1.5 ? "just now" : `${since(ago)} ago`) : "";
    const say = (text, value, mark = "") => items.push(element("span", { className: mark }, `${text} `, element("b", { textContent: value })));
    if (told.over_last != null) say("error over last value", ratio(told.over_last), rated(told.over_last));
    if (told.over_seasonal != null && about.season) say("over season before", ratio(told.over_seasonal), rated(told.over_seasonal));
    if (told.covered != null) say(`within its ${percent(about.coverages[0]).replace(".0", "")} interval`, percent(told.covered));
    if (told.scored) items.push(element("span", { textContent: `of the last ${whole.format(told.scored)}${told.scored >= 1000 ? " or so" : ""}` }));
    if (told.scored === 0) items.push("Scored as soon as the ticks come that were forecast.");
    this.says.replaceChildren(...items);
  }

  tell({ at, when, actual, forecast, interval, missed }) {
    const part = (name, ...children) => element("span", { className: name }, ...children);
    const date = new Date(1000 * when), step = this.step;
    const year = date.getFullYear() !== new Date().getFullYear() ? "numeric" : undefined;
    const day = year || step * this.back > 40_000 ? { year, month: "short", day: "numeric" } : {};
    const clock = step < 86_400 ? { hour: "2-digit", minute: "2-digit", second: step < 60 ? "2-digit" : undefined, hourCycle: "h23" } : {};
    const parts = [part("when", date.toLocaleString(undefined, { ...day, ...clock }))];
    if (actual !== null) parts.push(part("actual", "actual ", element("b", { textContent: actual })));
    if (forecast !== null) parts.push(part("forecast", at ? "forecast " : "next ", element("b", { textContent: forecast }), ...(interval ? [` (${interval[0]} to ${interval[1]})`] : [])));
    if (missed) parts.push(part("missed", "outside its interval"));
    this.read.ariaLive = at ? "polite" : "off"; // what a key asked for is read out, what comes by itself is not
    this.read.replaceChildren(...parts);
    const text = parts.map((each) => each.textContent).join("; ");
    this.plot.setAttribute("role", "img");
    this.plot.setAttribute("aria-label", text);
  }

  pressed(event) {
    if (event.target !== this.node || event.ctrlKey || event.metaKey || event.altKey) return;
    const all = [...cards.values()], here = all.indexOf(this);
    switch (event.key) {
      case "ArrowLeft": this.chart?.move(-1); break;
      case "ArrowRight": this.chart?.move(1); break;
      case "ArrowUp": case "ArrowDown": {
        const next = all[here + (event.key === "ArrowDown" ? 1 : -1)];
        if (!next) return;
        next.node.focus();
        break;
      }
      case "+": case "=": this.zoom(0.5); break;
      case "-": this.zoom(2); break;
      case "Escape": this.chart?.move(0); break;
      case "x": case "Delete": this.close(true); break;
      default: return;
    }
    event.preventDefault();
  }

  zoom(by) {
    this.back = Math.max(8, Math.min(KEPT, Math.round(this.back * by)));
    this.draw();
  }

  close(moved = false) {
    const all = [...cards.values()], here = all.indexOf(this);
    cards.delete(this.name);
    this.chart?.close();
    this.node.remove();
    remember();
    if (moved) ((all[here + 1] ?? all[here - 1])?.node ?? find("search")).focus();
  }
}

const UNITS = [[86_400, "d"], [3600, "h"], [60, "min"]];

function since(seconds) {
  for (const [size, name] of UNITS) if (seconds >= size) return `${Math.floor(seconds / size)} ${name}`;
  return `${Math.round(seconds)} s`;
}

/** A time from tick to tick, to the second. */
function spacing(seconds) {
  for (const [size, name] of UNITS) if (seconds % size === 0) return `${seconds / size} ${name}`;
  return `${seconds} s`;
}

function open(name) {
  begun = true;
  let card = cards.get(name);
  if (!card) {
    card = new Card(name);
    const made = stored()[name];
    if (made) card.past.made = made;
    cards.set(name, card);
    find("cards").append(card.node);
    remember();
    ask();
  }
  return card;
}

/** Keep in the address which series are open. */
function remember() {
  history.replaceState(null, "", `#${[...cards.keys()].map(encodeURIComponent).join("&")}`);
  showEmpty();
}

function named() {
  return location.hash.slice(1).split("&").filter(Boolean).flatMap((each) => {
    try { return [decodeURIComponent(each)]; } catch { return []; }
  });
}

function stored() {
  try { return JSON.parse(sessionStorage.getItem(STORED)) ?? {}; } catch { return {}; }
}

addEventListener("pagehide", () => {
  const made = Object.fromEntries([...cards].map(([name, card]) => [name, card.target ? [] : card.past.made.slice(-500)]));
  try { sessionStorage.setItem(STORED, JSON.stringify(made)); } catch { /* no room: they are made again */ }
});
addEventListener("hashchange", () => {
  const wanted = named();
  for (const card of [...cards.values()]) if (!wanted.includes(card.name)) card.close();
  for (const name of wanted) open(name);
});
dark.addEventListener("change", () => { for (const card of cards.values()) card.chart?.redraw(); });

let active = null; // series that there are, as last told

function showEmpty() {
  const place = find("empty");
  place.hidden = cards.size > 0;
  if (place.hidden || active === null) return;
  const say = (title, text, ...more) => place.replaceChildren(element("h2", { textContent: title }), element("p", { textContent: text }), ...more);
  if (active) say("No chart is open", `Search above, or press /, and choose one of ${whole.format(active)} series.`);
  else say("No series yet", "They begin with the first tick that comes. To send a table of yours:", element("code", { textContent: "streamlstm publish YOUR.csv --speed 3600" }));
}

/* --- search ----------------------------------------------------------------------------------- */

const search = find("search"), found = find("found"), results = find("results");
let asked = 0, chosen = -1, pause = 0;

async function look() {
  const mine = ++asked;
  try {
    const answer = await fetch(`live/find?q=${encodeURIComponent(search.value.trim())}`, { signal: AbortSignal.timeout(PATIENCE) });
    const told = answer.ok ? await answer.json() : null;
    if (mine === asked && told && document.activeElement === search) showFound(told);
  } catch { /* gone: the other question says so */ }
}

function showFound({ found: names, more, active: all }) {
  found.replaceChildren(...names.map(({ name, sketch }, i) => {
    const item = element("li", { id: `found-${i}`, role: "option" }, element("span", { className: "name", textContent: name }));
    item.dataset.name = name;
    if (cards.has(name)) item.append(element("span", { className: "open", textContent: "open" }));
    item.append(spark(sketch));
    item.onclick = () => take(i);
    return item;
  }));
  find("many").textContent = !names.length ? (all ? "No series of that name." : "No series yet.") : more ? `The first ${names.length}; type more of the name to see others.` : `${names.length} found.`;
  results.hidden = false;
  search.setAttribute("aria-expanded", "true");
  choose(names.length && search.value.trim() ? 0 : -1);
}

function choose(i) {
  chosen = i;
  [...found.children].forEach((item, at) => item.setAttribute("aria-selected", String(at === i)));
  if (i >= 0) {
    search.setAttribute("aria-activedescendant", `found-${i}`);
    found.children[i].scrollIntoView({ block: "nearest" });
  } else search.removeAttribute("aria-activedescendant");
}

function shut() {
  asked++;
  clearTimeout(pause);
  results.hidden = true;
  search.setAttribute("aria-expanded", "false");
  search.removeAttribute("aria-activedescendant");
}

function take(i) {
  const { name } = found.children[i].dataset;
  search.value = "";
  const { node } = open(name);
  node.focus({ preventScroll: true });
  node.scrollIntoView({ block: "nearest", behavior: reduced.matches ? "auto" : "smooth" });
}

search.addEventListener("focus", look);
search.addEventListener("blur", shut);
results.addEventListener("mousedown", (event) => event.preventDefault()); // what is typed goes on
search.addEventListener("input", () => { clearTimeout(pause); pause = setTimeout(look, 80); });
search.addEventListener("keydown", (event) => {
  const count = results.hidden ? 0 : found.children.length;
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    if (!count) look();
    else choose((chosen + (event.key === "ArrowDown" ? 1 : chosen < 0 ? 0 : -1) + count) % count);
  } else if (event.key === "Enter" && count) take(Math.max(0, chosen));
  else if (event.key === "Escape") {
    if (search.value || !results.hidden) { search.value = ""; shut(); } else search.blur();
  } else return;
  event.preventDefault();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
  event.preventDefault();
  search.focus();
});

/* --- asking ----------------------------------------------------------------------------------- */

let about = null, ahead = 0, turn = 0, timer = 0, wait = EVERY, asking = false, again = false;

/** What time it is for the daemon, seconds since the epoch. */
const now = () => Date.now() / 1000 + ahead;

function say(state, text, trouble = "") {
  if (find("state").textContent !== text) { // or it would be read out each second
    find("state").dataset.state = state;
    find("state").textContent = text;
    document.title = state === "serving" ? "streamlstm" : `${text} · streamlstm`;
    document.body.classList.toggle("away", state === "gone");
  }
  find("gone").hidden = !trouble;
  if (find("gone").textContent !== trouble) find("gone").textContent = trouble;
}

/** The question, and the cards that it asks of: as many as fit, each in its turn. */
function question() {
  const query = [`events=${lastLine}`, ...(about ? [`about=${encodeURIComponent(about.about)}`] : [])];
  const all = [...cards.values()], of = [];
  let length = 0;
  for (let i = 0; i < Math.min(all.length, 16); i++) {
    const card = all[(turn + i) % all.length];
    const part = `of=${about ? card.past.count : 0}.${card.target}.${encodeURIComponent(card.name)}`;
    if (length && length + part.length > LONGEST) break;
    length += part.length;
    query.push(part);
    of.push([card, card.past]);
  }
  turn = all.length ? (turn + of.length) % all.length : 0;
  return [`live/now?${query.join("&")}`, of];
}

async function ask() {
  if (asking) { again = true; return; }
  asking = true; again = false;
  clearTimeout(timer);
  const [path, of] = question();
  const answer = await fetch(path, { signal: AbortSignal.timeout(PATIENCE), cache: "no-store" }).catch(() => null);
  const told = answer?.ok ? await answer.json().catch(() => null) : null;
  wait = told || answer?.status === 503 ? EVERY : Math.min(2 * wait, SELDOM);
  try {
    if (told) hear(told, of);
    else if (answer?.status === 503) say("starting", "starting");
    else if (answer && !answer.ok) say("gone", "refused", `The daemon answers ${answer.status} ${answer.statusText}; load this page again.`);
    else say("gone", "gone", "The daemon does not answer. It is asked again every few seconds, and the page goes on once it is back.");
  } catch (error) {
    say("gone", "error", `This page failed: ${error.message}`);
    console.error(error);
  }
  asking = false;
  if (!document.hidden) timer = setTimeout(ask, again ? 0 : wait);
}

function hear(told, of) {
  say("serving", "serving");
  ahead = told.time - Date.now() / 1000;
  const changed = about?.about !== told.about;
  if (changed) {
    const [boot] = (about?.about ?? "").split(".");
    if (about && boot !== told.about.split(".")[0]) { lastLine = 0; samples.length = 0; }
    about = told;
    find("model").textContent = `model ${told.model} · ${told.network} · ${plural(told.horizon, "step")}${told.step ? ` of ${spacing(told.step)}` : ""} ahead`;
    for (const card of cards.values()) { card.past.count = 0; card.begin(); }
    again = true; // what is told of series was asked of what was before
  }
  active = told.counts.active_series;
  showVitals(told);
  showEvents(told.events);
  told.series.forEach((series, i) => {
    const [card, past] = of[i];
    if (!changed && card.past === past && cards.get(card.name) === card) card.take(series);
  });
  showEmpty();
  if (active && !begun) openFirst();
}

let begun = named().length > 0; // whether a chart was open

/** Where none was asked for, show one. */
async function openFirst() {
  const answer = await fetch("live/find?q=").catch(() => null);
  const { found: names } = answer?.ok ? await answer.json() : { found: [] };
  if (names.length && !begun) open(names[0].name);
}

document.addEventListener("visibilitychange", () => { if (!document.hidden) ask(); });
document.querySelector(".skip").addEventListener("click", (event) => { // the address names series, and no places
  event.preventDefault();
  find("cards").focus();
});
for (const name of named()) open(name);
ask();
