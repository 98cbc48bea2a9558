// A client of the TypeScript SDK: `node client.mjs JOB`; the outcome is JSON on stdout.
//
// JOB is {"url": "ws://…", "calls": [[tool, arguments], …]} for its WebSocket transport, or
// {"command": …, "args": […], "env": {…}, "calls": […]} for its stdio transport.
import WebSocket from 'ws';
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js';
import { WebSocketClientTransport } from '@modelcontextprotocol/sdk/client/websocket.js';

globalThis.WebSocket ??= WebSocket; // the transport takes the global one, which Node has from 22 on

const job = JSON.parse(process.argv[2]);
const transport = job.url
  ? new WebSocketClientTransport(new URL(job.url))
  : new StdioClientTransport({ command: job.command, args: job.args, env: job.env });
const client = new Client({ name: 'portcullis-conformance', version: '1' });
await client.connect(transport);
const { tools } = await client.listTools();
await client.ping();
const results = [];
for (const [name, args] of job.calls) {
  const result = await client.callTool({ name, arguments: args });
  results.push({ error: result.isError === true, text: result.content[0].text });
}
console.log(JSON.stringify({
  server: client.getServerVersion().name,
  tools: tools.map((tool) => tool.name),
  results,
}));
await client.close();
