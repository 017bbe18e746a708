// The server's own API. Paths are relative: a proxy may have put the server below a path.

/** What went wrong, as a sentence for whoever asked. */
export class Problem extends Error {}

/** The model that is served, as GET /v1/models describes it. */
export async function served() {
  const list = await (await ask("../v1/models")).json();
  return list.data[0];
}

/**
 * The steps of a chat answer, as they come: {text, finish}. Whoever leaves the loop, or aborts the signal, ends the work. The best of several
 * answers comes at once, with what the value model read: {text, finish, read, of}.
 */
export async function* chat(body, signal) {
  if (body.best_of > 1) {
    const [choice] = (await (await ask("../v1/chat/completions", body, signal)).json()).choices;
    yield { text: choice.message.content, finish: choice.finish_reason, read: choice.steerlm.read, of: choice.steerlm.candidates.length };
    return;
  }
  const response = await ask("../v1/chat/completions", { ...body, stream: true }, signal);
  for await (const event of events(response)) {
    if (event.error) throw new Problem(sentence(200, event.error));
    const [choice] = event.choices;
    if (choice) yield { text: choice.delta.content ?? "", finish: choice.finish_reason };
  }
}

/** How the last turn of the assistant reads: one of the `turns` of POST /v1/attributes. */
export async function read(messages, signal) {
  const answer = await (await ask("../v1/attributes", { messages }, signal)).json();
  return answer.results[0].turns.at(-1);
}

async function ask(path, body, signal) {
  const post = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let response;
  try {
    response = await fetch(path, { ...(body ? post : {}), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server does not answer: the connection was refused or lost.");
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  throw new Problem(sentence(response.status, told.error ?? {}));
}

function sentence(status, error) {
  // What begins with a word is made a sentence of; what begins with a field's name stays.
  const message = (error.message ?? `The server answered HTTP ${status}.`).replace(/^[a-z]+ /, (word) => word[0].toUpperCase() + word.slice(1));
  if (status === 401) return "This server asks for its token: load the page again and give it.";
  if (status === 429 || error.code === "queue_full") return `The server is busy (${message}). Try again in a moment.`;
  return message;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await chunk(reader);
      if (done) throw new Problem("The connection was lost before the answer's end.");
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line === "data: [DONE]") return;
        if (line.startsWith("data: ")) yield JSON.parse(line.slice(6));
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function chunk(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The connection was lost before the answer's end.");
  }
}
