// Settings that have a name: combinations of attributes, computed from the model's schema, and ways to sample.

/** What a preset's field shows once somebody has moved a slider. */
export const CUSTOM = "custom";

// Attributes at their high end, and at their low end. Offered where the schema has one of them.
const MOODS = { playful: [["humor", "creativity"], []], brief: [[], ["verbosity", "complexity"]] };

/**
 * Combinations by name, `defaults` first; those that are the defaults again are left out: the moods, every default mirrored in its range,
 * then each attribute's two ends with the others as they are by default.
 */
export function attributePresets(attributes, defaults) {
  const base = Object.fromEntries(attributes.map((a) => [a.name, defaults[a.name] ?? a.default]));
  const ends = new Map(attributes.map((a) => [a.name, [a.low, a.high]]));
  const at = (names, end) => Object.fromEntries(names.filter((n) => ends.has(n)).map((n) => [n, ends.get(n)[end]]));
  const wanted = Object.entries(MOODS).map(([mood, [raised, lowered]]) => [mood, { ...base, ...at(raised, 1), ...at(lowered, 0) }]);
  wanted.push(["opposite", Object.fromEntries(attributes.map((a) => [a.name, a.low + a.high - base[a.name]]))]);
  for (const { name } of attributes) {
    wanted.push([`most ${name}`, { ...base, ...at([name], 1) }], [`least ${name}`, { ...base, ...at([name], 0) }]);
  }
  const differs = (values) => Object.keys(base).some((name) => values[name] !== base[name]);
  return new Map([["defaults", base], ...wanted.filter(([, values]) => differs(values))]);
}

/** The two presets to compare first: the first attribute's ends. Either may be missing where it equals the defaults. */
export const contrast = (attributes) => [`most ${attributes[0].name}`, `least ${attributes[0].name}`];

const plain = { temperature: 0.7, top_p: 0.9, top_k: 0, repetition_penalty: 1 };

/** Ways to draw tokens, as the chat endpoint names them; the first is the one to start with. */
export const SAMPLING = new Map([
  ["balanced", plain],
  ["steady (always the same)", { ...plain, temperature: 0, top_p: 1 }],
  ["varied", { ...plain, temperature: 1, top_p: 1 }],
  ["few repeats", { ...plain, repetition_penalty: 1.2 }],
]);
