// What a page can do with the gateway at config.http and config.ws; each finding is reported by its name.

async function fetched(path, options) {
  try {
    const answer = await fetch(config.http + path, options);
    const headers = Object.fromEntries(answer.headers);
    return { status: answer.status, type: answer.type, headers, body: await answer.text() };
  } catch (error) {
    return { refused: error.name };
  }
}

function socket(query, protocols) {
  return new Promise((resolve) => {
    const found = { opened: false, protocol: null, answer: null };
    const one = new WebSocket(config.ws + query, protocols);
    one.onopen = () => {
      found.opened = true;
      found.protocol = one.protocol;
      one.send('{"jsonrpc":"2.0","id":"b","method":"ping"}');
    };
    one.onmessage = (event) => {
      found.answer = JSON.parse(event.data);
      one.close(1000);
    };
    one.onclose = (event) => resolve({ ...found, code: event.code });
  });
}

async function ticket() {
  if (config.ticket) return config.ticket;
  const answer = await fetched("/auth/ticket", bearer());
  return JSON.parse(answer.body).ticket;
}

function bearer(extra = {}, token = config.token) {
  const headers = { Authorization: "Bearer " + token, "Content-Type": "application/json", ...extra };
  return { method: "POST", headers, body: "{}" };
}

async function run() {
  const found = {};
  found.health = await fetched("/health");
  found.healthWithCredentials = await fetched("/health", { credentials: "include" });
  found.missing = await fetched("/nothing");
  found.issued = await fetched("/auth/ticket", bearer());
  found.wrongToken = await fetched("/auth/ticket", bearer({}, "wrong"));
  found.unlistedHeader = await fetched("/auth/ticket", bearer({ "X-Unlisted": "1" }));
  found.unlistedMethod = await fetched("/health", { method: "PATCH" });
  found.opaque = await fetched("/health", { mode: "no-cors" });
  found.byBearer = await socket("/", ["mcp", "bearer." + config.token]);
  found.byTicketInQuery = await socket("/?ticket=" + (await ticket()), ["mcp"]);
  found.byTicketAsProtocol = await socket("/", ["mcp", "ticket." + (await ticket())]);
  found.withoutCredential = await socket("/", ["mcp"]);
  return found;
}

run()
  .catch((error) => ({ failed: String(error) }))
  .then((found) => fetch("/report", { method: "POST", body: JSON.stringify(found) }));
