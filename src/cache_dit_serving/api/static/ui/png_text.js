// The request that this server writes into a PNG: an iTXt chunk `parameters`, or tEXt.

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];

/**
 * Request that drew a picture; null for a file of another origin.
 * @param {Blob} file
 * @returns {Promise<Record<string, any> | null>}
 */
export async function parametersOf(file) {
  const data = new Uint8Array(await file.arrayBuffer());
  if (SIGNATURE.some((byte, index) => data[index] !== byte)) return null;
  const view = new DataView(data.buffer);
  for (let at = 8; at + 12 <= data.length; ) {
    const length = view.getUint32(at);
    const type = latin(data.subarray(at + 4, at + 8));
    const body = data.subarray(at + 8, at + 8 + length);
    const key = latin(body.subarray(0, body.indexOf(0)));
    if ((type === "iTXt" || type === "tEXt") && key === "parameters") {
      const parsed = parse(type === "iTXt" ? afterTags(body, key.length) : body.subarray(key.length + 1));
      if (parsed) return parsed;
    }
    if (type === "IEND") break;
    at += length + 12;
  }
  return null;
}

/**
 * Text of an iTXt chunk, past its flags, language and translated keyword; empty if it is compressed.
 * @param {Uint8Array} body
 * @param {number} keyLength
 */
function afterTags(body, keyLength) {
  if (body[keyLength + 1] !== 0) return new Uint8Array();
  const language = body.indexOf(0, keyLength + 3);
  return body.subarray(body.indexOf(0, language + 1) + 1);
}

/** @param {Uint8Array} text */
function parse(text) {
  try {
    const found = JSON.parse(new TextDecoder().decode(text));
    return typeof found === "object" && found !== null && !Array.isArray(found) ? found : null;
  } catch {
    return null;
  }
}

/** @param {Uint8Array} bytes */
function latin(bytes) {
  return String.fromCharCode(...bytes);
}
