// An MCP client, made with the TypeScript SDK: `client.mjs MODE URL`, as client.py. With `1` it is of line 1.
import { readFileSync } from "node:fs";

const [mode, url] = process.argv.slice(2);
const old = mode === "1";
const sdk = "@modelcontextprotocol/";
const { Client } = await import(old ? `${sdk}sdk/client/index.js` : `${sdk}client`);
const { StreamableHTTPClientTransport } = await import(old ? `${sdk}sdk/client/streamableHttp.js` : `${sdk}client`);
const client = new Client({ name: "client", version: "1" }, old ? {} : { versionNegotiation: { mode } });
const transport = new StreamableHTTPClientTransport(new URL(url));
let changed = false;
client.fallbackNotificationHandler = async ({ method }) => {
  changed ||= method === "notifications/tools/list_changed";
};
await client.connect(transport);

async function act([what, name, args]) {
  if (what === "list") return (await client.listTools()).tools.map((tool) => tool.name).sort();
  if (what === "read") return (await client.readResource({ uri: name })).contents[0].text;
  if (what === "listen") return await listen();
  if (what === "stream") return await streamed();
  return await call(name, args);
}

async function call(name, args, options = {}) {
  const limited = { ...options, timeout: 20000 };
  const result = await client.callTool({ name, arguments: args }, ...(old ? [undefined, limited] : [limited]));
  return result.content[0].text;
}

async function listen() {
  const isNew = !old && client.getNegotiatedProtocolVersion() >= "2026";
  const stream = isNew ? await client.listen({ toolsListChanged: true }) : null;
  while (!changed) await call("announce", {});
  await stream?.close();
  return "changed";
}

async function streamed() {
  let proceeds;
  const onprogress = () => (proceeds ??= call("proceed", {}));
  const result = await call("slow", {}, { onprogress });
  await proceeds;
  return result;
}

for (const step of JSON.parse(readFileSync(0))) {
  console.log(JSON.stringify(await act(step).catch((error) => `${error.name}: ${error.message}`)));
}
await transport.terminateSession();
await client.close();
console.log('"ended"');
