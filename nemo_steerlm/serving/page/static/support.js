// Which combinations of levels the model was taught (steerlm.json's label support).

/** Questions about `support`, for a schema's attributes; null where nobody counted. */
export function taughtLabels({ support, attributes }) {
  if (!support) return null;
  const parse = (label) => Object.fromEntries(label.split(",").filter(Boolean).map((part) => [part.split(":")[0], Number(part.split(":")[1])]));
  const all = Object.entries(support.combinations).map(([label, count]) => ({ values: parse(label), count }));
  const names = attributes.attributes.map((a) => a.name);
  return {
    /** How often these values were taught together. */
    count: (values) => all.filter(({ values: own }) => names.every((n) => own[n] === values[n])).reduce((sum, { count }) => sum + count, 0),
    /** The taught combination that is the fewest steps away, of several the most frequent; null where there is none. */
    nearest: (values) => {
      const steps = (own) => names.reduce((sum, n) => sum + Math.abs((own[n] ?? values[n]) - values[n]), 0);
      const ranked = all.map((one) => ({ ...one, steps: steps(one.values) })).sort((a, b) => a.steps - b.steps || b.count - a.count);
      return ranked.length ? { ...values, ...ranked[0].values } : null;
    },
    /** Whether rare combinations were left out of the list. */
    cut: support.left_out > 0,
  };
}
