// A real llama.cpp for the tests: reads a request from standard input, writes what it computes to the file it names.
//
// {"package": folder of node-llama-cpp, "model": GGUF, "lora": GGUF LoRA or null, "threads": n, "out": file,
//  "rows": [{"prompt": [token ids], "forced": [token ids], "count": n}]}
//
// For each row: the greedy continuation of the prompt ("count" tokens), and the raw logits at every place of "forced",
// a continuation that is given. Token ids, not text: tokenizers are not what is tested.
import fs from "node:fs";
import path from "node:path";
import {pathToFileURL} from "node:url";

const asked = JSON.parse(fs.readFileSync(0, "utf8"));
const {getLlama} = await import(pathToFileURL(path.join(asked.package, "dist", "index.js")).href);
const llama = await getLlama({gpu: false, build: "never", logLevel: "error", maxThreads: asked.threads});
const model = await llama.loadModel({modelPath: asked.model, gpuLayers: 0});
const options = asked.lora === null ? {} : {lora: {adapters: [{filePath: asked.lora}]}};
const context = await model.createContext({contextSize: 512, threads: asked.threads, ...options});
const sequence = context.getSequence();
const out = fs.openSync(asked.out, "w");
const answers = [];
for (const row of asked.rows) {
    await sequence.clearHistory();
    const greedy = [];
    let last = row.prompt;
    while (greedy.length < row.count) {
        const items = last.map((token, at) => (at === last.length - 1 ? [token, {generateNext: {token: true, options: {temperature: 0}}}] : token));
        const found = await sequence.controlledEvaluate(items);
        last = [found[items.length - 1].next.token];
        greedy.push(last[0]);
    }
    await sequence.clearHistory();
    const whole = [...row.prompt, ...row.forced];
    const first = row.prompt.length - 1;
    const items = whole.slice(0, -1).map((token, at) => (at < first ? token : [token, {generateNext: {logits: true}}]));
    const found = await sequence.controlledEvaluate(items);
    for (let at = first; at < items.length; at++) {
        const logits = found[at].next.logits;
        const values = new Float32Array(logits.size);
        for (const [token, value] of logits) values[token] = value;
        fs.writeSync(out, new Uint8Array(values.buffer));
    }
    answers.push(greedy);
}
fs.closeSync(out);
process.stdout.write(JSON.stringify(answers));
process.exit(0);
