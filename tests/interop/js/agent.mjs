// Calls a node through the client stubs that a JavaScript generator makes of the published definitions.
//
// It speaks the same lines as go/main.go: {"id": 1, "method": "Time", "request": {}} is answered by
// {"id": 1, "response": {…}}; a method with a stream sends {"id": 1, "message": {…}} each time and
// {"id": 1, "end": true} at last; a status other than OK is {"id": 1, "status": {"code": "…", "message": "…"}};
// {"cancel": 1} gives a call up.
//
// Usage: node agent.mjs HOST:PORT STUBS, where STUBS is the folder of the generated modules.

import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";
import { fromJson, toJson } from "@bufbuild/protobuf";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";

const [address, stubs] = process.argv.slice(2);
const { Payment_API } = await import(pathToFileURL(`${stubs}/payment_service_pb.js`));
const client = createClient(Payment_API, createGrpcTransport({ baseUrl: `http://${address}` }));
const calls = new Map();

const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

async function call({ id, method: name, request }) {
  const stop = new AbortController();
  calls.set(id, stop);
  try {
    const method = Payment_API.methods.find((candidate) => candidate.name === name);
    const message = fromJson(method.input, request);
    const answer = client[method.localName](message, { signal: stop.signal });
    if (method.methodKind === "unary") {
      say({ id, response: toJson(method.output, await answer) });
      return;
    }
    for await (const received of answer) {
      say({ id, message: toJson(method.output, received) });
    }
    say({ id, end: true });
  } catch (reason) {
    const error = ConnectError.from(reason);
    say({ id, status: { code: Code[error.code], message: error.rawMessage } });
  } finally {
    calls.delete(id);
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const asked = JSON.parse(line);
  if (asked.cancel) {
    calls.get(asked.cancel)?.abort();
  } else {
    call(asked);
  }
}
process.exit(0);
