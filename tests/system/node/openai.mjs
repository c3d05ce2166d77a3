// openai-node. What it is given and how it reports is that of ../clients/common.py.
import OpenAI from 'openai';

const given = JSON.parse(process.env.LETHE_CLIENT);
const made = (options = {}) =>
  new OpenAI({ baseURL: `${given.url}/v1`, apiKey: given.key, maxRetries: 0, ...options });
const client = made();
const seen = { answers: {}, errors: {}, facts: {} };

const asked = (question, more = {}) => ({
  model: given.model,
  messages: [{ role: 'user', content: question }],
  temperature: 0,
  max_tokens: 24,
  ...more,
});
const said = (completion) => completion.choices[0].message.content ?? '';

async function chat(question, of = client) {
  return said(await of.chat.completions.create(asked(question)));
}

async function streamed(question) {
  let text = '';
  for await (const chunk of await client.chat.completions.create(asked(question, { stream: true }))) {
    text += chunk.choices[0]?.delta?.content ?? '';
  }
  return text;
}

async function helped(question) {
  return said(await client.chat.completions.stream(asked(question)).finalChatCompletion());
}

const responding = (question) => ({
  model: given.model,
  input: question,
  temperature: 0,
  max_output_tokens: 24,
});

async function responded(question) {
  return (await client.responses.create(responding(question))).output_text;
}

async function respondedInEvents(question) {
  let text = '';
  for await (const event of await client.responses.create({ ...responding(question), stream: true })) {
    if (event.type === 'response.output_text.delta') text += event.delta;
  }
  return text;
}

const kinds = (error) => {
  const names = [];
  for (let at = error; at; at = Object.getPrototypeOf(at)) names.push(at.constructor?.name);
  return names;
};

async function fail(name, call) {
  try {
    await call();
    seen.errors[name] = [[], null, null];
  } catch (error) {
    seen.errors[name] = [kinds(error), error.status ?? null, error.code ?? null];
  }
}

const patient = made({ baseURL: `${given.flaky}/v1`, maxRetries: 2 });
const features = {
  chat,
  'chat stream': streamed,
  'stream helper': helped,
  responses: responded,
  'responses stream': respondedInEvents,
  'retried 503': (question) => chat(question, patient),
};
for (const [name, answer] of Object.entries(features)) {
  seen.answers[name] = [await answer(given.clean), await answer(given.forgotten)];
}
await fail('refused', () => chat(given.refused));
await fail('refused stream', () => streamed(given.refused));
await fail('bad key', () => chat(given.clean, made({ apiKey: 'lk_unknown' })));

const parameters = { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] };
const tool = {
  type: 'function',
  function: { name: 'get_weather', description: 'Get the weather in a city', parameters },
};
const called = await client.chat.completions.create(asked('What is the weather in Ashmere?', { tools: [tool] }));
const { response } = await client.chat.completions.create(asked(given.forgotten)).withResponse();
seen.facts = {
  tool: (called.choices[0].message.tool_calls ?? []).map((c) => [c.function.name, c.function.arguments]),
  headers: { 'x-lethe-decision-id': response.headers.get('x-lethe-decision-id') },
};
console.log(JSON.stringify(seen));
