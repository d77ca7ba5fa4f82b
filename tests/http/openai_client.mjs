// OpenAI's Node SDK against the server whose URL is given.
import fs from "node:fs";
import OpenAI, { toFile } from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const prompt = "a red apple on a blue background";
const extras = { seed: 5, num_inference_steps: 20 };
const model = (await client.models.list()).data[0].id;

const generated = await client.images.generate({ model, prompt, size: "96x96", ...extras });
if (!generated.data[0].b64_json || generated.cache_dit.seeds[0] !== 5) throw new Error("no picture");
console.log("generated");

const image = await toFile(fs.createReadStream("apple.png"), "apple.png", { type: "image/png" });
const edited = await client.images.edit({ model, prompt, image, ...extras });
if (!edited.data[0].b64_json) throw new Error("no edit");
console.log("edited");

const stream = await client.images.generate({ model, prompt, stream: true, partial_images: 1, ...extras });
for await (const event of stream) console.log(event.type);

try {
  await client.images.generate({ model, prompt, size: "huge" });
} catch (error) {
  if (!(error instanceof OpenAI.BadRequestError) || error.param !== "size") throw error;
  console.log(error.status);
}
