// A Streamable HTTP server of the TypeScript SDK: `node server.mjs PORT-FILE [json]`, at /mcp on a free port.
import { randomUUID } from 'node:crypto';
import { renameSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js';
import { StreamableHTTPServerTransport } from '@modelcontextprotocol/sdk/server/streamableHttp.js';
import { z } from 'zod';

const [portFile, mode] = process.argv.slice(2);
const sessions = new Map();

async function session() {
  const server = new McpServer({ name: 'typescript', version: '1' });
  server.registerTool('echo', { inputSchema: { text: z.string() } }, async ({ text }) => ({
    content: [{ type: 'text', text }],
  }));
  server.registerTool('steps', { inputSchema: { count: z.number() } }, async ({ count }, extra) => {
    for (let progress = 1; progress <= count; progress += 1) {
      await extra.sendNotification({
        method: 'notifications/progress',
        params: { progressToken: extra._meta.progressToken, progress },
      });
    }
    return { content: [{ type: 'text', text: 'done' }] };
  });
  const transport = new StreamableHTTPServerTransport({
    sessionIdGenerator: randomUUID,
    enableJsonResponse: mode === 'json',
    onsessioninitialized: (id) => sessions.set(id, transport),
    onsessionclosed: (id) => sessions.delete(id),
  });
  await server.connect(transport);
  return transport;
}

const listener = createServer(async (request, response) => {
  const id = request.headers['mcp-session-id'];
  const known = sessions.get(id);
  if (request.url === '/sessions') {
    response.end(String(sessions.size));
  } else if (id && !known) {
    response.writeHead(404).end();
  } else {
    await (known ?? (await session())).handleRequest(request, response);
  }
});
listener.listen(0, '127.0.0.1', () => {
  writeFileSync(`${portFile}.new`, String(listener.address().port));
  renameSync(`${portFile}.new`, portFile);
});
