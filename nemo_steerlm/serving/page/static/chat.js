// A conversation, in which every answer keeps the attributes that it was asked under and how it reads.

import { Answer, Asking, narrow, settings } from "./answer.js";
import { Problem } from "./api.js";
import { AttributeControls } from "./attributes.js";
import { byId, element, submitOnEnter, tell, write } from "./dom.js";
import { SamplingControls } from "./sampling.js";

const HINT = "Move a slider, ask, ask again: the same question, written another way.";
const NEAR_THE_END = 80;

/** Start the tab, for a served model. */
export function startChat(model) {
  const schema = model.metadata.steerlm.attributes.attributes;
  const [log, box, problem] = [byId("conversation"), byId("chat-box"), byId("chat-problem")];
  const attributes = new AttributeControls(model);
  const sampling = new SamplingControls(model);
  const panel = settings(byId("chat-settings"), "Attributes and sampling", ...attributes.rows, ...attributes.about, ...sampling.rows);
  const asking = new Asking("chat", byId("again"));
  /** What was said: {message, box} each. */
  let turns = [];

  function show() {
    log.replaceChildren(...(turns.length ? turns.map((turn) => turn.box) : [element("p", { className: "quiet" }, HINT)]));
  }

  async function ask(asked, restore) {
    const before = turns;
    const answer = new Answer(schema, attributes.values);
    const messages = asked.map((turn) => turn.message);
    turns = [...asked, answer];
    show();
    tell(problem, "");
    if (narrow()) panel.open = false;
    follow(log, true);
    attributes.showRead(null);
    try {
      await asking.during(async (signal) => {
        await answer.take({ messages, attributes: answer.asked, ...sampling.body }, signal, () => follow(log));
        if (turns.at(-1) !== answer) return; // started over meanwhile
        if (!answer.content && signal.aborted) turns = asked;
        else if (model.reads && answer.content && !signal.aborted) await answer.read(messages, signal);
        if (answer.turn) attributes.showRead(answer.turn);
      });
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      if (turns.at(-1) !== answer) return;
      turns = before;
      restore();
      tell(problem, error.message);
    }
    if (turns.at(-1) !== answer) show();
    follow(log);
  }

  byId("chat-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = box.value;
    if (asking.busy) return;
    if (!text.trim()) return void tell(problem, "Write a message first.");
    write(box, "");
    const said = { message: { role: "user", content: text }, box: element("div", { className: "turn user" }, element("p", { className: "text" }, text)) };
    // The question goes back to where it can be mended.
    ask([...turns, said], () => write(box, text));
  });
  byId("again").addEventListener("click", () => {
    if (asking.busy) return;
    const last = turns.findLastIndex((turn) => turn.message.role === "user");
    if (last < 0) return void tell(problem, "Write a message first.");
    ask(turns.slice(0, last + 1), () => {});
  });
  byId("over").addEventListener("click", () => {
    turns = [];
    asking.abort();
    write(box, "");
    tell(problem, "");
    show();
    panel.open = true;
  });
  submitOnEnter(box);
  show();
}

/** Keep the end of the log in sight while it grows, unless somebody has scrolled back to read (or `always`). */
function follow(log, always = false) {
  const scroller = narrow() ? document.scrollingElement : log;
  const below = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight;
  if (always || below < NEAR_THE_END + 0.2 * scroller.clientHeight) scroller.scrollTop = scroller.scrollHeight;
}
