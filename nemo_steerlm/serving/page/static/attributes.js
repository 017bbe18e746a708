// The fields that say what to write like: one slider an attribute, and the language where the schema has some.

import { Slider, choice, newId, presetChoice } from "./controls.js";
import { element } from "./dom.js";
import { attributePresets } from "./presets.js";

/** A set of controls for a served model. `start` is the preset to begin with, `suffix` tells two sets apart. */
export class AttributeControls {
  constructor(model, { start = "defaults", suffix = "" } = {}) {
    const { attributes, languages } = model.metadata.steerlm.attributes;
    const presets = attributePresets(attributes, model.default_attributes);
    const first = presets.has(start) ? start : "defaults";
    this.meanings = element("dl");
    this.sliders = {};
    for (const { name, low, high, description } of attributes) {
      const id = newId();
      if (description) this.meanings.append(element("dt", {}, name), element("dd", { id }, description));
      const value = presets.get(first)[name];
      this.sliders[name] = new Slider({ name, low, high, value, about: description, describedBy: description ? id : "" }, suffix);
    }
    const label = (name) => (suffix ? `${name} (${suffix})` : name);
    this.preset = presetChoice(label("Preset"), presets, first, this.sliders);
    this.rows = [this.preset.row, ...Object.values(this.sliders).map((slider) => slider.row)];
    if (languages.length) {
      const own = model.default_attributes.lang ?? (languages.includes("en") ? "en" : languages[0]);
      this.language = choice(label("language"), [["not said", ""], ...languages], own);
      this.rows.push(this.language.row);
    }
  }

  /** What the API calls `attributes`. */
  get values() {
    const chosen = Object.fromEntries(Object.entries(this.sliders).map(([name, slider]) => [name, slider.value]));
    return this.language?.select.value ? { ...chosen, lang: this.language.select.value } : chosen;
  }

  /** What each attribute means, to be opened by those who ask. Nothing where the schema does not say. */
  get about() {
    if (!this.meanings.childElementCount) return [];
    return [element("details", { className: "meanings" }, element("summary", {}, "What the attributes mean"), this.meanings)];
  }
}
