// LDR-FLIP (Andersson et al. 2020, doi:10.1145/3406183): the difference that an observer sees between two pictures in turn.

/** @typedef {{data: Uint8ClampedArray | Uint8Array, width: number, height: number}} Picture  four bytes a pixel */
/** @typedef {{weights: Float64Array, radius: number}} Kernel */
/** @typedef {[Float32Array, Float32Array, Float32Array]} Planes */

const PIXELS_PER_DEGREE = (0.7 * 3840 * Math.PI) / (0.7 * 180);
const WHITE = [0.950428545, 1, 1.088900371];
const XYZ_OF_RGB = [
  [10135552 / 24577794, 8788810 / 24577794, 4435075 / 24577794],
  [2613072 / 12288897, 8788810 / 12288897, 887015 / 12288897],
  [1425312 / 73733382, 8788810 / 73733382, 70074185 / 73733382],
];
const RGB_OF_XYZ = [
  [3.241003275, -1.537398934, -0.498615861],
  [-0.969224334, 1.875930071, 0.041554224],
  [0.055639423, -0.204011202, 1.057148933],
];
/** The same to and from X, Y and Z of which each is 1 for white. */
const WHITE_OF_RGB = XYZ_OF_RGB.map((row, index) => row.map((value) => value / WHITE[index]));
const RGB_OF_WHITE = RGB_OF_XYZ.map((row) => row.map((value, index) => value * WHITE[index]));
const DARKEST = 6 / 29;
/** Contrast sensitivity of luminance, red-green and blue-yellow: sums of Gaussians a sqrt(pi / b) exp(-pi^2 x^2 / b). */
const SENSITIVITIES = [
  [[1, 0.0047]],
  [[1, 0.0053]],
  [
    [34.1, 0.04],
    [13.5, 0.025],
  ],
];
const WIDEST = 0.04;
const EDGE_DEGREES = 0.082;
const COLOUR_EXPONENT = 0.7;
const FEATURE_EXPONENT = 0.5;
const KNEE = 0.4;
const KNEE_ERROR = 0.95;

/**
 * Mean FLIP of two pictures of one size, 0 (equal) to 1, seen from 0.7 m on a 4K monitor 0.7 m wide.
 * @param {Picture} a
 * @param {Picture} b
 */
export function flip(a, b) {
  const { width, height } = a;
  const [ours, theirs] = [opponentOf(a), opponentOf(b)];
  const [ourColour, theirColour] = [ours, theirs].map((planes) => perceivedColour(planes, width, height));
  const [ourFeatures, theirFeatures] = [ours, theirs].map(([y]) => features(y, width, height));
  const greatest = hyab(huntLab([0, 1, 0]), huntLab([0, 0, 1])) ** COLOUR_EXPONENT;
  let sum = 0;
  for (let at = 0; at < width * height; at++) {
    const p = [ourColour[0][at], ourColour[1][at], ourColour[2][at]];
    const q = [theirColour[0][at], theirColour[1][at], theirColour[2][at]];
    const colour = redistributed(hyab(p, q) ** COLOUR_EXPONENT, greatest);
    const feature = Math.max(
      Math.abs(ourFeatures.edges[at] - theirFeatures.edges[at]),
      Math.abs(ourFeatures.points[at] - theirFeatures.points[at]),
    );
    sum += colour ** (1 - (feature / Math.SQRT2) ** FEATURE_EXPONENT);
  }
  return sum / (width * height);
}

/**
 * Opponent colours YCxCz of each pixel.
 * @param {Picture} picture
 * @returns {Planes}
 */
function opponentOf({ data, width, height }) {
  const linear = Float32Array.from({ length: 256 }, (_, byte) => {
    const value = byte / 255;
    return value > 0.04045 ? ((value + 0.055) / 1.055) ** 2.4 : value / 12.92;
  });
  const planes = emptyPlanes(width * height);
  for (let at = 0; at < width * height; at++) {
    const rgb = [linear[data[4 * at]], linear[data[4 * at + 1]], linear[data[4 * at + 2]]];
    const [x, y, z] = product(WHITE_OF_RGB, rgb);
    planes[0][at] = 116 * y - 16;
    planes[1][at] = 500 * (x - y);
    planes[2][at] = 200 * (y - z);
  }
  return planes;
}

/**
 * Colours after the eye's filters, in Hunt-adjusted L*a*b*.
 * @param {Planes} opponent
 * @param {number} width
 * @param {number} height
 */
function perceivedColour(opponent, width, height) {
  const [luma, red, blue] = opponent.map((plane, index) => filtered(plane, SENSITIVITIES[index], width, height));
  const planes = emptyPlanes(width * height);
  for (let at = 0; at < width * height; at++) {
    const y = (luma[at] + 16) / 116;
    const [r, g, b] = product(RGB_OF_WHITE, [y + red[at] / 500, y, y - blue[at] / 200]);
    const lab = huntLab([within(r), within(g), within(b)]);
    planes[0][at] = lab[0];
    planes[1][at] = lab[1];
    planes[2][at] = lab[2];
  }
  return planes;
}

/**
 * A plane seen through a sum of Gaussians, whose weights sum to 1.
 * @param {Float32Array} plane
 * @param {number[][]} gaussians
 * @param {number} width
 * @param {number} height
 */
function filtered(plane, gaussians, width, height) {
  const radius = Math.ceil(3 * Math.sqrt(WIDEST / (2 * Math.PI ** 2)) * PIXELS_PER_DEGREE);
  const parts = gaussians.map(([a, b]) => {
    const kernel = kernelOf(radius, (x) => Math.exp((-(Math.PI ** 2) * (x / PIXELS_PER_DEGREE) ** 2) / b));
    const total = kernel.weights.reduce((sum, weight) => sum + weight, 0);
    return { share: a * Math.sqrt(Math.PI / b) * total ** 2, kernel: normalised(kernel) };
  });
  const whole = parts.reduce((sum, { share }) => sum + share, 0);
  const result = new Float32Array(plane.length);
  for (const { share, kernel } of parts) {
    const seen = down(across(plane, kernel, width, height), kernel, width, height);
    for (let at = 0; at < result.length; at++) result[at] += (share / whole) * seen[at];
  }
  return result;
}

/**
 * Strength of edges and points in the luminance.
 * @param {Float32Array} luma
 * @param {number} width
 * @param {number} height
 */
function features(luma, width, height) {
  const deviation = 0.5 * EDGE_DEGREES * PIXELS_PER_DEGREE;
  const radius = Math.ceil(3 * deviation);
  const gaussian = (/** @type {number} */ x) => Math.exp(-(x ** 2) / (2 * deviation ** 2));
  const plain = normalised(kernelOf(radius, gaussian));
  const scaled = luma.map((y) => (y + 16) / 116);
  const smooth = across(scaled, plain, width, height);
  const strength = (/** @type {Kernel} */ kernel) => {
    const x = down(across(scaled, kernel, width, height), plain, width, height);
    const y = down(smooth, kernel, width, height);
    return x.map((value, at) => Math.sqrt(value ** 2 + y[at] ** 2));
  };
  return {
    edges: strength(normalised(kernelOf(radius, (x) => -x * gaussian(x)))),
    points: strength(normalised(kernelOf(radius, (x) => (x ** 2 / deviation ** 2 - 1) * gaussian(x)))),
  };
}

/**
 * @param {number} radius
 * @param {(x: number) => number} weight
 * @returns {Kernel}
 */
function kernelOf(radius, weight) {
  return { radius, weights: Float64Array.from({ length: 2 * radius + 1 }, (_, at) => weight(at - radius)) };
}

/**
 * The kernel with positive weights that sum to 1, and negative ones to -1.
 * @param {Kernel} kernel
 * @returns {Kernel}
 */
function normalised({ weights, radius }) {
  let [above, below] = [0, 0];
  for (const weight of weights) {
    if (weight > 0) above += weight;
    else below -= weight;
  }
  return { radius, weights: weights.map((weight) => (weight ? weight / (weight > 0 ? above : below) : 0)) };
}

/**
 * Rows filtered, with the border's pixels repeated outside.
 * @param {Float32Array} plane
 * @param {Kernel} kernel
 * @param {number} width
 * @param {number} height
 */
function across(plane, { weights, radius }, width, height) {
  const result = new Float32Array(plane.length);
  const line = new Float32Array(width + 2 * radius);
  for (let row = 0; row < height * width; row += width) {
    line.fill(plane[row], 0, radius).fill(plane[row + width - 1], radius + width);
    line.set(plane.subarray(row, row + width), radius);
    for (let x = 0; x < width; x++) {
      let sum = 0;
      for (let tap = 0; tap < weights.length; tap++) sum += weights[tap] * line[x + tap];
      result[row + x] = sum;
    }
  }
  return result;
}

/**
 * Columns filtered, with the border's pixels repeated outside.
 * @param {Float32Array} plane
 * @param {Kernel} kernel
 * @param {number} width
 * @param {number} height
 */
function down(plane, { weights, radius }, width, height) {
  const result = new Float32Array(plane.length);
  for (let y = 0; y < height; y++) {
    for (let tap = 0; tap < weights.length; tap++) {
      const from = Math.min(height - 1, Math.max(0, y + tap - radius)) * width;
      for (let x = 0; x < width; x++) result[y * width + x] += weights[tap] * plane[from + x];
    }
  }
  return result;
}

/**
 * Hunt-adjusted L*a*b* of a linear colour.
 * @param {number[]} rgb
 */
function huntLab(rgb) {
  const [x, y, z] = product(WHITE_OF_RGB, rgb);
  const middle = root(y);
  const lightness = 116 * middle - 16;
  return [lightness, 5 * lightness * (root(x) - middle), 2 * lightness * (middle - root(z))];
}

/**
 * CIE's cube root, which is a line near black.
 * @param {number} part
 */
function root(part) {
  return part > DARKEST ** 3 ? Math.cbrt(part) : part / (3 * DARKEST ** 2) + 4 / 29;
}

/** @param {number} value */
function within(value) {
  return Math.min(1, Math.max(0, value));
}

/**
 * Distance of two colours: lightness apart from hue and chroma.
 * @param {number[]} p
 * @param {number[]} q
 */
function hyab(p, q) {
  return Math.abs(p[0] - q[0]) + Math.sqrt((p[1] - q[1]) ** 2 + (p[2] - q[2]) ** 2);
}

/**
 * An error between 0 and the greatest as one between 0 and 1: the lower part is spread out.
 * @param {number} error
 * @param {number} greatest
 */
function redistributed(error, greatest) {
  const knee = KNEE * greatest;
  if (error < knee) return (KNEE_ERROR / knee) * error;
  return KNEE_ERROR + ((error - knee) / (greatest - knee)) * (1 - KNEE_ERROR);
}

/**
 * @param {number[][]} matrix
 * @param {number[]} vector
 */
function product([first, second, third], [a, b, c]) {
  return [
    first[0] * a + first[1] * b + first[2] * c,
    second[0] * a + second[1] * b + second[2] * c,
    third[0] * a + third[1] * b + third[2] * c,
  ];
}

/**
 * @param {number} length
 * @returns {Planes}
 */
function emptyPlanes(length) {
  return [new Float32Array(length), new Float32Array(length), new Float32Array(length)];
}
