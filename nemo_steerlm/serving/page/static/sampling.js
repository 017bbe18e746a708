// The fields that say how tokens are drawn, and how many.

import { Slider, newId, presetChoice } from "./controls.js";
import { element } from "./dom.js";
import { SAMPLING } from "./presets.js";

// To begin with: an answer that does not end would fill the context otherwise.
const MOST_TOKENS = 256;

/** The fields, for a served model. */
export class SamplingControls {
  constructor(model) {
    const [[name, start]] = SAMPLING;
    const drawn = [
      { key: "temperature", name: "temperature", low: 0, high: 2, step: 0.05, about: "0: always the most likely token" },
      { key: "top_p", name: "top-p", low: 0.05, high: 1, step: 0.05, about: "of the most likely tokens, this much" },
      { key: "top_k", name: "top-k", low: 0, high: 200, about: "so many of the most likely tokens; 0: all" },
      { key: "repetition_penalty", name: "repetition penalty", low: 1, high: 2, step: 0.05, about: "1: none" },
    ];
    this.sliders = Object.fromEntries(drawn.map((one) => [one.key, new Slider({ ...one, value: start[one.key] })]));
    // Strength wants two prompts an answer, which a server elsewhere does not combine; choosing wants a value model.
    const steered = [];
    if (model.guides) steered.push({ key: "guidance_scale", name: "strength", low: 0, high: 5, step: 0.25, about: "how strongly to follow the attributes; 1: as trained" });
    if (model.reads) steered.push({ key: "best_of", name: "best of", low: 1, high: 16, about: "so many answers, of which the one that reads most as asked is shown" });
    this.steered = Object.fromEntries(steered.map((one) => [one.key, new Slider({ ...one, value: 1 })]));
    const most = model.max_model_len;
    this.limit = new Slider({ name: "length", low: 1, high: most, value: Math.min(MOST_TOKENS, most >> 1), about: "tokens at most" });
    this.preset = presetChoice("Sampling", SAMPLING, name, this.sliders);
    const id = newId();
    this.seed = element("input", { type: "number", id, min: 0, max: 2 ** 31 - 1, step: 1, inputMode: "numeric", placeholder: "any" });
    const seed = element("div", { className: "choice" }, element("label", { for: id, title: "the same seed gives the same text" }, "seed"), this.seed);
    const steering = Object.values(this.steered).map((slider) => slider.row);
    const detail = [...Object.values(this.sliders), this.limit].map((slider) => slider.row);
    this.rows = [...steering, this.preset.row, element("details", {}, element("summary", {}, "Sampling in detail"), ...detail, seed)];
  }

  /** What the chat endpoint's body says of it. */
  get body() {
    const body = Object.fromEntries(Object.entries(this.sliders).map(([key, slider]) => [key, slider.value]));
    const seed = this.seed.valueAsNumber;
    for (const [key, slider] of Object.entries(this.steered)) if (slider.value !== 1) body[key] = slider.value;
    return { ...body, max_tokens: this.limit.value, ...(Number.isSafeInteger(seed) ? { seed } : {}) };
  }
}
