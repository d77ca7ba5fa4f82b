// Which steps another threshold would have reused, from the residual differences of a run.

/**
 * @typedef {object} Rule
 * @property {number} threshold  reuse below it
 * @property {number} warmup  first steps, always computed
 * @property {number} most  reused steps in a row; -1: any number
 * @property {number} total  reused steps of a run; -1: any number
 */

/**
 * Differences from one step to the next. A recorded difference is that to the last computed step, so that of a step
 * after a reused one is a sum: the part before it is taken off.
 * @param {(number | undefined)[]} diffs  by step
 * @param {ReadonlySet<number>} reused
 * @returns {(number | undefined)[]}
 */
function increments(diffs, reused) {
  return diffs.map((diff, step) => {
    const before = diffs[step - 1];
    if (diff === undefined || before === undefined || !reused.has(step - 1)) return diff;
    return diff > before ? diff - before : diff;
  });
}

/**
 * Steps that a rule would reuse. An estimate: differences are taken to add up, and reuse to leave later ones as they are.
 * @param {(number | undefined)[]} diffs  by step; undefined: not measured
 * @param {ReadonlySet<number>} reused  steps that the run reused
 * @param {Rule} rule
 * @returns {Set<number>}
 */
export function forecast(diffs, reused, { threshold, warmup, most, total }) {
  const found = new Set();
  let sum = 0;
  let row = 0;
  increments(diffs, reused).forEach((part, step) => {
    if (part === undefined || step < warmup) {
      sum = row = 0;
      return;
    }
    sum += part;
    if (sum < threshold && (most < 0 || row < most) && (total < 0 || found.size < total)) {
      found.add(step);
      row += 1;
    } else sum = row = 0;
  });
  return found;
}
