#!/usr/bin/env node
// A client of the gateway in one file, without dependencies: it authenticates, initialises, lists the tools and calls
// one, over WebSocket or over TCP. An example to start from; mcp-secure-client does more.
//
// Where Node has a WebSocket of its own (22 and newer) that one is used, as in a browser: the token travels as a
// subprotocol, and a refusal has no reason. On Node 20 a small client of RFC 6455 below takes its place.
"use strict";

const crypto = require("node:crypto");
const fs = require("node:fs");
const http = require("node:http");
const https = require("node:https");
const net = require("node:net");
const tls = require("node:tls");
const { parseArgs } = require("node:util");

const PROTOCOL_VERSION = "2025-11-25";
const PROTOCOL_VERSIONS = new Set(["2024-11-05", "2025-03-26", "2025-06-18", PROTOCOL_VERSION]);
const LONGEST = 64 * 1024 * 1024; // the gateway lets answers of 16 MiB through by default
const MOST_PAGES = 1000; // a server that never stops giving cursors would be listed for ever
const DEMONSTRATIONS = [["echo", { text: "hello" }], ["time", {}]]; // calls that need nothing known of the server

const HELP = `usage: node secure-client-example.js ws|tcp [options]

Authenticates, initialises, lists the tools and calls one.

  --url URL            ws: where to connect to (default: ws://127.0.0.1:3002, with $WS_PORT if that is set)
  --host HOST          tcp: default 127.0.0.1
  --port PORT          tcp: default $TCP_PORT or 9500
  --tls                tcp: the port speaks TLS; NODE_EXTRA_CA_CERTS names further certificates to trust
  --server NAME        which of the gateway's servers to talk to
  --call TOOL [JSON]   call this tool, with an object of arguments (default: echo or time, where there is one)
  --list               list the tools, call none
  --token-file PATH    file that holds the token
  --timeout S          seconds for connecting and for each answer (default: 30)
  --help

The token comes from --token-file, $WS_AUTH_TOKEN or $TCP_AUTH_TOKEN, or the file that $WS_AUTH_TOKEN_FILE or
$TCP_AUTH_TOKEN_FILE names.

Exit codes: 0 done, 1 the call failed, 2 usage, 3 not authenticated or refused, 4 unreachable.`;

// Why it failed, with the exit code that says so. No message here ever holds the token.
class Failure extends Error {
  constructor(exitCode, message) {
    super(message);
    this.exitCode = exitCode;
  }
}

const failed = (message) => new Failure(1, message);
const usage = (message) => new Failure(2, message);
const refused = (message) => new Failure(3, message);
const unreachable = (message) => new Failure(4, message);

// Text of a peer for a terminal: escapes and bidirectional marks are shown, not obeyed.
function printable(text) {
  return String(text).replace(
    /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

const say = (text) => process.stdout.write(`${printable(text)}\n`);

// --- Options ---------------------------------------------------------------------------------------------------

function readOptions(words) {
  let values, positionals;
  try {
    ({ values, positionals } = parseArgs({
      args: words,
      allowPositionals: true,
      options: {
        url: { type: "string" },
        host: { type: "string", default: "127.0.0.1" },
        port: { type: "string" },
        tls: { type: "boolean", default: false },
        server: { type: "string", default: "" },
        call: { type: "string" },
        list: { type: "boolean", default: false },
        "token-file": { type: "string" },
        timeout: { type: "string", default: "30" },
        help: { type: "boolean", short: "h", default: false },
      },
    }));
  } catch (error) {
    throw usage(error.code?.startsWith("ERR_PARSE_ARGS") ? error.message.split(". ")[0] : "these options can't be read");
  }
  if (values.help) return { help: true };
  const [transport, ...rest] = positionals;
  if (transport !== "ws" && transport !== "tcp") throw usage("ws or tcp, please; --help says more");
  if (rest.length > (values.call === undefined ? 0 : 1)) throw usage("too many arguments; quote the JSON for the shell");
  if (values.list && values.call !== undefined) throw usage("--list and --call exclude each other");
  const timeout = Number(values.timeout);
  if (!(timeout > 0 && timeout <= 86400)) throw usage("--timeout: between 0 and 86400 seconds, please");
  const of = (name, alias, fallback) => process.env[name] || process.env[alias] || fallback;
  return {
    transport,
    url: websocketUrl(values.url ?? `ws://127.0.0.1:${of("WS_PORT", "MCP_BRIDGE_PORT", "3002")}`, values.server),
    host: values.host,
    port: portNumber(values.port ?? of("TCP_PORT", "MCP_TCP_PORT", "9500")),
    tls: values.tls,
    server: values.server,
    call: values.call === undefined ? undefined : [values.call, toolArguments(rest[0])],
    list: values.list,
    token: readToken(values["token-file"], transport === "ws" ? "WS_AUTH_TOKEN" : "TCP_AUTH_TOKEN"),
    timeoutMs: timeout * 1000,
  };
}

function websocketUrl(text, server) {
  let url;
  try {
    url = new URL(text);
  } catch {
    throw usage("--url: a WebSocket URL is needed, like ws://127.0.0.1:3002");
  }
  if (!["ws:", "wss:"].includes(url.protocol)) throw usage("--url: a WebSocket URL is needed, like ws://127.0.0.1:3002");
  if (url.username || url.password || url.hash) throw usage("--url: neither a user name nor a fragment can be part of it");
  if (server) {
    if (!["/", "/ws", "/ws/"].includes(url.pathname)) throw usage("--server: the URL's path already names a server");
    url.pathname = `/ws/${encodeURIComponent(server)}`;
  }
  return url;
}

function portNumber(text) {
  const port = Number(text);
  if (!Number.isInteger(port) || port < 1 || port > 65535) throw usage("--port: a port is a number from 1 to 65535");
  return port;
}

function toolArguments(text) {
  let value = {};
  try {
    if (text !== undefined) value = JSON.parse(text);
  } catch (error) {
    throw usage(`--call: the arguments are not JSON: ${error.message}`);
  }
  if (value === null || typeof value !== "object" || Array.isArray(value)) {
    throw usage("--call: the arguments must be a JSON object");
  }
  return value;
}

function readToken(file, variable) {
  let text = process.env[variable];
  const path = file ?? (text ? undefined : process.env[`${variable}_FILE`]);
  if (path !== undefined && path !== "") {
    try {
      text = fs.readFileSync(path, "utf8");
    } catch (error) {
      throw usage(`${path}: ${error.code ?? "can't be read"}`);
    }
  }
  if (!text) return "";
  const token = text.split(",")[0].trim(); // several are listed while they are rotated
  if (!/^[\x21-\x7e]+$/.test(token)) throw usage(`${variable}: the token holds a character that no HTTP header can carry`);
  return token;
}

// --- Links: whole messages out and in ------------------------------------------------------------------------------
//
// A link has send(text), close() and the callbacks onmessage(text) and onend(failure), which is called once.

function openTcp({ host, port, tls: overTls, timeoutMs }) {
  const peer = `${overTls ? "tls" : "tcp"}://${host.includes(":") ? `[${host}]` : host}:${port}`;
  return new Promise((resolve, reject) => {
    const socket = overTls
      ? tls.connect({ host, port, servername: net.isIP(host) ? "" : host })
      : net.connect({ host, port, noDelay: true });
    const link = {
      peer,
      send: (text) => socket.write(`${text}\n`),
      close: () => socket.destroy(),
      onmessage: () => {},
      onend: () => {},
    };
    const timer = setTimeout(() => end(unreachable(`${peer}: no connection within ${timeoutMs / 1000} s`)), timeoutMs);
    let open = false;
    let ended = false;
    const end = (failure) => {
      if (ended) return;
      ended = true;
      clearTimeout(timer);
      socket.destroy();
      open ? link.onend(failure) : reject(failure);
    };
    socket.once(overTls ? "secureConnect" : "connect", () => {
      open = true;
      clearTimeout(timer);
      resolve(link);
    });
    socket.on("error", (error) => end(unreachable(`${peer}: ${error.code ?? error.message}`)));
    socket.on("close", () => end(unreachable(`${peer}: the gateway closed the connection`)));
    let parts = [];
    let length = 0;
    socket.on("data", (data) => {
      let start = 0;
      for (let newline; (newline = data.indexOf(10, start)) >= 0; start = newline + 1) {
        const line = Buffer.concat([...parts, data.subarray(start, newline)]).toString("utf8");
        parts = [];
        length = 0;
        if (line.trim()) link.onmessage(line);
      }
      parts.push(data.subarray(start));
      length += data.length - start;
      if (length > LONGEST) end(failed(`${peer}: a line longer than ${LONGEST} bytes came`));
    });
  });
}

const openWebSocket = (options) => (globalThis.WebSocket ? openWithBuiltIn(options) : openByHand(options));

const endOfWebSocket = (peer, code, reason) =>
  // 3000 and 3003 are registered for "unauthorized" and "forbidden"; 1008 is a policy violation, 1013 "try later".
  new Failure([1008, 1013, 3000, 3003].includes(code) ? 3 : 4, `${peer}: closed with code ${code}${reason ? `: ${reason}` : ""}`);

const withoutQuery = (url) => `${url.protocol}//${url.host}${url.pathname}`; // it may hold a ticket

function openWithBuiltIn({ url, token, timeoutMs }) {
  const peer = withoutQuery(url);
  const offered = ["mcp"];
  if (token) offered.push(`bearer64.${Buffer.from(token, "utf8").toString("base64url")}`);
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(url, offered);
    const link = {
      peer,
      send: (text) => socket.send(text),
      close: () => socket.close(),
      onmessage: () => {},
      onend: () => {},
    };
    let open = false;
    const timer = setTimeout(() => {
      reject(unreachable(`${peer}: no WebSocket handshake within ${timeoutMs / 1000} s`));
      socket.close();
    }, timeoutMs);
    socket.onopen = () => {
      open = true;
      clearTimeout(timer);
      resolve(link);
    };
    socket.onmessage = ({ data }) => link.onmessage(String(data));
    // After a handshake that failed Node 20 gives no close event.
    socket.onerror = () => open || findOut();
    socket.onclose = ({ code, reason }) => (open ? link.onend(endOfWebSocket(peer, code, reason)) : findOut());
    // The interface tells scripts nothing of why. Whether anybody is there at all can be asked without a token.
    const findOut = () => {
      clearTimeout(timer);
      const port = Number(url.port) || (url.protocol === "wss:" ? 443 : 80);
      const probe = net.connect({ host: url.hostname.replace(/^\[|\]$/g, ""), port });
      probe.setTimeout(timeoutMs, () => probe.destroy(new Error("no answer")));
      probe.once("connect", () => {
        probe.destroy();
        reject(refused(`${peer}: the upgrade to WebSocket was refused; the gateway's log and audit log say why`));
      });
      probe.once("error", (error) => reject(unreachable(`${peer}: ${error.code ?? error.message}`)));
    };
  });
}

// The client's side of RFC 6455, as far as one that trusts its gateway needs it.
function openByHand({ url, token, timeoutMs }) {
  const peer = withoutQuery(url);
  const secure = url.protocol === "wss:";
  const key = crypto.randomBytes(16).toString("base64");
  return new Promise((resolve, reject) => {
    const request = (secure ? https : http).request({
      host: url.hostname.replace(/^\[|\]$/g, ""),
      port: url.port || (secure ? 443 : 80),
      path: `${url.pathname}${url.search}`,
      headers: {
        Host: url.host,
        Connection: "Upgrade",
        Upgrade: "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": key,
        "Sec-WebSocket-Protocol": "mcp",
        ...(token && { Authorization: `Bearer ${token}` }),
      },
    });
    const timer = setTimeout(
      () => request.destroy(new Error(`no WebSocket handshake within ${timeoutMs / 1000} s`)),
      timeoutMs,
    );
    request.on("error", (error) => {
      clearTimeout(timer);
      reject(unreachable(`${peer}: ${error.code ?? error.message}`));
    });
    request.on("response", (response) => {
      let body = "";
      response.setEncoding("utf8");
      response.on("data", (text) => (body = (body + text).slice(0, 4096)));
      response.on("close", () => {
        clearTimeout(timer);
        reject(refused(`${peer}: HTTP ${response.statusCode}${explained(body)}${comeBack(response)}`));
      });
    });
    request.on("upgrade", (response, socket, head) => {
      clearTimeout(timer);
      const accept = crypto.createHash("sha1").update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest("base64");
      if (response.headers["sec-websocket-accept"] !== accept) {
        socket.destroy();
        return reject(unreachable(`${peer}: it does not speak WebSocket`));
      }
      resolve(webSocketOn(socket, head, peer));
    });
    request.end();
  });
}

function explained(body) {
  try {
    const { detail, title } = JSON.parse(body);
    return detail || title ? ` (${String(detail || title).slice(0, 200)})` : "";
  } catch {
    return "";
  }
}

const comeBack = ({ headers }) =>
  /^\d+$/.test(headers["retry-after"] ?? "") ? `; try again in ${headers["retry-after"]} s` : "";

function webSocketOn(socket, head, peer) {
  socket.setNoDelay(true);
  const link = { peer, send: (text) => write(1, Buffer.from(text)), close: () => close(1000), onmessage: () => {}, onend: () => {} };
  let ended = false;
  const end = (failure) => {
    if (ended) return;
    ended = true;
    socket.destroy();
    link.onend(failure);
  };
  const write = (opcode, payload) => {
    const { length } = payload;
    const size = length < 126 ? 0 : length < 65536 ? 2 : 8;
    const header = Buffer.alloc(2 + size);
    header[0] = 0x80 | opcode;
    header[1] = 0x80 | (size === 0 ? length : size === 2 ? 126 : 127);
    if (size === 2) header.writeUInt16BE(length, 2);
    if (size === 8) header.writeBigUInt64BE(BigInt(length), 2);
    const mask = crypto.randomBytes(4);
    const masked = Buffer.from(payload);
    for (let index = 0; index < length; index++) masked[index] ^= mask[index & 3];
    if (!ended) socket.write(Buffer.concat([header, mask, masked]));
  };
  const close = (code) => {
    const payload = Buffer.alloc(2);
    payload.writeUInt16BE(code);
    write(8, payload);
    socket.end();
  };

  let buffer = Buffer.alloc(0);
  let message = []; // the fragments of one message so far
  const protocolError = (what) => {
    close(1002);
    end(failed(`${peer}: ${what}`));
  };
  const takeFrame = () => {
    if (buffer.length < 2) return false;
    const [first, second] = buffer;
    let length = second & 0x7f;
    let start = 2;
    if (length === 126) {
      if (buffer.length < 4) return false;
      length = buffer.readUInt16BE(2);
      start = 4;
    } else if (length === 127) {
      if (buffer.length < 10) return false;
      length = Number(buffer.readBigUInt64BE(2));
      start = 10;
    }
    if (second & 0x80 || first & 0x70) return protocolError("a frame came that no server sends"), false;
    if (length > LONGEST) return protocolError(`a message longer than ${LONGEST} bytes came`), false;
    if (buffer.length < start + length) return false;
    const payload = buffer.subarray(start, start + length);
    buffer = buffer.subarray(start + length);
    receive(first & 0x0f, payload, Boolean(first & 0x80));
    return !ended;
  };
  const receive = (opcode, payload, final) => {
    if (opcode === 9) return write(10, payload);
    if (opcode === 10) return;
    if (opcode === 8) {
      const code = payload.length >= 2 ? payload.readUInt16BE() : 1005;
      write(8, payload.subarray(0, 2));
      return end(endOfWebSocket(peer, code, payload.subarray(2).toString("utf8")));
    }
    if (opcode > 1) return protocolError("a message came that is not text");
    message.push(payload);
    if (message.reduce((sum, { length }) => sum + length, 0) > LONGEST) {
      return protocolError(`a message longer than ${LONGEST} bytes came`);
    }
    if (!final) return;
    const whole = Buffer.concat(message).toString("utf8");
    message = [];
    link.onmessage(whole);
  };
  const feed = (data) => {
    buffer = buffer.length ? Buffer.concat([buffer, data]) : data;
    while (takeFrame());
  };
  socket.on("data", feed);
  socket.on("error", (error) => end(unreachable(`${peer}: ${error.code ?? error.message}`)));
  socket.on("close", () => end(unreachable(`${peer}: the connection broke`)));
  // What came together with the head is served after the caller has set its callbacks.
  if (head.length) setImmediate(feed, Buffer.from(head));
  return link;
}

// --- The session: requests and their answers -----------------------------------------------------------------------

class Session {
  constructor(link, timeoutMs) {
    this.link = link;
    this.timeoutMs = timeoutMs;
    this.pending = new Map();
    this.next = 1;
    this.ended = undefined;
    link.onmessage = (text) => this.take(text);
    link.onend = (failure) => this.end(failure);
  }

  request(method, params) {
    if (this.ended) return Promise.reject(this.ended);
    const id = this.next++;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.pending.delete(id);
        reject(failed(`${method}: no answer within ${this.timeoutMs / 1000} s; whether it was carried out is unknown`));
      }, this.timeoutMs);
      this.pending.set(id, { method, resolve, reject, timer });
      this.link.send(JSON.stringify({ jsonrpc: "2.0", id, method, params }));
    });
  }

  notify(method) {
    this.link.send(JSON.stringify({ jsonrpc: "2.0", method }));
  }

  take(text) {
    let message;
    try {
      message = JSON.parse(text);
    } catch {
      return this.end(failed("a message came that is not JSON"));
    }
    if (message === null || typeof message !== "object") return this.end(failed("a message came that is not JSON-RPC"));
    if (typeof message.method === "string") {
      if (message.id === undefined) return; // a notification
      const answer =
        message.method === "ping"
          ? { result: {} }
          : { error: { code: -32601, message: "this client offers nothing" } };
      return this.link.send(JSON.stringify({ jsonrpc: "2.0", id: message.id, ...answer }));
    }
    if (message.id === null && message.error) return this.end(callError("the connection", message.error)); // then it closes
    const waiting = this.pending.get(message.id);
    if (!waiting) return;
    this.pending.delete(message.id);
    clearTimeout(waiting.timer);
    if (message.error) waiting.reject(callError(waiting.method, message.error));
    else waiting.resolve(message.result ?? {});
  }

  end(failure) {
    if (this.ended) return;
    this.ended = failure;
    for (const { reject, timer } of this.pending.values()) {
      clearTimeout(timer);
      reject(failure);
    }
    this.pending.clear();
    this.link.close();
  }
}

// The gateway's own refusals have HTTP's numbers.
const callError = (method, { code, message }) =>
  new Failure([401, 403, 429].includes(code) ? 3 : 1, `${method}: error ${code}: ${message}`);

async function listTools(session) {
  const tools = [];
  let cursor;
  for (let page = 0; page < MOST_PAGES; page++) {
    const result = await session.request("tools/list", cursor === undefined ? {} : { cursor });
    tools.push(...(Array.isArray(result.tools) ? result.tools : []));
    cursor = result.nextCursor;
    if (typeof cursor !== "string") break;
  }
  return tools;
}

function rendered(result) {
  const blocks = Array.isArray(result.content) ? result.content : [];
  if (!blocks.length) return result.structuredContent ? JSON.stringify(result.structuredContent) : "(no content)";
  return blocks.map((block) => (block?.type === "text" ? block.text : `[${block?.type}]`)).join("\n");
}

async function work(options) {
  const link = await (options.transport === "ws" ? openWebSocket : openTcp)(options);
  const session = new Session(link, options.timeoutMs);
  try {
    if (options.transport === "tcp" && (options.token || options.server)) {
      await session.request("authenticate", {
        ...(options.token && { token: options.token }),
        ...(options.server && { server: options.server }),
      });
    }
    const { protocolVersion, serverInfo } = await session.request("initialize", {
      protocolVersion: PROTOCOL_VERSION,
      capabilities: {},
      clientInfo: { name: "secure-client-example", version: "1.0.0" },
    });
    if (!PROTOCOL_VERSIONS.has(protocolVersion)) throw failed(`initialize: MCP ${protocolVersion} is not spoken here`);
    session.notify("notifications/initialized");
    say(`connected to ${link.peer}`);
    say(`server ${serverInfo?.name ?? "(no name)"} ${serverInfo?.version ?? ""}, MCP ${protocolVersion}`);

    const tools = await listTools(session);
    say(tools.length ? "tools:" : "no tools");
    for (const { name, description } of tools) say(`  ${name}  ${String(description ?? "").trim().split("\n")[0]}`);
    if (options.list) return 0;
    const names = new Set(tools.map(({ name }) => name));
    const call = options.call ?? DEMONSTRATIONS.find(([name]) => names.has(name));
    if (!call) {
      say("no tool here is known to need no thought; --call TOOL '{…}' calls one");
      return 0;
    }
    const result = await session.request("tools/call", { name: call[0], arguments: call[1] });
    say(`${call[0]}(${JSON.stringify(call[1])}):`);
    say(rendered(result));
    if (result.isError === true) throw failed(`the tool ${call[0]} reports an error`);
    return 0;
  } finally {
    session.end(failed("done"));
  }
}

async function main() {
  try {
    const options = readOptions(process.argv.slice(2));
    if (options.help) {
      say(HELP);
      return 0;
    }
    return await work(options);
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    process.stderr.write(`secure-client-example: ${printable(error.message)}\n`);
    return error.exitCode;
  }
}

process.stdout.on("error", (error) => process.exit(error.code === "EPIPE" ? 141 : 1)); // who read it has gone
main().then((code) => {
  process.exitCode = code;
});
