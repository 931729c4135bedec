"use strict";
const PERIOD = 2000,
  KEPT = 300;
const $ = (id) => document.getElementById(id);
const make = (name, of, text) => {
  const node = document.createElement(name);
  if (of) node.className = of;
  if (text !== undefined) node.textContent = text;
  return node;
};
const saved = (name) => sessionStorage.getItem("arle." + name) || "";
const show = (value, unit = "") => {
  if (value === null || value === undefined || !Number.isFinite(value)) return "\u2013";
  const size = Math.abs(value);
  if (value !== 0 && (size < 0.001 || size >= 1e7)) return value.toExponential(2) + unit;
  return (
    (Number.isInteger(value)
      ? value.toLocaleString("en")
      : value
          .toPrecision(size >= 1000 ? 4 : 3)
          .replace(/(\.\d*?)0+$/, "$1")
          .replace(/\.$/, "")) + unit
  );
};
// On axes and below curves there is less room.
const brief = (value) => (Math.abs(value) >= 1e4 ? show(value / 1000, "k") : show(value));
const time = (seconds) => (seconds == null ? "\u2013" : seconds < 1 ? show(seconds * 1000, " ms") : show(seconds, " s"));

async function ask(path, {method = "GET", body, key = saved("key")} = {}) {
  const headers = {};
  if (key) headers.authorization = "Bearer " + key;
  if (body) headers["content-type"] = "application/json";
  const response = await fetch(path, {method, headers, body: body && JSON.stringify(body), cache: "no-store"});
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw Object.assign(new Error(answer.error?.message || response.statusText), {status: response.status});
  return answer;
}

// Charts: lines over x; a pointer reads the nearest values.
const SVG = "http://www.w3.org/2000/svg",
  W = 320,
  H = 130,
  LEFT = 52,
  RIGHT = 6,
  TOP = 8,
  BOTTOM = 18;
const shape = (name, attributes, parent) => {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  parent.append(node);
  return node;
};
class Chart {
  constructor(parent, title, names, format, formatX) {
    Object.assign(this, {names, format, formatX, lines: names.map(() => [])});
    this.box = make("div", "card chart");
    const head = make("div", "head");
    this.where = make("span", "quiet");
    head.append(make("h3", "", title), this.where);
    this.svg = shape("svg", {viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": title}, this.box);
    this.keys = make("div", "keys");
    this.box.prepend(head);
    this.box.append(this.keys);
    parent.append(this.box);
    this.svg.addEventListener("pointermove", (event) => {
      this.pointer = (event.offsetX / this.svg.clientWidth) * W;
      this.draw(this.lines);
    });
    this.svg.addEventListener("pointerleave", () => {
      this.pointer = undefined;
      this.draw(this.lines);
    });
  }
  draw(lines) {
    this.lines = lines;
    const points = lines.flat();
    this.box.hidden = points.length === 0;
    this.svg.replaceChildren();
    if (this.box.hidden) return;
    let [x0, x1, y0, y1] = points.reduce(
      (r, [x, y]) => [Math.min(r[0], x), Math.max(r[1], x), Math.min(r[2], y), Math.max(r[3], y)],
      [Infinity, -Infinity, Infinity, -Infinity],
    );
    if (y0 > 0 && y0 < 0.6 * y1) y0 = 0;
    if (y1 === y0) [y0, y1] = y0 === 0 ? [0, 1] : [Math.min(0, y0), Math.max(0, y1)];
    if (x1 === x0) x0 = x1 - 1;
    const px = (x) => LEFT + ((x - x0) / (x1 - x0)) * (W - LEFT - RIGHT),
      py = (y) => H - BOTTOM - ((y - y0) / (y1 - y0)) * (H - TOP - BOTTOM);
    for (const part of [0, 0.5, 1]) {
      const y = y0 + part * (y1 - y0);
      shape("line", {class: "grid", x1: LEFT, x2: W - RIGHT, y1: py(y), y2: py(y)}, this.svg);
      shape("text", {x: LEFT - 5, y: py(y) + 3, "text-anchor": "end"}, this.svg).textContent = this.format(y);
    }
    shape("text", {x: LEFT, y: H - 4}, this.svg).textContent = this.formatX(x0);
    shape("text", {x: W - RIGHT, y: H - 4, "text-anchor": "end"}, this.svg).textContent = this.formatX(x1);
    const aim = this.pointer === undefined ? x1 : x0 + ((this.pointer - LEFT) / (W - LEFT - RIGHT)) * (x1 - x0);
    const near = lines.map((line) =>
      line.reduce((best, p) => (best && Math.abs(best[0] - aim) <= Math.abs(p[0] - aim) ? best : p), undefined),
    );
    lines.forEach((line, index) => {
      if (line.length === 0) return;
      const d = line.map(([x, y], i) => `${i ? "L" : "M"}${px(x).toFixed(1)} ${py(y).toFixed(1)}`).join("");
      if (line.length > 1) shape("path", {class: "k" + index, d}, this.svg);
      const [x, y] = near[index];
      if (line.length === 1 || this.pointer !== undefined)
        shape("circle", {class: "k" + index, cx: px(x), cy: py(y), r: 2.5}, this.svg);
    });
    const at = near.find((point) => point);
    if (this.pointer !== undefined) shape("line", {class: "at", x1: px(at[0]), x2: px(at[0]), y1: TOP, y2: H - BOTTOM}, this.svg);
    this.where.textContent = this.formatX(at[0]);
    this.keys.replaceChildren(
      ...this.names.flatMap((name, index) =>
        near[index] ? [make("span", "k" + index, `${name} ${this.format(near[index][1])}`)] : [],
      ),
    );
  }
}

// Tiles: a number, what it is, and a note.
function tile(parent, name, title) {
  let node = parent.querySelector(`[data-tile="${name}"]`);
  if (!node) {
    node = make("div", "card tile");
    node.dataset.tile = name;
    node.append(make("h3", "", title), make("b"), make("small"));
    parent.append(node);
  }
  return (value, note = "") => {
    node.children[1].textContent = value;
    node.children[2].textContent = note;
  };
}

// Serving: counters of /v1/stats, and their change since the last look.
let before,
  history = [];
const sum = (stats, name) => (stats["arle_" + name] || []).reduce((total, one) => total + (one.value ?? 0), 0);
const of = (stats, name, model) => (stats["arle_" + name] || []).find((one) => one.model_name === model) || {};
const COLUMNS = [
  ["Model", (s, m) => m],
  ["running", (s, m) => show(of(s, "num_requests_running", m).value)],
  ["waiting", (s, m) => show(of(s, "num_requests_waiting", m).value)],
  ["KV used", (s, m) => show(100 * of(s, "kv_cache_usage_perc", m).value, " %")],
  ["cached pages", (s, m) => show(of(s, "kv_pages_cached", m).value)],
  ["weights", (s, m) => show(of(s, "weights_version", m).value)],
  ["generated", (s, m) => show(of(s, "generation_tokens_total", m).value)],
  ["TTFT p50", (s, m) => time(of(s, "time_to_first_token_seconds", m).p50)],
  ["p95", (s, m) => time(of(s, "time_to_first_token_seconds", m).p95)],
  ["ITL p50", (s, m) => time(of(s, "inter_token_latency_seconds", m).p50)],
  ["p95", (s, m) => time(of(s, "inter_token_latency_seconds", m).p95)],
];
const clock = (ms) => new Date(ms).toLocaleTimeString("en-GB");
const charts = [
  [new Chart($("charts"), "Throughput, tokens/s", ["generated", "prompt"], brief, clock), ["generated", "prompt"]],
  [new Chart($("charts"), "KV pages in use, %", ["most used model"], brief, clock), ["kv"]],
  [new Chart($("charts"), "Sequences", ["running", "waiting"], brief, clock), ["running", "waiting"]],
  [new Chart($("charts"), "Time to first token, ms", ["mean of new ones"], brief, clock), ["ttft"]],
  [new Chart($("charts"), "Between two tokens, ms", ["mean of new ones"], brief, clock), ["itl"]],
];
function serving(stats) {
  const models = stats.arle_num_requests_running.map((one) => one.model_name),
    t = performance.now(),
    now = {x: Date.now()};
  $("names").textContent = models.join(", ");
  const total = (name, key) => (stats["arle_" + name] || []).reduce((all, one) => all + (one[key] || 0), 0);
  const look = {t, generated: sum(stats, "generation_tokens_total"), prompt: sum(stats, "prompt_tokens_total")};
  for (const [key, name] of [
    ["ttft", "time_to_first_token_seconds"],
    ["itl", "inter_token_latency_seconds"],
  ]) {
    look[key] = [total(name, "sum"), total(name, "count")];
    if (before && look[key][1] > before[key][1])
      now[key] = (1000 * (look[key][0] - before[key][0])) / (look[key][1] - before[key][1]);
  }
  if (before)
    for (const key of ["generated", "prompt"]) now[key] = Math.max(0, ((look[key] - before[key]) / (t - before.t)) * 1000);
  before = look;
  now.running = sum(stats, "num_requests_running");
  now.waiting = sum(stats, "num_requests_waiting");
  now.kv = 100 * Math.max(...models.map((model) => of(stats, "kv_cache_usage_perc", model).value));
  history = [...history, now].slice(-KEPT);
  const ended = Object.entries(
    (stats.arle_request_success_total || []).reduce(
      (all, one) => ({...all, [one.finished_reason]: (all[one.finished_reason] || 0) + one.value}),
      {},
    ),
  );
  tile($("tiles"), "rate", "Generation")(show(now.generated ?? 0), "tokens/s");
  tile($("tiles"), "generated", "Generated")(show(look.generated), "tokens so far");
  tile($("tiles"), "prompt", "Prompts")(show(look.prompt), `tokens, ${show(sum(stats, "prompt_tokens_cached_total"))} cached`);
  tile($("tiles"), "running", "Running")(show(now.running), `sequences, ${show(now.waiting)} waiting`);
  tile($("tiles"), "kv", "KV pages")(show(now.kv, " %"), `${show(sum(stats, "kv_pages_cached"))} prefix pages`);
  tile(
    $("tiles"),
    "ended",
    "Ended",
  )(
    show(ended.reduce((all, [, value]) => all + value, 0)),
    ended
      .filter(([, value]) => value)
      .map(([name, value]) => `${value} ${name}`)
      .join(", "),
  );
  $("columns").replaceChildren(...COLUMNS.map(([name]) => make("th", "", name)));
  $("models").replaceChildren(
    ...models.map((model) => {
      const row = make("tr");
      row.append(...COLUMNS.map(([, read]) => make("td", "", read(stats, model))));
      return row;
    }),
  );
  for (const [chart, keys] of charts)
    chart.draw(keys.map((key) => history.filter((one) => one[key] !== undefined).map((one) => [one.x, one[key]])));
}

// Training: the status, and what happened since the last event that is known.
const training = document.body.dataset.training !== "none";
let seq = 0,
  first,
  steps = new Map(),
  samples = [],
  happened = [],
  paused = false;
const step = (value) => "step " + Math.round(value);
const RUN = [
  ["Loss", ["loss"]],
  ["KL to the teacher, nats a token", ["teacher_kl", "eval/kl"]],
  ["Mismatch of sampler and trainer, nats", ["mismatch_kl"]],
  ["Reward", ["reward"]],
  ["Agreement with the teacher", ["agreement", "eval/agreement"]],
  ["Entropy, nats", ["entropy", "teacher_entropy"]],
  ["Held-out perplexity", ["eval/perplexity", "eval/teacher_perplexity"]],
  ["Gradient's norm", ["optim/grad_norm"]],
  ["Learning rate", ["optim/lr"]],
  ["Tokens of a completion", ["completions/mean_length"]],
  ["Seconds of a step", ["time/rollout", "time/teacher", "time/train", "time/optim"]],
  ["Training throughput, tokens/s", ["perf/throughput"]],
].map(([title, names]) => [names, training && new Chart($("runCharts"), title, names, brief, step)]);
const TELL = {
  run_start: (e) => `run ${e.strings.run_id} begins at step ${e.step}`,
  run_end: (e) => `run ends at step ${e.step}: ${e.strings.status}`,
  checkpoint: (e) => `checkpoint of step ${e.step}: ${e.strings.path}`,
  status: (e) =>
    [
      ...Object.keys(e.strings)
        .filter((name) => name !== "reason")
        .map((name) => name.replaceAll("_", " ")),
      ...Object.entries(e.scalars || {}).map(([name, value]) => `${name} ${value}`),
      e.step === undefined ? "" : `after step ${e.step}`,
    ].join(" "),
};
function take(event) {
  first ??= event.seq;
  if (event.kind === "metric") steps.set(event.step, {...steps.get(event.step), ...event.scalars});
  else if (event.kind === "sample") samples.push({step: event.step, ...event.strings});
  else if (TELL[event.kind]) happened = [{at: event.ts_ms, text: TELL[event.kind](event)}, ...happened].slice(0, 30);
}
function drawSamples() {
  const prompts = [...new Set(samples.map((one) => one.prompt))],
    chosen = prompts.includes($("prompt").value) ? $("prompt").value : prompts[0];
  $("sampleBox").hidden = prompts.length === 0;
  if ($("prompt").options.length !== prompts.length)
    $("prompt").replaceChildren(
      ...prompts.map((text) => {
        const option = make("option", "", text.length > 90 ? text.slice(0, 89) + "\u2026" : text);
        option.value = text;
        return option;
      }),
    );
  $("prompt").value = chosen;
  $("samples").replaceChildren(
    ...samples
      .filter((one) => one.prompt === chosen)
      .reverse()
      .flatMap((one) =>
        [
          ["teacher", "teacher"],
          ["completion", "student"],
        ]
          .filter(([key]) => one[key] !== undefined)
          .map(([key, who]) => {
            const node = make("div", "sample");
            node.append(make("h3", "", `${who}, step ${one.step}`), make("p", "", one[key].trim() || "(nothing)"));
            return node;
          }),
      ),
  );
}
async function follow() {
  const status = await ask("/v1/train/status");
  const {events, latest_seq: latest} = await ask("/v1/train/events?after_seq=" + seq);
  if (latest < seq) {
    seq = 0;
    first = undefined;
    steps = new Map();
    samples = [];
    happened = [];
    return;
  }
  $("run").hidden = false;
  paused = status.paused;
  const [word, tone] = status.finished
    ? ["finished", "quiet"]
    : paused
      ? ["paused", "warn"]
      : status.started
        ? ["running", "good"]
        : ["starting", "quiet"];
  $("phase").textContent = word;
  $("phase").className = tone;
  $("progress").max = status.total_iters || 1;
  $("progress").value = status.iter;
  tile($("runTiles"), "step", "Step")(show(status.iter), `of ${show(status.total_iters)}`);
  tile($("runTiles"), "loss", "Loss")(show(status.last_loss), "newest step");
  tile($("runTiles"), "kl", "KL")(show(status.last_kl), "nats a token");
  tile($("runTiles"), "lr", "Learning rate")(show(status.last_lr), "newest step");
  tile($("runTiles"), "wall", "Time")(show(Math.round(status.wall_secs), " s"), "since the start");
  $("pause").textContent = paused ? "Resume" : "Pause";
  if (!events.length) return;
  events.forEach(take);
  seq = events.at(-1).seq;
  const rows = [...steps].sort((a, b) => a[0] - b[0]);
  for (const [names, chart] of RUN)
    chart.draw(names.map((name) => rows.filter(([, one]) => Number.isFinite(one[name])).map(([x, one]) => [x, one[name]])));
  $("kept").textContent = first > 1 ? "(the newest; older events are not kept)" : "";
  drawSamples();
  $("events").replaceChildren(
    ...(happened.length ? happened : [{at: Date.now(), text: "nothing but steps among the events that are kept"}]).map((one) => {
      const item = make("li");
      item.append(make("span", "quiet", clock(one.at) + "  "), one.text);
      return item;
    }),
  );
}
async function steer(action, body) {
  sessionStorage.setItem("arle.admin", $("admin").value);
  try {
    const answer = await ask("/v1/train/" + action, {method: "POST", body, key: saved("admin") || saved("key")});
    [$("said").className, $("said").textContent] = ["good", Object.keys(answer)[0].replaceAll("_", " ")];
  } catch (error) {
    [$("said").className, $("said").textContent] = ["bad", error.message];
  }
}
$("save").onclick = () => steer("save");
$("pause").onclick = () => steer(paused ? "resume" : "pause");
$("stop").onclick = () => {
  const sure = $("stop").textContent !== "Stop";
  [$("stop").textContent, $("stop").className] = sure ? ["Stop", ""] : ["Really stop", "bad"];
  if (sure) steer("stop");
  else
    setTimeout(() => {
      [$("stop").textContent, $("stop").className] = ["Stop", ""];
    }, 4000);
};
$("setLr").onclick = () => {
  const lr = Number($("lr").value);
  if ($("lr").value.trim() && Number.isFinite(lr)) steer("lr", {lr});
  else [$("said").className, $("said").textContent] = ["bad", "the learning rate is no number"];
};
$("admin").value = saved("admin");
$("prompt").onchange = drawSamples;
$("login").onsubmit = (event) => {
  event.preventDefault();
  sessionStorage.setItem("arle.key", $("key").value.trim());
  look();
};

function tell(text, tone) {
  [$("state").textContent, $("state").className] = [text, tone];
}
let timer;
async function look() {
  clearTimeout(timer);
  let again = true;
  if (!document.hidden)
    try {
      serving(await ask("/v1/stats"));
      [$("login").hidden, $("main").hidden] = [true, false];
      $("updated").textContent = clock(Date.now());
      tell("up", "good");
      if (training) await follow();
    } catch (error) {
      again = error.status !== 401;
      tell(
        again ? (error.status ? error.message : "does not answer") : saved("key") ? "the key is not valid" : "locked",
        again ? "bad" : "warn",
      );
      if (!again) [$("login").hidden, $("main").hidden] = [false, true];
    }
  if (again) timer = setTimeout(look, PERIOD);
}
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && $("login").hidden) look();
});
look();
