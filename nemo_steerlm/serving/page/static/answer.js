// What chat and comparison share: one answer as it comes, the form that asks for it, and the panel of its settings.

import { Problem, chat, read } from "./api.js";
import { byId, element } from "./dom.js";
import { cards, chips } from "./reading.js";

/** Whether controls and text have no room beside each other; the style sheet says the same. */
export const narrow = () => matchMedia("(max-width: 45rem)").matches;

/** Controls to be opened and closed: beside what they steer where there is room, above it and in reach where there is not. */
export function settings(place, name, ...rows) {
  const panel = element("details", { open: true }, element("summary", {}, name), element("div", { className: "rows" }, ...rows));
  place.append(panel);
  return panel;
}

/** One answer: its text, what it was asked for, and how it reads. */
export class Answer {
  constructor(schema, asked) {
    this.schema = schema;
    this.asked = asked;
    this.content = "";
    this.text = element("p", { className: "text" });
    this.note = element("div", { className: "note" }, chips(asked));
    this.box = element("div", { className: "turn assistant", "aria-busy": "true" }, this.text, this.note);
  }

  get message() {
    return { role: "assistant", content: this.content, attributes: this.asked };
  }

  /** Take the steps of the answer to `body`, and tell each to `grown`. */
  async take(body, signal, grown = () => {}) {
    try {
      for await (const { text, finish, read: turn, of } of chat(body, signal)) {
        this.content += text;
        if (turn) {
          this.remark(`the best of ${of} answers`);
          this.showRead(turn);
        }
        this.text.textContent = this.content;
        if (finish === "length") this.remark(`cut off at ${body.max_tokens} tokens`);
        grown();
      }
    } catch (error) {
      if (error.name !== "AbortError") throw error;
      this.remark("stopped");
    } finally {
      this.box.ariaBusy = "false";
    }
  }

  remark(sentence) {
    this.note.prepend(element("p", {}, sentence));
  }

  showRead(turn) {
    this.turn = turn;
    this.note.querySelector(".chips").replaceWith(chips(this.asked, turn));
    this.note.append(element("details", {}, element("summary", {}, "probabilities"), cards(turn, this.schema)));
  }

  /** Have the answer to `messages` read, and show it beside what was asked for. A reader that fails is told here. */
  async read(messages, signal) {
    if (this.turn) return;
    try {
      this.showRead(await read([...messages, this.message], signal));
    } catch (error) {
      if (error.name === "AbortError") return;
      if (!(error instanceof Problem)) throw error;
      this.note.append(element("p", { className: "problem", role: "alert" }, `not read: ${error.message}`));
    }
  }
}

/** A form whose request can be stopped: while one runs, Stop stands where Send stood. */
export class Asking {
  /** `others` are buttons that cannot be pressed meanwhile. */
  constructor(name, ...others) {
    this.others = others;
    this.send = byId(`${name}-send`);
    this.stop = byId(`${name}-stop`);
    this.stop.addEventListener("click", () => this.abort());
  }

  get busy() {
    return this.controller !== undefined;
  }

  abort() {
    this.controller?.abort();
  }

  /** Run `work` with the signal that Stop gives. */
  async during(work) {
    this.controller = new AbortController();
    this.show(true);
    try {
      await work(this.controller.signal);
    } finally {
      this.controller = undefined;
      this.show(false);
    }
  }

  show(busy) {
    this.send.hidden = busy;
    this.stop.hidden = !busy;
    for (const button of this.others) button.disabled = busy;
  }
}
