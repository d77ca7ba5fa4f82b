// FLIP beside the page, which would stand still for a second: two pictures come in one message, the figure goes out.
import { flip } from "./flip.js";

addEventListener("message", ({ data: { a, b } }) => postMessage(flip(a, b)));
