// The live page. One stream of ticks; each is drawn by writing what changed into elements that stay where they are, so that
// nothing jumps and the focus is kept. All that comes from the server is text, never markup.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const SHOWN_DECISIONS = 10;
const SILENCE_MS = 6000;
const state = { tick: null, window: "5m", held: false, shape: "", draw: [], stop: null, wait: 1000 };
const $ = (id) => document.getElementById(id);

// ---- elements ----
function el(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
  made.append(...children);
  return made;
}
function svg(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
  made.append(...children);
  return made;
}
function say(node, text) { if (node.textContent !== text) node.textContent = text; }
function mark(node, name, value) { if (node.getAttribute(name) !== value) node.setAttribute(name, value); }

// ---- numbers ----
const none = "–";
function digits(value, most) { return value.toLocaleString("en", { maximumFractionDigits: most, minimumFractionDigits: most }); }
function number(value) {
  if (value === null || value === undefined) return none;
  const size = Math.abs(value);
  return digits(value, size >= 100 || Number.isInteger(value) ? 0 : size >= 10 ? 1 : 2);
}
function time(seconds) {
  if (seconds === null || seconds === undefined) return none;
  if (seconds < 0.001) return digits(seconds * 1000, 2) + " ms";
  if (seconds < 0.01) return digits(seconds * 1000, 1) + " ms";
  if (seconds < 1) return digits(seconds * 1000, 0) + " ms";
  return digits(seconds, seconds < 10 ? 2 : 1) + " s";
}
function share(part) { return part === null || part === undefined ? none : digits(part * 100, part > 0 && part < 0.1 ? 1 : 0) + " %"; }
function span(seconds) {
  const whole = Math.floor(seconds);
  if (whole < 60) return whole + " s";
  if (whole < 3600) return Math.floor(whole / 60) + " min";
  if (whole < 86400) return Math.floor(whole / 3600) + " h " + Math.floor((whole % 3600) / 60) + " min";
  return Math.floor(whole / 86400) + " d";
}
// Unknown where any part is: a sum over what happens to be known would be no sum.
function total(values) { return values.some((value) => value === null) ? null : values.reduce((sum, value) => sum + value, 0); }
function mean(values) { const sum = total(values); return sum === null || !values.length ? null : sum / values.length; }
function met(figures) { const all = figures.slo_met + figures.slo_missed; return all ? figures.slo_met / all : null; }

// ---- the arms' table ----
// What is compared shows its ratio to the first arm; `unit` writes a value. What follows the `load` is no figure of an arm
// unless each arm has more than it can do, which a queue in every one of its engines shows. A queue that is there now says
// nothing of the whole window, so such figures are never shown as a ratio.
const LEAD = [
  { name: "TTFT p50", value: (f) => f.ttft.p50_seconds, unit: time, compare: true },
  { name: "TTFT p95", value: (f) => f.ttft.p95_seconds, unit: time, compare: true },
  { name: "TPOT p50", group: true, value: (f) => f.tpot.p50_seconds, unit: time, compare: true },
  { name: "TPOT p95", value: (f) => f.tpot.p95_seconds, unit: time, compare: true },
  { name: "Goodput/s per GPU", group: true, value: (f) => f.goodput_per_second_per_gpu, unit: number, load: true },
  { name: "Streams within the SLO", value: met, unit: share },
];
const REST = [
  { name: "Requests ended", value: (f) => f.requests, unit: number },
  { name: "Failed", value: (f) => f.failed, unit: number, more: (f) => f.refused || f.client_left ? `refused ${number(f.refused)}, client left ${number(f.client_left)}` : "" },
  { name: "Not answered whole, by outcome", value: (f) => f.outcomes, unit: outcomes },
  { name: "Crossed to another arm", value: (f) => f.crossed, unit: number, more: (f) => f.requests ? share(f.crossed / f.requests) : "" },
  { name: "TTFT p99", group: true, value: (f) => f.ttft.p99_seconds, unit: time, compare: true, few: (f) => f.ttft.count },
  { name: "TPOT p99", value: (f) => f.tpot.p99_seconds, unit: time, compare: true, few: (f) => f.tpot.count },
  { name: "Output tokens/s per GPU", value: (f) => f.output_tokens_per_second_per_gpu, unit: number, load: true },
  { name: "In flight now", group: true, now: (arm) => total(arm.backends.map((b) => b.prefilling + b.decoding)), unit: number },
  { name: "Waiting in Forebay", now: (arm) => arm.waiting, unit: number },
  { name: "Queue in the engines", now: (arm) => total(arm.backends.map((b) => b.queue_depth)), unit: number },
  { name: "KV cache in use", now: (arm) => mean(arm.backends.map((b) => b.kv_usage)), unit: share },
  { name: "Prediction off by", value: (f) => f.prediction_error, unit: share, more: (f) => f.prediction_bias === null ? "" : `bias ${digits(f.prediction_bias, 2)}×` },
];
// A p99 of fewer requests than this rests on a handful of them.
const FEW = 500;

function full(arm) {
  const used = arm.backends.filter((b) => b.state === "healthy");
  return used.length > 0 && used.every((b) => b.queue_depth > 0);
}

function key(place) {
  return svg("svg", { class: "key", viewBox: "0 0 24 10", "aria-hidden": "true" }, svg("line", { class: "line a" + (place % 4), x1: 0, x2: 24, y1: 5, y2: 5 }));
}

function armsTable(pool, find, kinds, label) {
  const heads = pool.arms.map((arm, place) => {
    const about = el("small", {});
    state.draw.push(() => { const now = find().arms[place]; say(about, `${share(now.share)} share · ${now.gpus} GPU${now.gpus === 1 ? "" : "s"}`); });
    return el("th", { scope: "col" }, key(place), arm.name, el("br"), about);
  });
  const body = kinds.map((row) => {
    const cells = pool.arms.map((_, place) => {
      const shown = el("span"), more = el("small");
      state.draw.push(() => {
        const arms = find().arms, of = (arm) => row.now ? row.now(arm) : row.value(arm.figures[state.window]);
        const value = of(arms[place]), first = of(arms[0]), figures = arms[place].figures[state.window];
        const loads = row.load && arms.length > 1;
        say(shown, loads && !arms.every(full) ? "follows the load" : row.unit(value));
        const notes = [];
        if (loads && arms.every(full)) notes.push("if so loaded all the time");
        if (row.compare && place > 0 && value !== null && first) notes.push(`${digits(value / first, 2)}× ${arms[0].name}`);
        if (row.few && value !== null && row.few(figures) < FEW) notes.push(`of ${number(row.few(figures))} requests`);
        if (row.more) notes.push(row.more(figures));
        say(more, notes.filter(Boolean).join(", "));
      });
      const noted = (row.compare || row.load) && pool.arms.length > 1 || row.few || row.more;
      return el("td", {}, shown, ...(noted ? [more] : []));
    });
    return el("tr", row.group ? { class: "group" } : {}, el("th", { scope: "row" }, row.name), ...cells);
  });
  const head = el("thead", {}, el("tr", {}, el("th", { scope: "col" }, pool.arms.length > 1 ? "By assigned arm" : ""), ...heads));
  const table = el("table", { class: "arms" }, head, el("tbody", {}, ...body));
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${label} of ${pool.model}` }, table);
}

// ---- plots: the chosen window in points of ten seconds, of the fifteen minutes that are kept ----
const KEPT = 90;
const SHOWN = { "1m": [6, "1 min ago"], "5m": [30, "5 min ago"], "15m": [KEPT, "15 min ago"], start: [KEPT, "15 min ago, the longest kept"] };
const PLOTS = [
  { name: "Requests/s", of: (point) => point.requests / 10, unit: number, zero: true },
  { name: "TTFT p95", of: (point) => point.ttft_p95_seconds, unit: time },
  { name: "TPOT p50", of: (point) => point.tpot_p50_seconds, unit: time },
  { name: "Output tokens/s per GPU", several: "Output tokens/s per GPU: the load, unless all engines queue", of: (point, arm) => point.output_tokens / 10 / Math.max(arm.gpus, 1), unit: number, zero: true },
];
const OUTCOMES = [["failed", "failed"], ["refused", "refused here"], ["client_errors", "client errors"], ["client_left", "client left"]];
function outcomes(counts) {
  return Object.entries(counts).sort((x, y) => y[1] - x[1]).map(([outcome, count]) => `${outcome} ${number(count)}`).join(", ") || "none";
}
const ERRORS = { name: "Not answered whole, a minute, by outcome", unit: number };

// `lines` are the names; `read` gives each line's values.
function figure(kind, name, lines, read) {
  const top = el("span", { class: "top" }), now = el("span", { class: "note" }), since = el("span");
  const drawn = lines.map((_, place) => svg("path", { class: "line a" + (place % 4) }));
  const picture = svg("svg", { viewBox: "0 -9 89 109", preserveAspectRatio: "none", role: "img" }, ...drawn);
  state.draw.push(() => {
    const [count, ago] = SHOWN[state.window];
    const all = read().map((values) => values.slice(-count));
    const most = Math.max(0, ...all.flat().filter((value) => value !== null));
    const ceiling = most > 0 ? most : 1;
    all.forEach((values, place) => mark(drawn[place], "d", path(values, ceiling)));
    say(top, most > 0 ? kind.unit(most) : "");
    say(since, ago);
    const last = all.map((values, place) => `${lines[place]} ${kind.unit(values.findLast((value) => value !== null) ?? null)}`).join(", ");
    mark(picture, "aria-label", `${name}, since ${ago}; latest: ${last}`);
    say(now, last);
  });
  return el("figure", {}, el("figcaption", {}, el("span", {}, name), now), el("div", { class: "plot" }, picture, top), el("div", { class: "axis" }, since, el("span", {}, "now")));
}
function plot(kind, pool, find) {
  const name = pool.arms.length > 1 && kind.several || kind.name;
  return figure(kind, name, pool.arms.map((arm) => arm.name), () => find().arms.map((arm) => points(arm, kind)));
}
// Errors of all arms together: what failed is told by outcome, and the table has it by arm.
function errorsPlot(find) {
  const sum = (field) => find().arms.map((arm) => points(arm, { of: (point) => 6 * point[field], zero: true }))
    .reduce((all, values) => all.map((value, at) => value === null ? values[at] : value + (values[at] ?? 0)));
  const drawn = figure(ERRORS, ERRORS.name, OUTCOMES.map(([, words]) => words), () => OUTCOMES.map(([field]) => sum(field)));
  const counted = el("p", { class: "note outcomes" });
  state.draw.push(() => {
    const all = {};
    for (const arm of find().arms) for (const [outcome, count] of Object.entries(arm.figures[state.window].outcomes)) all[outcome] = (all[outcome] ?? 0) + count;
    const some = Object.keys(all).length > 0;
    counted.hidden = !some;
    say(counted, some ? `In the window: ${outcomes(all)}.` : "");
  });
  drawn.append(counted);
  return drawn;
}
// The point that is under way is left out: it would always look like a fall.
function points(arm, kind) {
  const first = arm.timeline_now - KEPT, values = new Array(KEPT).fill(null);
  if (kind.zero && arm.timeline.length) values.fill(0, Math.max(0, arm.timeline[0].at - first));
  for (const point of arm.timeline) {
    const place = point.at - first;
    if (place >= 0 && place < KEPT) values[place] = kind.of(point, arm) ?? null;
  }
  return values;
}
function path(values, ceiling) {
  let text = "", drawing = false;
  values.forEach((value, at) => {
    if (value === null) { drawing = false; return; }
    const x = (at * 89 / Math.max(values.length - 1, 1)).toFixed(2), y = (100 - (value / ceiling) * 100).toFixed(2);
    text += drawing ? `L${x} ${y}` : `M${x} ${y}h0.01`;
    drawing = true;
  });
  return text;
}

// ---- backends ----
function backendsTable(pool, find) {
  const several = pool.arms.length > 1;
  const columns = ["Backend", "State", "In flight", "Queue", "KV cache", "Served", "TTFT p50", "TTFT p95", "Predicted", "Off by"];
  const token = sessionStorage.getItem("forebay-token");
  const rows = pool.arms.flatMap((arm, a) => arm.backends.map((backend, b) => {
    const name = el("b"), why = el("small"), fill = svg("rect", { width: 0, height: 10 });
    const stateCell = el("td", { class: "state" }, name, el("br"), why);
    const meter = svg("svg", { class: "meter", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" }, fill);
    const cells = columns.slice(2).map((column) => el("td", { "data-label": column }));
    const kv = el("span");
    cells[2].append(meter, " ", kv);
    const texts = cells.map((cell, at) => at === 2 ? kv : cell.appendChild(el("span")));
    state.draw.push(() => {
      const now = find().arms[a].backends[b], figures = now.figures[state.window];
      say(name, now.state);
      mark(stateCell, "data-state", now.state);
      const pause = now.state === "healthy" && now.open_for_seconds > 0 ? `backs off for ${span(now.open_for_seconds + 1)}` : "";
      const scrape = now.scrape_age_seconds === null ? "never scraped" : now.scrape_stale ? `last scraped ${span(now.scrape_age_seconds)} ago` : "";
      say(why, [`for ${span(now.state_for_seconds)}`, now.reason, pause, scrape].filter(Boolean).join(" · "));
      mark(fill, "width", String(100 * (now.kv_usage ?? 0)));
      const values = [`${now.prefilling} prefill, ${now.decoding} decode`, number(now.queue_depth), share(now.kv_usage), number(figures.requests), time(figures.ttft.p50_seconds), time(figures.ttft.p95_seconds), time(now.predicted_ttft_seconds), share(figures.prediction_error)];
      values.forEach((value, at) => say(texts[at], value));
      row.dataset.out = String(rank(now));
    });
    const who = el("th", { scope: "row", class: "who" }, ...(several ? [key(a)] : []), backend.name, ...(several ? [el("br"), el("small", {}, `arm ${arm.name}`)] : []));
    if (token) stateCell.append(drainButton(backend, () => find().arms[a].backends[b]));
    const row = el("tr", { "data-out": "0" }, who, stateCell, ...cells);
    return row;
  }));
  // Who is out stands first. Rows move only when a state changes, and never under the focus.
  const body = el("tbody", {}, ...rows);
  state.draw.push(() => {
    const sorted = rows.toSorted((x, y) => y.dataset.out - x.dataset.out);
    if (sorted.some((row, at) => row !== body.children[at]) && !body.contains(document.activeElement)) body.replaceChildren(...sorted);
  });
  const titles = { "In flight": "prefilling + decoding, sent from here", Predicted: "for a prompt of 500 tokens, sent now", "Off by": "mean distance of the predicted from the measured TTFT" };
  const head = el("tr", {}, ...columns.map((column) => el("th", { scope: "col", ...(titles[column] ? { title: titles[column] } : {}), ...(column === "State" ? { class: "state" } : {}) }, column)));
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Backends of ${pool.model}` }, el("table", { class: "backends" }, el("thead", {}, head), body));
}
function rank(backend) { return { healthy: 0, drained: 1, probing: 2, ejected: 3, misconfigured: 3 }[backend.state] ?? 3; }
// A second press within five seconds does it: one finger must not take a server out.
function drainButton(backend, find) {
  const button = el("button", { type: "button", class: "drain" });
  let sure = false, failed = "";
  const words = () => {
    const drained = find().state === "drained";
    return failed || (sure ? (drained ? "Sure? Undrain" : "Sure? Drain") : drained ? "Undrain" : "Drain");
  };
  const draw = () => { say(button, words()); mark(button, "aria-label", `${words()} ${backend.name}`); };
  state.draw.push(draw);
  const later = (act) => setTimeout(() => { act(); draw(); }, 5000);
  button.addEventListener("click", async () => {
    if (!sure) { sure = true; failed = ""; draw(); later(() => { sure = false; }); return; }
    sure = false;
    const act = find().state === "drained" ? "undrain" : "drain";
    try {
      const answer = await fetch(`/api/backends/b${backend.id}/${act}`, { method: "POST", cache: "no-store", headers: { authorization: `Bearer ${sessionStorage.getItem("forebay-token")}`, "content-type": "application/json" }, body: act === "drain" ? JSON.stringify({ by: "the live page" }) : "" });
      failed = answer.ok ? "" : (await answer.json()).error.message;
    } catch { failed = "Not reached"; }
    if (failed) later(() => { failed = ""; });
    draw();
  });
  return button;
}

// ---- pools ----
function nothingYet(pool, find) {
  const words = el("p"), command = el("pre");
  const box = el("div", { class: "empty" }, words, command);
  state.draw.push(() => {
    const now = find(), requests = now.arms.some((arm) => arm.figures[state.window].requests > 0);
    const ever = now.arms.some((arm) => arm.figures.start.requests > 0), usable = now.arms.some((arm) => arm.backends.some((b) => b.state === "healthy"));
    box.hidden = requests;
    if (requests) return;
    if (!usable) say(words, "No backend takes requests. What each lacks is in the table below; a server that is still starting comes in by itself.");
    else say(words, ever ? "No request ended in this window. Choose a longer one, or send one:" : "No request yet. Point a client here, or send one:");
    const body = JSON.stringify({ model: now.model, stream: true, messages: [{ role: "user", content: "hello" }] });
    say(command, usable ? `curl http://${state.tick.listen.replace(/^(0\.0\.0\.0|\[::\])/, location.hostname)}/v1/chat/completions -H 'content-type: application/json' -d '${body}'` : "");
  });
  return box;
}

function section(pool, at) {
  const find = () => state.tick.pools[at];
  const about = el("p", { class: "note" });
  state.draw.push(() => {
    const { slo } = state.tick, room = find().wait_room;
    say(about, `policy ${find().policy} · SLO: TTFT ≤ ${time(slo.ttft_seconds)}, TPOT ≤ ${time(slo.tpot_seconds)} · wait room ${number(room.waiting)} of ${number(room.size)}`);
  });
  const lead = el("p", { class: "lead" });
  state.draw.push(() => say(lead, find().sentence));
  const rest = el("details", { class: "rest" }, el("summary", {}, "All figures of the arms"), armsTable(pool, find, REST, "All figures"));
  const tables = el("div", {}, armsTable(pool, find, LEAD, "Arms"), rest);
  const plots = el("div", { class: "plots" }, ...PLOTS.map((kind) => plot(kind, pool, find)), errorsPlot(find));
  return el("section", {}, el("h2", {}, pool.model), lead, about, nothingYet(pool, find), tables, el("h3", {}, "Backends"), backendsTable(pool, find), plots);
}

// ---- what is out: the banner, and the title of the tab ----
function outages(tick) {
  return tick.pools.flatMap((pool) => pool.arms.flatMap((arm) => arm.backends
    .filter((backend) => rank(backend) > 1)
    .map((backend) => ({ pool, arm, backend, stuck: backend.prefilling + backend.decoding, why: backend.stalled_for_seconds === null ? backend.reason || backend.state : `no progress (${backend.reason || backend.state})` }))));
}
function requests(count) { return count === 1 ? "1 request" : `${number(count)} requests`; }
function alarm(tick) {
  const out = outages(tick), stuck = total(out.map((one) => one.stuck));
  // A request waits in vain where nobody takes it; in another pool it only waits its turn.
  const vain = tick.pools.filter((pool) => pool.arms.every((arm) => arm.backends.every((backend) => backend.state !== "healthy")));
  const waiting = total(vain.map((pool) => pool.wait_room.waiting));
  const lines = out.map(({ pool, arm, backend, stuck, why }) => `${backend.name} (${pool.model}${pool.arms.length > 1 ? `, arm ${arm.name}` : ""}) is out for ${span(backend.state_for_seconds)}: ${why}. ${stuck ? `${requests(stuck)} stuck on it.` : "Nothing is stuck on it."}`);
  for (const pool of vain) lines.unshift(`No backend of ${pool.model} takes requests. ${requests(pool.wait_room.waiting)} wait${pool.wait_room.waiting === 1 ? "s" : ""}.`);
  $("banner").hidden = !lines.length;
  const there = [...$("banner").children];
  if (there.length !== lines.length) $("banner").replaceChildren(...lines.map((line) => el("p", {}, line)));
  else lines.forEach((line, at) => say(there[at], line));
  const held = stuck + waiting;
  const title = out.length ? `✕ ${out[0].backend.name}${out.length > 1 ? ` and ${out.length - 1} more` : ""} out: ${out[0].why}, ${held} stuck · Forebay` : vain.length ? `✕ no backend, ${held} stuck · Forebay` : "Forebay";
  if (document.title !== title) document.title = title;
}

// ---- events ----
const WORDS = { healthy: "takes requests", ejected: "ejected", probing: "is being tried", drained: "drained", misconfigured: "misconfigured" };
function events(list) {
  $("events").hidden = false;
  const shown = $("events").querySelector("ol"), there = new Map([...shown.children].map((item) => [item.dataset.number, item]));
  const items = list.map((event) => {
    const what = event.backend === null ? event.what : `${event.backend} ${WORDS[event.what] || event.what}`;
    const item = there.get(String(event.number)) || el("li", { "data-number": event.number, "data-what": event.what }, el("span", { class: "ago" }), el("span", { class: "what" }, what), el("small", {}, event.why || ""));
    say(item.querySelector(".ago"), span(event.ago_seconds) + " ago");
    return item;
  });
  shown.replaceChildren(...(items.length ? items : [el("li", { class: "note" }, "Nothing so far.")]));
}

// ---- client keys ----
function clients(view) {
  $("clients").hidden = !view;
  if (!view) return;
  const left = (limit) => limit === null ? "no limit" : `${number(limit.remaining)} · ${number(limit.limit)} a minute`;
  const labels = ["In flight", "Requests left", "Tokens left", "Admitted", "Limited", "Priority"];
  const body = $("clients").querySelector("tbody"), there = new Map([...body.children].map((row) => [row.dataset.name, row]));
  const rows = view.shown.map((client) => {
    const row = there.get(client.name) || el("tr", { "data-name": client.name }, el("th", { scope: "row", class: "who" }, client.name), ...labels.map((label) => el("td", { "data-label": label }, el("span"))));
    const inFlight = client.concurrent === null ? number(client.in_flight) : `${number(client.in_flight)} of ${number(client.concurrent)}`;
    const values = [inFlight, left(client.requests), left(client.tokens), number(client.admitted), number(client.limited), number(client.priority)];
    values.forEach((value, at) => say(row.children[at + 1].firstChild, value));
    return row;
  });
  body.replaceChildren(...rows);
  say($("clients").querySelector(".note"), view.more > 0 ? `and ${number(view.more)} more` : "");
}

// ---- decisions ----
function decisions(list) {
  const shown = $("decisions").querySelector("ol"), latest = list.slice(0, SHOWN_DECISIONS);
  const there = new Map([...shown.children].map((item) => [item.dataset.number, item]));
  // One that is being read stays until it is closed.
  if (shown.querySelector("details[open]") || shown.contains(document.activeElement)) {
    for (const decision of list) { const item = there.get(String(decision.number)); if (item) tell(item, decision); }
    return;
  }
  shown.replaceChildren(...latest.map((decision) => {
    const item = there.get(String(decision.number)) || entry(decision);
    tell(item, decision);
    return item;
  }));
  if (!latest.length) shown.append(el("li", { class: "note" }, "None yet."));
}
function entry(decision) {
  const summary = el("summary", {}, el("span", { class: "ago" }), el("span", { class: "why" }, named(decision.why)), el("span", { class: "took" }));
  const id = el("p", { class: "id" }, `request ${decision.request_id}`);
  return el("li", { "data-number": decision.number }, el("details", {}, summary, id, el("p", {}, named(decision.figures))));
}
// Decisions name a backend by its id; a reader knows it by its address.
function named(text) {
  const names = new Map(state.tick.pools.flatMap((pool) => pool.arms.flatMap((arm) => arm.backends.map((backend) => [String(backend.id), backend.name]))));
  return text.replace(/\bb(\d+) \([^)]*\)/g, (all, id) => names.get(id) || all).replace(/\bb(\d+)\b/g, (all, id) => names.get(id) || all);
}
function tell(item, decision) {
  say(item.querySelector(".ago"), span(decision.ago_seconds) + " ago");
  const attempt = decision.attempt > 1 ? `attempt ${decision.attempt} · ` : "";
  const took = decision.predicted_seconds === null ? "no stream" : `predicted ${time(decision.predicted_seconds)}, took ${decision.measured_seconds === null ? "…" : time(decision.measured_seconds)}`;
  say(item.querySelector(".took"), attempt + took);
}

// ---- a tick ----
function show() {
  const tick = state.tick;
  if (!tick) return;
  const shape = JSON.stringify(tick.pools.map((pool) => [pool.model, pool.arms.map((arm) => [arm.name, arm.backends.map((backend) => [backend.id, backend.url])])]).concat([sessionStorage.getItem("forebay-token") !== null]));
  if (shape !== state.shape) {
    state.shape = shape;
    state.draw = [];
    $("pools").replaceChildren(...tick.pools.map(section));
    $("decisions").hidden = false;
  }
  for (const draw of state.draw) draw();
  clients(tick.clients);
  decisions(tick.decisions);
  events(tick.events);
  alarm(tick);
  say($("about"), `version ${tick.version} · up ${span(tick.uptime_seconds)} · requests at ${tick.listen}`);
}
function status(kind, words) {
  mark($("status"), "data-state", kind);
  say($("status"), words);
  $("pools").classList.toggle("stale", kind === "lost");
}

// ---- the stream ----
// By fetch and not EventSource, which cannot send the token.
async function follow() {
  const aborter = new AbortController();
  state.stop = () => aborter.abort();
  let silence;
  const heard = () => { clearTimeout(silence); silence = setTimeout(() => aborter.abort(), SILENCE_MS); };
  try {
    heard();
    const token = sessionStorage.getItem("forebay-token");
    const answer = await fetch("/api/live/stream", { signal: aborter.signal, cache: "no-store", headers: token ? { authorization: `Bearer ${token}` } : {} });
    if (answer.status === 401) { askForToken(token !== null); return; }
    if (!answer.ok) throw new Error((await answer.json()).error.message);
    $("ask").hidden = true;
    $("raw").hidden = token !== null; // a link cannot send it
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let kept = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new Error("the stream ended");
      heard();
      kept += value;
      const events = kept.split("\n\n");
      kept = events.pop();
      const last = events.findLast((event) => event.includes("data: "));
      if (!last) continue;
      const tick = JSON.parse(last.slice(last.indexOf("data: ") + 6));
      state.wait = 1000;
      if (state.held) continue;
      state.tick = tick;
      status(tick.not_ready === null ? "live" : "lost", tick.not_ready === null ? "live" : `not ready: ${tick.not_ready}`);
      show();
    }
  } catch (error) {
    if (document.hidden) return;
    status("lost", "disconnected, trying again");
    document.title = "✕ disconnected · Forebay";
    setTimeout(() => { if (!document.hidden) follow(); }, state.wait);
    state.wait = Math.min(state.wait * 2, 10000);
  } finally {
    clearTimeout(silence);
    aborter.abort();
  }
}
function askForToken(wrong) {
  sessionStorage.removeItem("forebay-token");
  status("connecting", "token needed");
  $("ask").hidden = false;
  say($("wrong"), wrong ? "That is not the token." : "");
  $("token").focus();
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("forebay-token", $("token").value.trim());
  $("token").value = "";
  follow();
});
$("window").addEventListener("change", (event) => { state.window = event.target.value; show(); });
$("hold").addEventListener("click", () => {
  state.held = !state.held;
  mark($("hold"), "aria-pressed", String(state.held));
  status(state.held ? "held" : "live", state.held ? "held" : "live");
});
// A page that nobody sees costs nothing.
document.addEventListener("visibilitychange", () => { if (document.hidden) { if (state.stop) state.stop(); } else if ($("ask").hidden) follow(); });
follow();
