// One question, answered under two settings side by side.

import { Answer, Asking, narrow, settings } from "./answer.js";
import { Problem } from "./api.js";
import { AttributeControls } from "./attributes.js";
import { byId, element, submitOnEnter, tell } from "./dom.js";
import { contrast } from "./presets.js";
import { SamplingControls } from "./sampling.js";

/** Start the tab, for a served model. */
export function startCompare(model) {
  const schema = model.metadata.steerlm.attributes.attributes;
  const [box, problem, place] = [byId("compare-box"), byId("compare-problem"), byId("answers")];
  const starts = contrast(schema);
  const sides = ["A", "B"].map((suffix, i) => ({ suffix, controls: new AttributeControls(model, { start: starts[i], suffix }) }));
  const sampling = new SamplingControls(model);
  const pair = element("div", { className: "pair" }, ...sides.map(({ suffix, controls }) => {
    return element("div", { role: "group", "aria-label": `Settings ${suffix}` }, ...controls.rows);
  }));
  const panel = settings(byId("compare-settings"), "Attributes and sampling", pair, ...sides[0].controls.about, ...sampling.rows);
  const asking = new Asking("compare");

  function show(answers) {
    const name = (i) => `Answer ${sides[i].suffix}`;
    place.replaceChildren(...answers.map((answer, i) => {
      return element("section", { className: "answer", "aria-label": name(i), id: `answer-${sides[i].suffix}` }, element("h2", {}, name(i)), answer.box);
    }));
  }

  async function ask(question) {
    const messages = [{ role: "user", content: question }];
    // The same luck for both, so that what differs comes from the attributes.
    const drawn = { seed: crypto.getRandomValues(new Uint32Array(1))[0] >>> 1, ...sampling.body };
    const answers = sides.map(({ controls }) => new Answer(schema, controls.values));
    const previous = [...place.children];
    show(answers);
    if (narrow()) panel.open = false;
    byId("compare-seed").textContent = `Both answers are drawn with seed ${drawn.seed}: what differs comes from the attributes.`;
    try {
      await asking.during(async (signal) => {
        const work = answers.map(async (answer, i) => {
          sides[i].controls.showRead(null);
          await answer.take({ messages, attributes: answer.asked, ...drawn }, signal);
          if (model.reads && answer.content && !signal.aborted) await answer.read(messages, signal);
          if (answer.turn) sides[i].controls.showRead(answer.turn);
        });
        await Promise.all(work).catch((error) => {
          asking.abort(); // one alone compares nothing
          throw error;
        });
      });
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      place.replaceChildren(...previous);
      tell(problem, error.message);
    }
  }

  byId("compare-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (asking.busy) return;
    tell(problem, box.value.trim() ? "" : "Write a question first.");
    if (!problem.textContent) ask(box.value);
  });
  submitOnEnter(box);
}
