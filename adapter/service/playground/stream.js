// The service's ordinary API: lists its models, asks, and reads the events of an answer.

export class Refusal extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export async function models(key) {
  const response = await sent("v1/models", key, {});
  return (await response.json()).data.map((model) => model.id);
}

// The events of an answer up to [DONE]; throws a Refusal for any other end.
export async function* ask(path, body, key, signal) {
  const response = await sent(path, key, {
    method: "POST",
    body: JSON.stringify(body),
    headers: { "content-type": "application/json" },
    signal,
  });
  for await (const payload of payloads(response.body, signal)) {
    if (payload === "[DONE]") return;
    const event = JSON.parse(payload);
    if (event.error) throw new Refusal(event.error.message);
    yield event;
  }
  throw new Refusal("The connection ended before the answer was complete.");
}

async function sent(path, key, options) {
  const headers = { ...options.headers, ...(key ? { authorization: `Bearer ${key}` } : {}) };
  const fixed = { credentials: "omit", redirect: "error" };
  let response;
  try {
    response = await fetch(path, { ...options, ...fixed, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The service cannot be reached. Is it still running?");
  }
  if (!response.ok) throw new Refusal(await reason(response), response.status);
  return response;
}

async function reason(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The service answered ${response.status} without saying why.`;
  }
}

async function* payloads(stream, signal) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        if (block.startsWith("data: ")) yield block.slice(6);
      }
    }
  } catch (error) {
    if (signal.aborted) throw error;
    throw new Refusal("The connection broke off in the middle of the answer.");
  } finally {
    reader.cancel().catch(() => {});
  }
}
