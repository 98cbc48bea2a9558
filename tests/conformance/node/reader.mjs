// Reads JSON texts as Node does: one in base64 a line, answered by one line: null for what is none, otherwise the value
// with its numbers as the bits of a double and the members of objects sorted, so that another language can compare.
import readline from "node:readline";

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const bits = new DataView(new ArrayBuffer(8));

function shown(value) {
  if (typeof value === "number") {
    bits.setFloat64(0, value);
    return { number: bits.getBigUint64(0).toString(16).padStart(16, "0") };
  }
  if (Array.isArray(value)) return { array: value.map(shown) };
  if (value !== null && typeof value === "object") {
    return { object: Object.keys(value).sort().map((key) => [key, shown(value[key])]) };
  }
  return { plain: value };
}

for await (const line of readline.createInterface({ input: process.stdin })) {
  let answer = null;
  try {
    answer = shown(JSON.parse(utf8.decode(Buffer.from(line, "base64"))));
  } catch (error) {
    if (!(error instanceof SyntaxError || error instanceof TypeError || error instanceof RangeError)) throw error;
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
}
