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
const ROWS = [
  { name: "Requests ended", value: (f) => f.requests, unit: number },
  { name: "Failed", value: (f) => f.failed, unit: number, more: (f) => f.refused || f.client_left ? `refused ${number(f.refused)}, client left ${number(f.client_left)}` : "" },
  { name: "Crossed to another arm", value: (f) => f.crossed, unit: number, more: (f) => f.requests ? share(f.crossed / f.requests) : "" },
  { name: "TTFT p50", group: true, value: (f) => f.ttft.p50_seconds, unit: time, compare: true },
  { name: "TTFT p95", value: (f) => f.ttft.p95_seconds, unit: time, compare: true },
  { name: "TTFT p99", value: (f) => f.ttft.p99_seconds, unit: time, compare: true, few: (f) => f.ttft.count < 500 },
  { name: "TPOT p50", group: true, value: (f) => f.tpot.p50_seconds, unit: time, compare: true },
  { name: "TPOT p95", value: (f) => f.tpot.p95_seconds, unit: time, compare: true },
  { name: "TPOT p99", value: (f) => f.tpot.p99_seconds, unit: time, compare: true, few: (f) => f.tpot.count < 500 },
  { name: "Output tokens/s per GPU", group: true, value: (f) => f.output_tokens_per_second_per_gpu, unit: number, load: true },
  { name: "Goodput/s per GPU", value: (f) => f.goodput_per_second_per_gpu, unit: number, load: true },
  { name: "Streams within the SLO", value: met, unit: share },
  { name: "In flight now", group: true, now: (arm) => total(arm.backends.map((b) => b.prefilling + b.decoding)), unit: number },
  { name: "Waiting in Forebay", now: (arm) => arm.waiting, unit: number },
  { name: "Queue in the engines", now: (arm) => total(arm.backends.map((b) => b.queue_depth)), unit: number },
  { name: "KV cache in use", now: (arm) => mean(arm.backends.map((b) => b.kv_usage)), unit: share },
  { name: "Prediction off by", value: (f) => f.prediction_error, unit: share, more: (f) => f.prediction_bias === null ? "" : `bias ${digits(f.prediction_bias, 2)}×` },
];

function full(arm) {
  const used = arm.backends.filter((b) => b.state === "healthy");
  return used.length > 0 && used.every((b) => b.queue_depth > 0);
}

function key(place) {
  return svg("svg", { class: "key", viewBox: "0 0 24 10", "aria-hidden": "true" }, svg("line", { class: "line a" + (place % 4), x1: 0, x2: 24, y1: 5, y2: 5 }));
}

function armsTable(pool, find) {
  const heads = pool.arms.map((arm, place) => {
    const about = el("small", {});
    state.draw.push(() => { const now = find().arms[place]; say(about, `${share(now.share)} share · ${now.gpus} GPU${now.gpus === 1 ? "" : "s"}`); });
    return el("th", { scope: "col" }, key(place), arm.name, el("br"), about);
  });
  const body = ROWS.map((row) => {
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
        if (row.few && value !== null && row.few(figures)) notes.push("of few");
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
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Arms of ${pool.model}` }, table);
}

// ---- plots: fifteen minutes in points of ten seconds ----
const PLOTS = [
  { name: "TTFT p95", of: (point) => point.ttft_p95_seconds, unit: time },
  { name: "Output tokens/s per GPU", several: "Output tokens/s per GPU: the load, unless all engines queue", of: (point, arm) => point.output_tokens / 10 / Math.max(arm.gpus, 1), unit: number, zero: true },
];

function plot(kind, pool, find) {
  const top = el("span", { class: "top" }), now = el("span", { class: "note" });
  const lines = pool.arms.map((_, place) => svg("path", { class: "line a" + (place % 4) }));
  const name = pool.arms.length > 1 && kind.several || kind.name;
  const picture = svg("svg", { viewBox: "0 -9 89 109", preserveAspectRatio: "none", role: "img" }, ...lines);
  state.draw.push(() => {
    const arms = find().arms;
    const all = arms.map((arm) => points(arm, kind));
    const most = Math.max(0, ...all.flat().filter((value) => value !== null));
    const ceiling = most > 0 ? most : 1;
    all.forEach((values, place) => mark(lines[place], "d", path(values, ceiling)));
    say(top, most > 0 ? kind.unit(most) : "");
    const last = all.map((values, place) => `${arms[place].name} ${kind.unit(values.findLast((value) => value !== null) ?? null)}`).join(", ");
    mark(picture, "aria-label", `${name}, the last 15 minutes; latest: ${last}`);
    say(now, last);
  });
  return el("figure", {}, el("figcaption", {}, el("span", {}, name), now), el("div", { class: "plot" }, picture, top), el("div", { class: "axis" }, el("span", {}, "15 min ago"), el("span", {}, "now")));
}
// The point that is under way is left out: it would always look like a fall.
function points(arm, kind) {
  const first = arm.timeline_now - 90, values = new Array(90).fill(null);
  if (kind.zero && arm.timeline.length) values.fill(0, Math.max(0, arm.timeline[0].at - first));
  for (const point of arm.timeline) {
    const place = point.at - first;
    if (place >= 0 && place < 90) values[place] = kind.of(point, arm) ?? null;
  }
  return values;
}
function path(values, ceiling) {
  let text = "", drawing = false;
  values.forEach((value, at) => {
    if (value === null) { drawing = false; return; }
    const y = (100 - (value / ceiling) * 100).toFixed(2);
    text += drawing ? `L${at} ${y}` : `M${at} ${y}h0.01`;
    drawing = true;
  });
  return text;
}

// ---- backends ----
function backendsTable(pool, find) {
  const several = pool.arms.length > 1;
  const columns = ["Backend", "State", "In flight", "Queue", "KV cache", "Served", "TTFT p50", "TTFT p95", "Predicted", "Off by"];
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
      const values = [`${now.prefilling} + ${now.decoding}`, number(now.queue_depth), share(now.kv_usage), number(figures.requests), time(figures.ttft.p50_seconds), time(figures.ttft.p95_seconds), time(now.predicted_ttft_seconds), share(figures.prediction_error)];
      values.forEach((value, at) => say(texts[at], value));
    });
    const who = el("th", { scope: "row", class: "who" }, ...(several ? [key(a)] : []), `b${backend.id} `, el("small", {}, backend.url), ...(several ? [el("br"), el("small", {}, arm.name)] : []));
    return el("tr", {}, who, stateCell, ...cells);
  }));
  const titles = { "In flight": "prefilling + decoding, sent from here", Predicted: "for a prompt of 500 tokens, sent now", "Off by": "mean distance of the predicted from the measured TTFT" };
  const head = el("tr", {}, ...columns.map((column) => el("th", { scope: "col", ...(titles[column] ? { title: titles[column] } : {}), ...(column === "State" ? { class: "state" } : {}) }, column)));
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Backends of ${pool.model}` }, el("table", { class: "backends" }, el("thead", {}, head), el("tbody", {}, ...rows)));
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
  const side = el("div", { class: "side" }, armsTable(pool, find), el("div", {}, ...PLOTS.map((kind) => plot(kind, pool, find))));
  return el("section", {}, el("h2", {}, pool.model), about, nothingYet(pool, find), side, el("h3", {}, "Backends"), backendsTable(pool, find));
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
  const summary = el("summary", {}, el("span", { class: "ago" }), el("span", { class: "why" }, decision.why), el("span", { class: "took" }));
  return el("li", { "data-number": decision.number }, el("details", {}, summary, el("p", {}, decision.figures)));
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
  const shape = JSON.stringify(tick.pools.map((pool) => [pool.model, pool.arms.map((arm) => [arm.name, arm.backends.map((backend) => [backend.id, backend.url])])]));
  if (shape !== state.shape) {
    state.shape = shape;
    state.draw = [];
    $("pools").replaceChildren(...tick.pools.map(section));
    $("decisions").hidden = false;
  }
  for (const draw of state.draw) draw();
  clients(tick.clients);
  decisions(tick.decisions);
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
