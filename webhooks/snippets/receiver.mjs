// WEBHOOK_SECRET=whsec_... PORT=9000 node receiver.mjs
import { createHmac, timingSafeEqual } from "node:crypto";
import { createServer } from "node:http";

const key = Buffer.from(process.env.WEBHOOK_SECRET.replace(/^whsec_/, ""), "base64");
const seen = new Set(); // in earnest: a unique column of your database

function verify(headers, body) {
  const { "webhook-id": id, "webhook-timestamp": at, "webhook-signature": signatures } = headers;
  if (!id || !signatures || !(Math.abs(Date.now() / 1000 - Number(at)) <= 300)) throw new Error("not signed, or long ago");
  const expected = createHmac("sha256", key).update(`${id}.${at}.`).update(body).digest();
  const good = signatures.split(" ").some((one) => { // two of them while the secret is being changed
    const [version, signature = ""] = one.split(",");
    const given = Buffer.from(signature, "base64");
    return version === "v1" && given.length === expected.length && timingSafeEqual(given, expected);
  });
  if (!good) throw new Error("no signature is ours");
  return JSON.parse(body);
}

createServer((request, response) => {
  const parts = [];
  let size = 0;
  request.on("data", (part) => ((size += part.length) > 65536 ? request.destroy() : parts.push(part)));
  request.on("end", () => {
    try {
      // the bytes as they came: what is parsed and written anew has another signature
      const event = verify(request.headers, Buffer.concat(parts));
      const id = request.headers["webhook-id"];
      if (!seen.has(id)) console.log(event.type, JSON.stringify(event.data)); // an event may come twice, always with its own id
      seen.add(id);
      response.writeHead(204).end();
    } catch {
      response.writeHead(400).end();
    }
  });
}).listen(Number(process.env.PORT ?? 9000), "127.0.0.1");
