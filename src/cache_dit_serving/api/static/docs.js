// Swagger UI on the page of /docs, with the pictures, videos and sounds of an answer shown below it.
"use strict";

const SIGNATURES = [
  ["image/png", (bytes) => bytes.startsWith("\x89PNG\r\n")],
  ["image/jpeg", (bytes) => bytes.startsWith("\xff\xd8\xff")],
  ["image/gif", (bytes) => bytes.startsWith("GIF8")],
  ["image/webp", (bytes) => bytes.startsWith("RIFF") && bytes.slice(8, 12) === "WEBP"],
  ["video/mp4", (bytes) => bytes.slice(4, 8) === "ftyp"],
  ["audio/wav", (bytes) => bytes.startsWith("RIFF") && bytes.slice(8, 12) === "WAVE"],
  ["audio/flac", (bytes) => bytes.startsWith("fLaC")],
];
const LEAST_CHARACTERS = 64; // of base64, of which the shortest picture has more

// The media type of a file in base64, by its first bytes; undefined for every other text.
function mediaType(text) {
  if (text.length < LEAST_CHARACTERS || !/^[A-Za-z0-9+/]{16}/.test(text)) return undefined;
  const bytes = atob(text.slice(0, 16));
  return SIGNATURES.find(([, fits]) => fits(bytes))?.[0];
}

// Data URLs of the files in an answer, each with the place that it has there.
function filesIn(value, place = "") {
  if (typeof value === "string") {
    const type = mediaType(value);
    return type ? [{ type, place, url: `data:${type};base64,${value}` }] : [];
  }
  if (value === null || typeof value !== "object") return [];
  return Object.entries(value).flatMap(([key, part]) => filesIn(part, place ? `${place}.${key}` : key));
}

function filesInText(text) {
  try {
    return filesIn(JSON.parse(text));
  } catch {
    return []; // not JSON
  }
}

// A Swagger UI plugin: https://swagger.io/docs/open-source-tools/swagger-ui/customization/plugin-api/
function ShownFiles() {
  return {
    wrapComponents: {
      responseBody: (Original, { React }) => (props) => {
        const files = typeof props.content === "string" ? filesInText(props.content) : [];
        const shown = files.map(({ type, place, url }) => {
          const kind = type.split("/")[0];
          const file =
            kind === "image"
              ? React.createElement("img", { src: url, alt: place })
              : React.createElement(kind, { src: url, controls: true });
          return React.createElement("figure", { key: place }, file, React.createElement("figcaption", null, place));
        });
        const figures = React.createElement("div", { className: "shown-files" }, shown);
        return React.createElement("div", null, React.createElement(Original, props), figures);
      },
    },
  };
}

SwaggerUIBundle({ url: "openapi.json", dom_id: "#swagger-ui", tryItOutEnabled: true, plugins: [ShownFiles] });
