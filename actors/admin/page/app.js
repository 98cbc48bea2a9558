// The dashboard's script: asks the admin API for its overview each second, and shows it.
//
// The token is in `token` and, if its owner wishes, in this tab's sessionStorage; it leaves the page only as a bearer
// in requests to the page's own origin. Everything that is shown is put there as text: the page's policy (Trusted
// Types) does not even let text become markup.

const API = "/admin/v1";
const STORED = "portcullis-admin-token";
const EVERY_MS = 1000;
const PATIENCE_MS = 8000;
const MOST_EVENTS = 400;
const SEVERITIES = ["info", "warning", "error", "critical"];
const TONES = {
  healthy: "good", up: "good", closed: "good", success: "good",
  degraded: "warn", starting: "warn", stopping: "warn", suspect: "warn", half_open: "warn", warning: "warn", refused: "warn",
  unhealthy: "bad", down: "bad", open: "bad", failed: "bad", failure: "bad", error: "bad", critical: "bad",
};

const at = (id) => document.getElementById(id);

let token = "";
let paused = false;
let timer = 0;
let stay = 0; // counts sign-ins and sign-outs: what was begun before one does not end after it
let asks = 0; // counts questions: only the answer to the last one is shown
let seen = 0; // when the last answer came
let lastEvent = 0;
let events = [];
let shown = null;

// --- showing

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function setClass(node, name) {
  if (node.className !== name) node.className = name;
}

function make(name, className = "", text = "") {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text) node.textContent = text;
  return node;
}

// The rows of a table by key: a row that stays is changed where it differs, so that focus and selection stay with it.
// A cell is {text, tone, className, title, actions: [[label, description, run], …]}.
function fill(body, items) {
  const rows = new Map();
  for (const row of body.rows) rows.set(row.dataset.key, row);
  let before = body.firstElementChild;
  for (const item of items) {
    let row = rows.get(item.key);
    if (row) {
      rows.delete(item.key);
    } else {
      row = make("tr");
      row.dataset.key = item.key;
    }
    if (row === before) before = row.nextElementSibling;
    else body.insertBefore(row, before);
    setClass(row, item.className ?? "");
    item.cells.forEach((cell, index) => fillCell(row, index, cell));
  }
  for (const row of rows.values()) row.remove();
}

function fillCell(row, index, cell) {
  const node = row.cells[index] ?? row.appendChild(make("td"));
  setClass(node, cell.className ?? "");
  if (cell.title !== undefined && node.title !== cell.title) node.title = cell.title;
  if (cell.actions) {
    fillActions(node, cell.actions);
  } else if (cell.tone !== undefined) {
    if (!node.firstElementChild) node.append(make("span"));
    setClass(node.firstElementChild, `pill ${cell.tone}`);
    setText(node.firstElementChild, cell.text);
  } else {
    setText(node, cell.text);
  }
}

function fillActions(node, actions) {
  actions.forEach(([label, description, act], index) => {
    let button = node.children[index];
    if (!button) {
      button = make("button");
      button.type = "button";
      node.append(button, " ");
    }
    setText(button, label);
    if (button.getAttribute("aria-label") !== description) button.setAttribute("aria-label", description);
    button.onclick = act;
  });
  while (node.children.length > actions.length) node.lastElementChild.remove();
}

function figures(list, pairs) {
  pairs.forEach(([name, value, bad], index) => {
    let box = list.children[index];
    if (!box) {
      box = make("div");
      box.append(make("dt"), make("dd"));
      list.append(box);
    }
    setText(box.firstElementChild, name);
    setText(box.lastElementChild, value);
    setClass(box.lastElementChild, bad ? "bad" : "");
  });
  while (list.children.length > pairs.length) list.lastElementChild.remove();
}

const plain = (value) => (value === null || value === undefined || value === "" ? "–" : String(value));
const cell = (value, className = "") => ({ text: plain(value), className });
const NOTHING = { text: "", className: "num" };
const num = (value) => cell(typeof value === "number" ? count(value) : value, "num");
const tone = (state) => ({ text: plain(state).replaceAll("_", " "), tone: Object.hasOwn(TONES, state) ? TONES[state] : "" });

function count(value) {
  if (typeof value !== "number") return "–";
  if (Math.abs(value) < 1e5) return value.toLocaleString("en", { maximumFractionDigits: value % 1 ? 1 : 0 });
  return value.toLocaleString("en", { notation: "compact", maximumFractionDigits: 1 });
}

function bytes(value) {
  if (typeof value !== "number") return "–";
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (value < 1024 || unit === "GiB") return `${value < 10 && unit !== "B" ? value.toFixed(1) : Math.round(value)} ${unit}`;
    value /= 1024;
  }
  return "–";
}

function duration(seconds) {
  if (typeof seconds !== "number") return "–";
  let left = Math.floor(seconds);
  const words = [];
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["m", 60], ["s", 1]]) {
    const many = Math.floor(left / length);
    left -= many * length;
    if (many || (unit === "s" && !words.length)) words.push(`${many}${unit}`);
  }
  return words.slice(0, 2).join(" ");
}

function show(data) {
  shown = data;
  showHealth(data.health, data.tree);
  showTiles(data);
  showServers(data.health.upstreams, data.breaker);
  showFigures(data);
  showActors(data.tree, data.health.actors);
  showConnections(data.connections);
  showBlocks(data.blocks);
  takeEvents(data.events);
}

function showHealth(health, tree) {
  const status = at("status");
  setText(status, tree?.draining ? "draining" : health.status);
  setClass(status, `pill ${tree?.draining ? "warn" : TONES[health.status] ?? ""}`);
  status.hidden = false;
  const facts = [`up ${duration(health.uptime)}`, `version ${plain(health.version)}`];
  if (!health.ready) facts.push("takes no new clients");
  setText(at("facts"), facts.join(" · "));
  document.title = health.status === "healthy" ? "Portcullis" : `${health.status} · Portcullis`;
  at("reasons-box").hidden = !health.reasons.length;
  at("reasons").replaceChildren(...health.reasons.map((reason) => make("li", "", String(reason))));
}

function showTiles({ health, rates, connections, blocks, limiter }) {
  const now = rates.present;
  setText(at("t-connections"), count(health.connections.total));
  const kinds = Object.entries(health.connections).filter(([name]) => name !== "total");
  setText(at("t-connections-sub"), kinds.map(([name, many]) => `${name} ${count(many)}`).join(" · "));
  setText(at("t-in"), `${count(now.messages_in)}/s`);
  setText(at("t-in-sub"), `${bytes(now.bytes_in)}/s`);
  setText(at("t-out"), `${count(now.messages_out)}/s`);
  setText(at("t-out-sub"), `${bytes(now.bytes_out)}/s`);
  setText(at("t-refused"), `${count(now.refused)}/s`);
  setText(at("t-refused-sub"), `${count(now.opened)}/s opened in all`);
  setText(at("t-blocks"), count(blocks.total));
  setText(at("t-blocks-sub"), `${count(limiter.scored)} with a score`);
  setText(at("t-restarts"), count(health.restarts));
  setClass(at("t-restarts"), health.restarts ? "figure bad" : "figure");
  setText(at("t-restarts-sub"), "of workers and actors");
  setText(at("connections-note"), note(connections.rows.length, connections.total, connections.missing));
  spark(at("s-in"), rates.history, "messages_in");
  spark(at("s-out"), rates.history, "messages_out");
  spark(at("s-refused"), rates.history, "refused");
}

function note(rows, total, missing) {
  const parts = rows < total ? [`the ${count(rows)} busiest of ${count(total)}`] : [];
  if (missing.length) parts.push(`no answer from ${missing.join(", ")}`);
  return parts.join("; ");
}

function spark(svg, history, name) {
  const highest = Math.max(1, ...history.map((look) => look[name]));
  const points = history.map((look) => `${(120 - look.age_s).toFixed(1)} ${(30 - (28 * look[name]) / highest).toFixed(1)}`);
  const line = points.length > 1 ? `M${points.join("L")}` : "";
  const area = line ? `${line}L120 32L${points[0].split(" ")[0]} 32Z` : "";
  for (const [className, path] of [["area", area], ["line", line]]) {
    let node = svg.querySelector(`.${className}`);
    if (!node) {
      node = document.createElementNS("http://www.w3.org/2000/svg", "path");
      node.setAttribute("class", className);
      svg.append(node);
    }
    node.setAttribute("d", path);
  }
}

function showServers(upstreams, breaker) {
  fill(at("servers"), Object.entries(upstreams).map(([name, server]) => {
    const times = breaker.circuits[name] ? ` (${breaker.circuits[name]}× in a row)` : "";
    const again = server.breaker === "open" ? `, probe in ${duration(server.retry_in_ms / 1000)}` : "";
    const state = tone(server.breaker);
    const reset = ["Reset…", `Reset the breaker of ${name}`, () => confirmReset(name)];
    return {
      key: name,
      cells: [
        { ...cell(name, "name"), title: name }, tone(server.state), { ...state, text: state.text + again + times },
        num(server.in_flight), num(server.sessions), num(server.restarts),
        { className: "actions", actions: server.breaker === "closed" || server.breaker === "unknown" ? [] : [reset] },
      ],
    };
  }));
}

function showFigures({ limiter, audit, refused }) {
  const limit = (most, ms) => `${count(most)} / ${duration(ms / 1000)}`;
  const blocked = ["refused_block", "refused_limit", "refused_rate", "refused_unavailable"];
  figures(at("limiter"), [
    ["State", !limiter.answering ? "does not answer" : limiter.enabled ? "on" : "off", !limiter.answering],
    ["Limit", limit(limiter.max_requests, limiter.window_ms)],
    ["Burst", limit(limiter.burst_requests, limiter.burst_window_ms)],
    ["Clients tracked", count(limiter.keys)],
    ["Leases out", count(limiter.leases_outstanding)],
    ["Units granted", count(limiter.units_granted)],
    ["Asked in vain", count(limiter.exhausted)],
    ["Offences", count(limiter.offences)],
  ]);
  figures(at("refused"), [
    ["Connections: blocked", count(limiter[blocked[0]])],
    ["Connections: limit", count(limiter[blocked[1]])],
    ["Connections: rate", count(limiter[blocked[2]])],
    ["Messages: invalid", count(refused.invalid)],
    ["Messages: denied", count(refused.denied)],
    ["Messages: content", count(refused.content_refused)],
  ]);
  figures(at("audit"), [
    ["State", !audit.answering ? "does not answer" : audit.failing ? "cannot write" : audit.enabled ? "writing" : "off", !audit.answering || Boolean(audit.failing)],
    ["Records", count(audit.records)],
    ["Coalesced", count(audit.coalesced)],
    ["Dropped", count(audit.dropped), audit.dropped > 0],
  ]);
}

function showActors(tree, answers) {
  const rows = [];
  for (const worker of tree?.workers ?? []) {
    rows.push({
      key: `w ${worker.name}`, className: "worker",
      cells: [
        cell(worker.name), tone(worker.state), num(worker.restarts), NOTHING, NOTHING,
        cell(worker.rss_kb ? bytes(worker.rss_kb * 1024) : "", "num"), cell(worker.pid || "", "num"),
      ],
    });
    for (const actor of worker.actors) {
      const silent = actor.state === "up" && answers[actor.name]?.answering === false;
      rows.push({
        key: `a ${worker.name} ${actor.name}`, className: "actor",
        cells: [
          cell(actor.name), silent ? { text: "silent", tone: "warn" } : tone(actor.state), num(actor.restarts),
          num(actor.mailbox.queued), num(actor.mailbox.received), NOTHING, NOTHING,
        ],
      });
    }
  }
  fill(at("actors"), rows);
}

function showConnections({ rows }) {
  at("no-connections").hidden = rows.length > 0;
  // In an order that stays: a button must not move away under the pointer.
  rows.sort((one, other) => other.age_s - one.age_s || String(one.id).localeCompare(String(other.id)));
  fill(at("connections"), rows.map((row) => ({
    key: String(row.id),
    cells: [
      { ...cell(row.id, "mono"), title: `${plain(row.transport)}, worker ${plain(row.worker)}` }, cell(row.peer, "mono"),
      { ...cell(row.principal, "name"), title: plain(row.principal) }, cell(row.upstream, "name"),
      cell(duration(row.age_s), "num"), cell(duration(row.idle_s), "num"), num(row.messages_in), num(row.messages_out),
      { className: "actions", actions: [
        ["Block…", `Block the address of ${plain(row.peer)}`, () => openBlock(host(String(row.peer)))],
        ["Disconnect…", `Disconnect ${plain(row.id)}`, () => confirmDisconnect(row)],
      ] },
    ],
  })));
}

const host = (peer) => peer.replace(/:\d+$/, "").replace(/^\[|\]$/g, "");

function showBlocks({ blocks, total, trouble }) {
  setText(at("blocks-note"), trouble ?? (blocks.length < total ? `${count(blocks.length)} of ${count(total)}` : ""));
  at("no-blocks").hidden = blocks.length > 0 || Boolean(trouble);
  fill(at("blocks"), blocks.map((block) => {
    const target = block.ip ?? `principal:${block.principal}`;
    return {
      key: target,
      cells: [
        { ...cell(target, "name mono"), title: target }, cell(duration(block.left_s), "num"),
        cell(`${block.automatic ? "" : "by "}${plain(block.reason)}${block.strikes > 1 ? ` (${block.strikes}×)` : ""}`, "wrap"),
        { className: "actions", actions: [["Unblock…", `Unblock ${target}`, () => confirmUnblock(target)]] },
      ],
    };
  }));
}

function takeEvents(answer) {
  const trouble = at("events-trouble");
  setText(trouble, answer.trouble ?? "");
  trouble.hidden = !answer.trouble;
  if (answer.last < lastEvent) {
    events = []; // the log has begun anew
    lastEvent = 0;
    return;
  }
  if (answer.events.length) {
    events = [...answer.events.toReversed(), ...events].slice(0, MOST_EVENTS);
  }
  lastEvent = answer.last;
  showEvents();
}

const APART = new Set(["time", "seq", "event", "severity", "outcome", "peer_ip", "peer_port", "principal", "detail"]);

function showEvents() {
  const least = SEVERITIES.indexOf(at("severity").value);
  const wanted = at("find").value.toLowerCase();
  const rows = [];
  for (const event of events) {
    if (SEVERITIES.indexOf(event.severity) < least) continue;
    const who = [event.principal, event.peer_ip].filter(Boolean).join(" @ ");
    const what = [...Object.entries(event).filter(([name]) => !APART.has(name)), ...Object.entries(event.detail ?? {})]
      .map(([name, value]) => `${name}=${value}`).join("  ");
    if (wanted && !`${event.event} ${event.outcome} ${who} ${what}`.toLowerCase().includes(wanted)) continue;
    rows.push({
      key: String(event.seq),
      cells: [
        { ...cell(clock(event.time), "mono"), title: `${event.time}, record ${event.seq}` },
        { text: plain(event.severity), tone: event.severity === "info" ? "" : TONES[event.severity] ?? "" },
        cell(event.event), tone(event.outcome), { ...cell(who, "name mono"), title: who }, cell(what, "wrap"),
      ],
    });
  }
  at("no-events").hidden = rows.length > 0;
  fill(at("events"), rows);
}

function clock(time) {
  const moment = new Date(time);
  if (Number.isNaN(moment.getTime())) return plain(time);
  const day = moment.toDateString() === new Date().toDateString() ? "" : `${moment.toLocaleDateString("sv")} `;
  return day + moment.toLocaleTimeString("sv");
}

// --- asking

class Refusal extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

async function ask(method, path, body) {
  const headers = { Accept: "application/json", Authorization: `Bearer ${token}` };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const answer = await fetch(API + path, {
    method, headers, body: body === undefined ? undefined : JSON.stringify(body), cache: "no-store", credentials: "omit",
    redirect: "error", referrerPolicy: "no-referrer", signal: AbortSignal.timeout(PATIENCE_MS),
  });
  const text = await answer.text();
  let found = {};
  try {
    found = JSON.parse(text);
  } catch {
    if (answer.ok) throw new Refusal(answer.status, "what answers is no gateway");
  }
  if (!answer.ok) throw new Refusal(answer.status, found.detail ?? `HTTP status ${answer.status}`);
  return found;
}

async function refresh() {
  clearTimeout(timer);
  asks += 1;
  const mine = asks;
  let wait = EVERY_MS;
  try {
    const data = await ask("GET", `/overview?after=${lastEvent}&calls=${Number(at("calls").checked)}`);
    if (mine !== asks) return;
    seen = Date.now();
    at("trouble").hidden = true;
    enter();
    show(data);
  } catch (error) {
    if (mine !== asks) return;
    if (error instanceof Refusal && (error.status === 401 || error.status === 403)) {
      leave(error.status === 401 ? "This is not the gateway's admin token." : error.message);
      return;
    }
    wait = 2 * EVERY_MS;
    lost(error);
  }
  showPulse();
  if (!paused && !document.hidden) timer = setTimeout(refresh, wait);
}

function lost(error) {
  const why = error instanceof Refusal ? error.message : "the gateway is out of reach";
  if (!seen) {
    setText(at("sign-in-error"), `No luck: ${why}. Trying again.`);
    return;
  }
  setText(at("trouble"), `No news since ${new Date(seen).toLocaleTimeString("sv")}: ${why}. Trying again.`);
  at("trouble").hidden = false;
}

function showPulse() {
  const failed = !at("trouble").hidden;
  setText(at("live"), failed ? "no answer" : paused ? "paused" : "live");
  setClass(at("live"), `live${failed ? " lost" : paused ? " stopped" : ""}`);
}

// --- coming and going

function enter() {
  if (!at("board").hidden) return;
  at("sign-in").hidden = true;
  at("token").value = "";
  for (const id of ["board", "live", "pause", "leave"]) at(id).hidden = false;
  at("main").focus();
}

function leave(why = "") {
  stay += 1;
  asks += 1;
  clearTimeout(timer);
  token = "";
  sessionStorage.removeItem(STORED);
  paused = false;
  setText(at("pause"), "Pause");
  at("pause").setAttribute("aria-pressed", "false");
  seen = lastEvent = 0;
  events = [];
  shown = null;
  for (const id of ["confirm", "block-dialog"]) at(id).close();
  for (const id of ["board", "live", "pause", "leave", "status"]) at(id).hidden = true;
  // What was shown is nobody's business any more.
  for (const body of document.querySelectorAll("tbody, dl, #reasons, .figure, .sub, .spark")) body.replaceChildren();
  setText(at("facts"), "");
  setText(at("said"), "");
  document.title = "Portcullis";
  setText(at("sign-in-error"), why);
  at("sign-in").hidden = false;
  at("token").focus();
}

function signIn(event) {
  event.preventDefault();
  const given = at("token").value.trim();
  if (!/^[\x21-\x7e]+$/.test(given)) {
    setText(at("sign-in-error"), "A token has no spaces and only ASCII characters.");
    return;
  }
  setText(at("sign-in-error"), "");
  token = given;
  if (at("keep").checked) sessionStorage.setItem(STORED, token);
  stay += 1;
  refresh();
}

function togglePause() {
  paused = !paused;
  setText(at("pause"), paused ? "Go on" : "Pause");
  at("pause").setAttribute("aria-pressed", String(paused));
  if (paused) {
    clearTimeout(timer);
    showPulse();
  } else {
    refresh();
  }
}

// --- acting, after a confirmation

let confirmed = null;

function confirmThat({ title, text, target, label, act }) {
  setText(at("confirm-title"), title);
  setText(at("confirm-text"), text);
  setText(at("confirm-target"), target);
  setText(at("confirm-yes"), label);
  setText(at("confirm-error"), "");
  at("confirm-yes").disabled = false;
  confirmed = act;
  at("confirm").showModal();
  at("confirm-no").focus();
}

async function doIt(event) {
  event.preventDefault();
  await attempt(at("confirm"), at("confirm-error"), at("confirm-yes"), confirmed);
}

// Close the dialog when it is done, and say so; otherwise say in it why not.
async function attempt(dialog, complaint, button, act) {
  button.disabled = true;
  const mine = stay;
  try {
    const said = await act();
    if (mine !== stay) return;
    dialog.close();
    say(said);
    if (!paused) refresh();
  } catch (error) {
    if (mine !== stay) return;
    setText(complaint, error instanceof Refusal ? error.message : "The gateway is out of reach; whether it was done is unknown.");
  } finally {
    button.disabled = false;
  }
}

let quiet = 0;

function say(text) {
  setText(at("said"), text);
  clearTimeout(quiet);
  quiet = setTimeout(() => setText(at("said"), ""), 6000);
}

function confirmDisconnect(row) {
  confirmThat({
    title: "Disconnect this client?",
    text: "Its calls in flight are lost. It may connect again at once.",
    target: `${row.id}  ${plain(row.peer)}  ${row.principal ?? ""}`,
    label: "Disconnect",
    act: async () => {
      await ask("POST", `/connections/${encodeURIComponent(row.id)}/disconnect`);
      return `Disconnected ${row.id}.`;
    },
  });
}

function confirmUnblock(target) {
  confirmThat({
    title: "Lift this block?",
    text: "The client may connect again at once.",
    target,
    label: "Unblock",
    act: async () => {
      await ask("DELETE", `/blocks/${encodeURIComponent(target)}`);
      return `Unblocked ${target}.`;
    },
  });
}

function confirmReset(name) {
  confirmThat({
    title: "Reset this breaker?",
    text: "Calls pass to the server again, whether it has recovered or not.",
    target: name,
    label: "Reset",
    act: async () => {
      await ask("POST", `/breakers/${encodeURIComponent(name)}/reset`);
      return `The breaker of ${name} is closed.`;
    },
  });
}

function openBlock(address = "") {
  at("block-kind").value = "ip";
  at("block-target").value = address;
  setText(at("block-error"), "");
  nameTarget();
  at("block-dialog").showModal();
  at("block-target").focus();
}

function nameTarget() {
  setText(at("block-target-label"), at("block-kind").value === "ip" ? "Address (IPv6: its /64)" : "Principal");
}

async function block(event) {
  event.preventDefault();
  const kind = at("block-kind").value;
  const target = at("block-target").value.trim();
  const wish = { [kind]: target, for_ms: Number(at("block-for").value) };
  await attempt(at("block-dialog"), at("block-error"), at("block-form").querySelector(".danger"), async () => {
    await ask("POST", "/blocks", wish);
    return `Blocked ${target}.`;
  });
}

// --- the beginning

at("sign-in").addEventListener("submit", signIn);
at("leave").addEventListener("click", () => leave());
at("pause").addEventListener("click", togglePause);
at("confirm-form").addEventListener("submit", doIt);
at("confirm-no").addEventListener("click", () => at("confirm").close());
at("block").addEventListener("click", () => openBlock());
at("block-form").addEventListener("submit", block);
at("block-no").addEventListener("click", () => at("block-dialog").close());
at("block-kind").addEventListener("change", nameTarget);
at("calls").addEventListener("change", () => {
  events = [];
  lastEvent = 0;
  if (token && !paused) refresh();
});
for (const [id, name] of [["severity", "change"], ["find", "input"]]) at(id).addEventListener(name, () => shown && showEvents());
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && token && !paused) refresh();
});

token = sessionStorage.getItem(STORED) ?? "";
if (token) refresh();
else leave();
