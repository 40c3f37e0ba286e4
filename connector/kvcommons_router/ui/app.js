// The router's page: asks it every two seconds, shows what it says. Texts are set as text, never as markup.
"use strict";

const EVERY_MS = 2000;
const WIDTH_MAX = 46;
const byId = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en", { maximumFractionDigits: 1, notation: "compact" });
let key = sessionStorage.getItem("kvcommons-key") || "";
let chosen = "";

function make(tag, attributes, ...children) {
  const one = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) one.setAttribute(name, value);
  one.append(...children);
  return one;
}

function drawn(tag, attributes, text) {
  const one = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) one.setAttribute(name, value);
  if (text !== undefined) one.textContent = text;
  return one;
}

async function ask(path) {
  const answer = await fetch(path, { headers: key ? { Authorization: "Bearer " + key } : {}, cache: "no-store" });
  if (answer.status === 401 || answer.status === 403) throw new Error("the router asks for an API key: give yours above");
  if (!answer.ok) throw new Error("the router answers " + answer.status);
  return answer.json();
}

const sum = (values) => values.reduce((total, value) => total + value, 0);
const share = (part, whole) => (whole > 0 ? Math.round((1000 * part) / whole) / 10 + " %" : "–");
const reused = (replica) => sum(Object.values(replica.actual_tokens));
const bytes = (count) => (!count ? "–" : count < 2 ** 30 ? (count / 2 ** 20).toFixed(0) + " MiB" : (count / 2 ** 30).toFixed(1) + " GiB");

function bar(own, commons, total) {
  const all = make("div", { class: "bar", title: `own cache ${own}, commons ${commons}, computed ${Math.max(0, total - own - commons)} tokens` });
  for (const [name, tokens] of [["own", own], ["commons", commons]]) {
    const part = make("i", { class: name });
    part.style.width = total > 0 ? Math.min(100, (100 * tokens) / total) + "%" : "0";
    all.append(part);
  }
  return all;
}

function table(id, headings, rows, nothing) {
  const head = make("tr", {}, ...headings.map(([name, kind]) => make("th", { class: kind, scope: "col" }, name)));
  const lines = rows.map((row) => make("tr", {}, ...row.map((cell, at) => make("td", { class: headings[at][1] }, cell))));
  if (!lines.length) lines.push(make("tr", {}, make("td", { colspan: headings.length, class: "long" }, nothing)));
  byId(id).replaceChildren(make("thead", {}, head), make("tbody", {}, ...lines));
}

function figures(pool) {
  const own = sum(pool.replicas.map((one) => one.actual_tokens.own));
  const commons = sum(pool.replicas.map((one) => one.actual_tokens.commons));
  const predicted = sum(pool.replicas.map((one) => sum(Object.values(one.predicted_tokens))));
  const shown = [
    [share(own + commons, pool.totals.prompt_tokens), "of prompt tokens reused"],
    [share(commons, pool.totals.prompt_tokens), "from the commons"],
    [number.format(predicted) + " / " + number.format(own + commons), "tokens predicted / reused"],
    [number.format(sum(pool.replicas.map((one) => one.saved_prefill_seconds))) + " s", "of prefill saved"],
    [pool.totals.requests_in_flight + " / " + pool.totals.queued_requests, "requests under way / waiting"],
    [pool.replicas.filter((one) => one.up).length + " of " + pool.replicas.length, "replicas serve"],
  ];
  byId("numbers").replaceChildren(...shown.map(([value, text]) => make("div", { class: "number" }, make("b", {}, value), make("span", {}, text))));
}

function state(replica) {
  if (replica.presence !== "ready") return make("span", { class: "warn" }, replica.presence);
  return replica.up ? make("span", { class: "good" }, "serves") : make("span", { class: "bad" }, "down");
}

function replicas(pool) {
  const failed = (one) => sum(Object.entries(one.attempts).filter(([name]) => !["ok", "cancelled"].includes(name)).map((pair) => pair[1]));
  const headings = [["Replica", ""], ["Model", ""], ["Role", ""], ["Node", ""], ["State", ""], ["Waiting tokens", "n"], ["Decoding", "n"], ["Prefill tokens/s", "n"], ["Reused", "n"], ["Saved", "n"], ["Failed", "n"]];
  const rows = pool.replicas.map((one) => [
    one.name, one.models.join(", "), one.role, one.node || "–", state(one), number.format(one.waiting_tokens), String(one.decoding_requests),
    one.prefill_tokens_per_second === null ? "–" : number.format(one.prefill_tokens_per_second), number.format(reused(one)), number.format(one.saved_prefill_seconds) + " s", String(failed(one)),
  ]);
  table("replicas", headings, rows, "No replica is known: see the router's instances, or whether its pods are ready.");
}

function nodes(pool) {
  const at = (node) => pool.replicas.filter((one) => one.node === node.name).map((one) => one.name).join(", ");
  const rows = pool.nodes.map((one) => [one.name, one.zone || "–", bytes(one.capacity_bytes), one.peer ? "yes" : "no", at(one) || "–"]);
  const nothing = pool.index === "none" ? "This router has no index, so it knows of no node." : "No cache node is registered in the index.";
  table("nodes", [["Node", ""], ["Zone", ""], ["Memory", "n"], ["Answers peers", ""], ["Replicas on it", ""]], rows, nothing);
}

// Left: each replica's own cache and its node's commons. Right: the replicas. A ribbon's width is its share of all that was reused.
function flow(pool) {
  const picture = byId("flow");
  const total = sum(pool.replicas.map(reused)) || 1;
  const names = [...new Set(pool.replicas.map((one) => one.node || "no node"))];
  const rows = Math.max(names.length + 1, pool.replicas.length, 2);
  const step = 64;
  const left = new Map([["own caches", 0], ...names.map((name, at) => [name, at + 1])]);
  picture.setAttribute("viewBox", `0 0 960 ${rows * step + 10}`);
  const parts = [];
  const link = (from, to, tokens, name) => {
    if (!tokens) return;
    const [y, z] = [left.get(from) * step + 32, to * step + 32];
    const ribbon = drawn("path", { d: `M 220 ${y} C 460 ${y}, 500 ${z}, 740 ${z}`, class: name, "stroke-width": Math.max(1.5, (WIDTH_MAX * tokens) / total) });
    ribbon.append(drawn("title", {}, `${tokens} tokens from ${from} to ${pool.replicas[to].name}`));
    parts.push(ribbon);
  };
  pool.replicas.forEach((one, at) => {
    link("own caches", at, one.actual_tokens.own, "own");
    link(one.node || "no node", at, one.actual_tokens.commons, "commons");
  });
  for (const [name, at] of left) {
    parts.push(drawn("rect", { x: 212, y: at * step + 8, width: 8, height: 48 }), drawn("text", { x: 204, y: at * step + 29, "text-anchor": "end" }, name));
    parts.push(drawn("text", { x: 204, y: at * step + 46, "text-anchor": "end", class: "soft" }, at ? "commons" : "in engines"));
  }
  pool.replicas.forEach((one, at) => {
    parts.push(drawn("rect", { x: 740, y: at * step + 8, width: 8, height: 48 }), drawn("text", { x: 756, y: at * step + 29 }, one.name));
    parts.push(drawn("text", { x: 756, y: at * step + 46, class: "soft" }, `${number.format(reused(one))} tokens reused`));
  });
  picture.replaceChildren(...parts);
}

function requests(told) {
  byId("requests-hint").textContent = told.workers > 1 ? `Those of one of ${told.workers} workers, yours alone, newest first.` : "Yours alone, newest first.";
  const rows = told.requests.map((one) => {
    const { prompt_tokens: prompt, own_tokens: own, commons_tokens: commons, reason } = one.reported;
    const open = make("button", { class: "link", type: "button" }, one.request_id);
    open.addEventListener("click", () => { chosen = one.request_id; why(told); });
    return [open, one.age_seconds.toFixed(0) + " s", one.replica, String(prompt), bar(own, commons, prompt), share(own + commons, prompt), String(sum(Object.values(one.predicted_tokens))), reason || "all reused"];
  });
  const headings = [["Request", ""], ["Age", "n"], ["Replica", ""], ["Prompt", "n"], ["Own, commons, computed", ""], ["Reused", "n"], ["Predicted", "n"], ["Why not more", ""]];
  table("requests", headings, rows, "None yet that an engine reported on.");
  why(told);
}

function why(told) {
  const one = told.requests.find((each) => each.request_id === chosen) || told.requests.find((each) => each.reported.reason);
  byId("why").hidden = !one;
  if (!one) return;
  const places = Object.entries(one.predicted_tokens).filter((pair) => pair[1]).map(([name, tokens]) => `${tokens} in ${name}`).join(", ");
  const router = location.origin;
  byId("why").replaceChildren(
    make("b", {}, one.request_id), make("p", {}, `${one.reported.reason ? one.reported.reason + ": " : ""}${one.explanation}`),
    make("p", {}, `Expected at dispatch: ${places || "nothing"} (tokens), at ${one.replica}${one.node ? " on node " + one.node : ""}${one.replica_gone ? ", which has left since" : ""}.`),
    make("p", {}, "The reason of each missed chunk: ", make("code", {}, `kvcommons why ${one.request_id} --router ${router}`)),
  );
}

async function refresh() {
  try {
    const [pool, told] = await Promise.all([ask("kvcommons/v1/pool"), ask("kvcommons/v1/requests")]);
    figures(pool); flow(pool); replicas(pool); nodes(pool); requests(told);
    const index = { none: "no index", connected: "index connected", partly: "index partly connected", away: "index away" }[pool.index];
    byId("state").textContent = `${pool.draining ? "draining, " : ""}policy ${pool.policy}, ${pool.workers} ${pool.workers === 1 ? "worker" : "workers"}, ${index}`;
    byId("state").className = pool.index === "away" || pool.index === "partly" ? "bad" : "";
  } catch (error) {
    byId("state").textContent = error instanceof TypeError ? "the router does not answer" : error.message;
    byId("state").className = "bad";
  }
  setTimeout(refresh, EVERY_MS);
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = byId("key").value.trim();
  sessionStorage.setItem("kvcommons-key", key);
  byId("key").value = "";
});
refresh();
